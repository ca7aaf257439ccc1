"""Run commands on damaged inputs: each must end with a sentence and the right exit code, nothing half written.

Small valid inputs (recipes, students, classifiers, teachers, runs, benchmarks, tables, FASTA, BED) are made once. Every
input of the fuzz damages one or two of their files, or an option, and runs a command in this process.

Example:
    python scripts/fuzz.py --seed 1 --minutes 10 --keep fuzz-failures

A seed gives the same inputs each time; ``--only 17`` repeats one. A failing input is copied to ``--keep``, with its
command and what it wrote. Exit code 1 if any input failed.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

SECONDS = 240
"""After which an input counts as failed."""
MEMORY = 16 << 30
"""Of the whole process, so that a wrong size is refused and does not fill the machine."""

JUNK: list[Any] = [
    None, True, -1, 0, 1, 7, 0.5, -0.0, 1e12, 2**31, 2**63, 2**64, 10**400, 1e300, float("inf"), float("nan"),
    "", "x", "nan", "1e400", "9" * 400, "9" * 5000, "$x$", "$\\frac$", "{x}", "%s",
    "\x1b[31mred", "\u202eabc", "é", "\ufeff",
    "a" * 300, "../..", "/dev/null", "nowhere/x", "a\nb", "a,b", "os:system", [], {}, [[]], [None], ["a", 1], {"a": 1},
]  # fmt: skip
TOKENS = [
    b"", b"\0", b"\xff\xfe", b"\xe9", b"\r", b"\n\n", b"\t", b",", b"|", b"\"", b">", b"-1", b"1e9", b"120.0", b"NaN",
    b"#", b"9" * 400, b"\x1b[2J", b"\xe2\x80\xae", b"$", b": ", b"- ", b"&a ", b"*a", b"{", b"[" * 2000,
    b"!!python/object:x ", b"ACGT", b"NNNN", b"acgtx*", "…".encode(), b"PAR1", b"\x1f\x8b",
]  # fmt: skip


@dataclass
class Command:
    """One command and what of its input is damaged."""

    name: str
    words: list[str]
    damaged: tuple[str, ...]
    """Files, or folders of which a file is drawn; none: an option or override is."""
    out: str | None = None
    """What must not be there after exit code 2."""
    works: bool = False
    """Whether it may end with a fault (exit code 1): it does more than read and plan."""


def commands() -> list[Command]:
    """Every command on every kind of input."""
    run = ["--device", "cpu", "--threads", "1", "--quiet"]
    fit = [*run, "--epochs", "1", "training.batch_size=8"]
    drawn = ["data.window=60", "data.validation_windows=4", "training.global_batch=2", "training.steps=2"]
    pre = ["--genome", "genome.fa", *run, *drawn, *STUDENT]
    new = ["--out", "out"]
    found = []
    for table in ("table.csv", "table.tsv", "table.parquet", "table.fa"):
        words = ["finetune", table, "--model", "student", *fit]
        found.append(Command(f"finetune {table} --dry-run", [*words, *new, "--dry-run"], (table,), "out"))
    words = ["finetune", "table.csv", "--model", "student", *fit, *new]
    found += [
        Command("finetune, student", words, ("student",), "out", works=True),
        Command("finetune, options", words, (), "out", works=True),
        Command(
            "finetune gue/mouse/3 --dry-run", ["finetune", "gue/mouse/3", *fit, *new, "--dry-run"], ("gue",), "out"
        ),
        Command(
            "finetune --recipe --dry-run",
            ["finetune", "table.csv", "--recipe", "recipe.yaml", *run, *new, "--dry-run"],
            ("recipe.yaml",),
            "out",
        ),
        Command(
            "finetune --resume",
            ["finetune", "table.csv", "--model", "student", *fit, "--out", "tuned", "--resume", "auto"],
            ("tuned",),
            works=True,
        ),
    ]
    for peaks in ("peaks.bed", "peaks.narrowPeak"):
        words = ["finetune", peaks, "--genome", "genome.fa", "--width", "60", *fit, *new, "--dry-run"]
        words += ["--valid-contig", "two", "--test-contig", "three"]
        found.append(Command(f"finetune {peaks} --dry-run", words, (peaks, "genome.fa"), "out"))
        found.append(Command(f"finetune {peaks}, options", words, (), "out"))
    words = ["pretrain", "laptop", "--teacher", "teacher", *pre]
    found += [
        Command(
            "pretrain --dry-run", [*words, "--bed", "split.bed", *new, "--dry-run"], ("genome.fa", "split.bed"), "out"
        ),
        Command("pretrain, options", [*words, *new, "--dry-run"], (), "out"),
        Command(
            "pretrain RECIPE --dry-run",
            ["pretrain", "pretrain.yaml", *run, *new, "--dry-run"],
            ("pretrain.yaml",),
            "out",
        ),
        Command("pretrain, teacher", [*words, *new], ("teacher",), "out", works=True),
        Command("pretrain --resume", [*words, "--out", "run", "--resume", "auto"], ("run",), works=True),
        Command("teacher verify", ["teacher", "verify", "teacher", "--quiet"], ("teacher",), works=True),
    ]
    for table in ("table.csv", "table.tsv", "table.parquet", "table.fa"):
        found.append(
            Command(
                f"predict {table}", ["predict", "tuned", table, "--out", "p.tsv", *run], (table,), "p.tsv", works=True
            )
        )
    words = ["predict", "tuned/model", "table.csv", "--out", "p.tsv", *run]
    found += [
        Command("predict, classifier", words, ("tuned/model",), "p.tsv", works=True),
        Command("predict, options", words, (), "p.tsv", works=True),
    ]
    bed = ["predict", "tuned", "peaks.bed", "--genome", "genome.fa", "--out", "p.bedgraph", *run]
    found.append(Command("predict peaks.bed", bed, ("peaks.bed", "genome.fa"), "p.bedgraph", works=True))
    words = ["evaluate", "run/model", "--genome", "genome.fa", "--teacher", "teacher", "--window", "60", "--tiles", "4"]
    words += [*run, "--valid-contig", "two", "--test-contig", "three", "--out", "e.json"]
    found += [
        Command("evaluate", words, ("run/model", "teacher", "genome.fa"), "e.json", works=True),
        Command("evaluate, options", words, (), "e.json", works=True),
    ]
    words = ["benchmark", "gue", "--data", "gue", "--tasks", "mouse/3", "--models", "kmer", "--seeds", "1", *run]
    found += [
        Command("benchmark", [*words, *new], ("gue",), "out", works=True),
        Command("benchmark, options", [*words, *new, "--dry-run"], (), "out"),
        Command("benchmark, folder", [*words, "--out", "bench"], ("bench",), works=True),
    ]
    words = ["probe", "mine=student", "k=kmers", "--data", "gue", "--tasks", "mouse/3", "--out", "probes.csv", *run]
    found.append(Command("probe", words, ("probes.csv", "student", "gue"), works=True))
    return found


STUDENT = [
    "model.hidden_size=16", "model.intermediate_size=24", "model.recurrent_blocks=1", "model.key_width=4",
    "model.value_width=8", "model.attention_heads=1", "model.decoder_heads=1", "objective.fit_windows=8",
]  # fmt: skip


class TooSlow(BaseException):
    """The input took longer than `SECONDS`; nothing but the fuzz catches it."""


def run_command(words: list[str]) -> tuple[int | None, str]:
    """Run ``had`` as the console script does; its exit code (None if it raised) and what it wrote."""
    from had.cli import main

    def stop(_: int, __: FrameType | None) -> NoReturn:
        raise TooSlow

    said, before = io.StringIO(), sys.argv
    sys.argv = ["had", *words]
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    code: int | None = None
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else None
    except BaseException:
        said.write(traceback.format_exc())
    finally:
        signal.alarm(0)
        sys.argv = before
        logger = logging.getLogger("had")
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
    return code, said.getvalue()


def make_inputs(folder: Path) -> None:
    """Write valid inputs of every kind below a new folder."""
    import pyarrow as pa
    import torch
    from pyarrow import parquet

    from had.models.nucleotide_transformer import NucleotideTransformer, NucleotideTransformerConfig
    from had.models.student import HADConfig, HADModel

    drawn = random.Random(0)

    def letters(length: int, gc: float = 0.5) -> str:
        return "".join(drawn.choices("ACGT", [1 - gc, gc, gc, 1 - gc], k=length))

    def rows(n: int) -> list[tuple[str, str]]:
        return [(letters(40, 0.2 + 0.6 * (i % 2)), str(i % 2)) for i in range(n)]

    def write_table(path: Path, n: int, delimiter: str = ",") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerows([("sequence", "label"), *rows(n)])

    folder.mkdir(parents=True)
    contigs = {"one": 3_000, "two": 1_500, "three": 1_500}
    (folder / "genome.fa").write_text("".join(f">{name} made up\n{letters(n)}\n" for name, n in contigs.items()))
    (folder / "split.bed").write_text("one\t0\t2900\ttrain\ntwo\t0\t1400\tvalidation\nthree\t0\t1400\ttest\n")
    peaks = [(name, at, at + 60) for name, n in contigs.items() for at in range(30, n - 300, 300)]
    (folder / "peaks.bed").write_text("".join(f"{name}\t{a}\t{b}\n" for name, a, b in peaks))
    (folder / "peaks.narrowPeak").write_text(
        "".join(f"{name}\t{a}\t{b}\tp{i}\t9\t.\t1.5\t-1\t-1\t20\n" for i, (name, a, b) in enumerate(peaks))
    )
    write_table(folder / "table.csv", 40)
    write_table(folder / "table.tsv", 40, "\t")
    made = rows(40)
    parquet.write_table(
        pa.table({"sequence": [s for s, _ in made], "label": [int(y) for _, y in made]}), folder / "table.parquet"
    )
    (folder / "table.fa").write_text("".join(f">s{i}|{y}\n{s}\n" for i, (s, y) in enumerate(made)))
    for name, n in (("train", 40), ("dev", 16), ("test", 16)):
        write_table(folder / "gue/mouse/3" / f"{name}.csv", n)
    torch.manual_seed(0)
    sizes = {"intermediate_size": 24, "hidden_size": 16}
    HADModel(HADConfig(**sizes, recurrent_blocks=1, attention_heads=1, key_width=4, value_width=8)).save_pretrained(
        folder / "student"
    )
    NucleotideTransformer(
        NucleotideTransformerConfig(**sizes, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(folder / "teacher")
    by_name = {command.name: command for command in commands()}
    first = ["finetune, student", "pretrain, teacher", "benchmark", "probe"]
    with contextlib.chdir(folder):
        for name, place in zip(first, ("tuned", "run", "bench", None), strict=True):
            words = [place if word == "out" and place else word for word in by_name[name].words]
            code, said = run_command(words)
            if code:
                raise SystemExit(f"{name}: the valid inputs do not work: {said}")
        shutil.copy("tuned/config.yaml", "recipe.yaml")
        shutil.copy("run/config.yaml", "pretrain.yaml")


def damage_value(value: Any, drawn: random.Random) -> Any:
    """Nested plain values with one of them replaced or removed."""
    if isinstance(value, dict) and value and drawn.random() < 0.9:
        key = drawn.choice(list(value))
        kind = drawn.random()
        if kind < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.15:
            return {**value, str(drawn.choice(JUNK)): 1}
        return {k: damage_value(v, drawn) if k == key else v for k, v in value.items()}
    if isinstance(value, list) and value and drawn.random() < 0.9:
        place = drawn.randrange(len(value))
        return [damage_value(v, drawn) if i == place else v for i, v in enumerate(value)]
    return drawn.choice(JUNK)


def damage_json(data: bytes, drawn: random.Random) -> bytes:
    """JSON with a value replaced or removed."""
    return json.dumps(damage_value(json.loads(data), drawn)).encode()


def damage_bytes(data: bytes, drawn: random.Random) -> bytes:
    """Bytes cut short, with a span lost, doubled or overwritten, with a token put in, or other bytes altogether."""
    a, b = sorted(drawn.randrange(len(data) + 1) for _ in range(2))
    b = min(b, a + drawn.choice([1, 4, 40, 4000]))
    kind = drawn.randrange(8)
    if kind == 0:
        return data[:a]
    if kind == 1:
        return data[:a] + data[b:]
    if kind == 2:
        return data[:b] + data[a:]
    if kind == 3:
        return data[:a] + drawn.randbytes(b - a) + data[b:]
    if kind == 4:
        return drawn.choice([b"", b"\n", b"\0" * 100, drawn.randbytes(200), data + b"\n" + data])
    return data[:a] + drawn.choice(TOKENS) + data[a if kind == 5 else b :]


def damage_lines(data: bytes, drawn: random.Random) -> bytes:
    """Text with a word of a line replaced, or with a line lost, doubled or moved."""
    lines = data.splitlines(keepends=True) or [b""]
    place = drawn.randrange(len(lines))
    kind = drawn.randrange(6)
    if kind == 0:
        del lines[place]
    elif kind == 1:
        lines.insert(drawn.randrange(len(lines)), lines[place])
    else:
        marks = [i for i, c in enumerate(lines[place]) if c in b"\t,|: \n"] or [0]
        end = drawn.choice(marks)
        start = max((i + 1 for i in marks if i < end), default=0)
        word = drawn.choice([*TOKENS, *(str(value).encode() for value in JUNK)])
        lines[place] = lines[place][:start] + word + lines[place][end:]
    return b"".join(lines)


def damage_tensors(data: bytes, drawn: random.Random) -> bytes:
    """A safetensors file with another header, or with NaN in its weights."""
    size = int.from_bytes(data[:8], "little")
    if drawn.random() < 0.4:
        return data[: 8 + size] + b"\xff" * (len(data) - 8 - size)
    header = json.dumps(damage_value(json.loads(data[8 : 8 + size]), drawn)).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def damage_table(data: bytes, drawn: random.Random) -> bytes:
    """A Parquet file whose columns or metadata are others."""
    import pyarrow as pa
    from pyarrow import parquet

    table = parquet.read_table(io.BytesIO(data))
    name = drawn.choice(table.column_names)
    place = table.column_names.index(name)
    kind = drawn.randrange(5)
    if kind == 0:
        table = table.drop_columns([name])
    elif kind == 1:
        table = table.slice(0, drawn.randrange(3))
    elif kind == 2:
        kinds = [pa.string(), pa.float64(), pa.bool_(), pa.list_(pa.int8()), pa.timestamp("s"), pa.binary()]
        table = table.set_column(place, name, pa.nulls(len(table), drawn.choice(kinds)))
    elif kind == 3:
        texts = [str(drawn.choice(JUNK)) for _ in range(len(table))]
        table = table.set_column(place, name, pa.array(texts))
    else:
        known = json.loads((table.schema.metadata or {}).get(b"had", b"{}"))
        table = table.replace_schema_metadata({b"had": json.dumps(damage_value(known, drawn)).encode()})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()


def damage_file(path: Path, drawn: random.Random) -> str:
    """Damage a file in place; what was done, in words."""
    kind = drawn.random()
    if kind < 0.04:
        path.unlink()
        return "removed"
    if kind < 0.08:
        path.unlink()
        path.mkdir()
        return "a folder in its place"
    data = path.read_bytes()
    by_suffix: dict[str, Callable[[bytes, random.Random], bytes]] = {
        ".json": damage_json,
        ".safetensors": damage_tensors,
        ".parquet": damage_table,
    }
    change = damage_bytes if kind < 0.4 else by_suffix.get(path.suffix, damage_lines)
    try:
        path.write_bytes(change(data, drawn))
    except Exception:
        # The second damage of a file that cannot be read any more.
        path.write_bytes(damage_bytes(data, drawn))
    return change.__name__


def damage_words(words: list[str], drawn: random.Random) -> list[str]:
    """A command line with one word replaced by another, left out, or with one more override."""
    values = [
        *JUNK,
        "auto",
        "1e-3",
        "9" * 25,
        "[" * 3000,
        "{a: &x [1, 2], b: [*x, *x]}",
        "a.b.c=1",
        "=",
        "~nosuchuser/x",
    ]
    value = drawn.choice(values)
    word = "null" if value is None else json.dumps(value) if isinstance(value, list | dict) else str(value)
    # NUL cannot be part of a command line.
    word = word.replace("\0", "")
    place = drawn.randrange(1, len(words))
    keys = [i for i, w in enumerate(words) if "=" in w]
    kind = drawn.randrange(4)
    if kind == 0 and keys:
        place = drawn.choice(keys)
        return [*words[:place], f"{words[place].partition('=')[0]}={word}", *words[place + 1 :]]
    if kind == 1:
        sections = [
            "data",
            "training",
            "training.optimizer",
            "model",
            "objective",
            "teacher",
            "peaks",
            "student",
            "seed",
        ]
        ends = [
            "window",
            "steps",
            "global_batch",
            "lr",
            "epochs",
            "batch_size",
            "hidden_size",
            "validation_windows",
            "slots",
        ]
        ends += [
            "mask_fraction",
            "stretch",
            "metric",
            "shift",
            "name",
            "width",
            "ratio",
            "warmup",
            "precision",
            "cache",
        ]
        return [*words, f"{drawn.choice(sections)}.{drawn.choice(ends)}={word}"]
    if kind == 2:
        return [*words[:place], *words[place + 1 :]]
    return [*words[:place], word, *words[place + 1 :]]


def state_of(folder: Path) -> dict[str, str]:
    """A checksum of every file below a folder, locks left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


def judge(command: Command, code: int | None, said: str, before: dict[str, str], after: dict[str, str]) -> str | None:
    """Why the end of a command is wrong; None where it is right."""
    if code is None:
        return "no exit code"
    if "HAD_DEBUG=1 shows the traceback" in said:
        frames = [line.strip() for line in said.splitlines() if "/had/" in line and line.strip().startswith("File")]
        error = next(line for line in said.splitlines() if "HAD_DEBUG=1 shows" in line)
        return f"traceback, {frames[-1].rpartition('/had/')[2] if frames else ''}: {error[:90]}"
    if code not in ((0, 1, 2) if command.works else (0, 2)):
        return f"exit code {code}"
    if code and not any(line.startswith(("had: ", "Error: ", "Usage: ")) for line in said.splitlines()):
        return "no sentence"
    if parts := [name for name in after if name.endswith(".part") or ".part/" in name]:
        return f"left behind: {parts[0]}"
    if code == 2 and (changed := {*before.items()} ^ {*after.items()}):
        return f"exit code 2, and {sorted(changed)[0][0]} changed"
    return None


def fuzz(
    inputs: Path, numbers: Iterator[int], seed: int, keep: Path | None, minutes: float | None = None
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Run the inputs of these numbers: exit codes by command, and a line for each that failed."""
    codes: dict[str, Counter[str]] = defaultdict(Counter)
    failures: list[str] = []
    every, end = commands(), time.monotonic() + 60 * (minutes or 1e9)
    for number in numbers:
        if time.monotonic() > end:
            break
        drawn = random.Random(f"{seed} {number}")
        command = every[number % len(every)]
        with tempfile.TemporaryDirectory(prefix="had-fuzz-") as place:
            work = Path(place) / "inputs"
            shutil.copytree(inputs, work)
            words, done = command.words, []
            for _ in range(drawn.choice([1, 1, 2])):
                if not command.damaged:
                    words = damage_words(words, drawn)
                    continue
                chosen = work / drawn.choice(command.damaged)
                files = [f for f in sorted(chosen.rglob("*")) if f.is_file() and f.name != ".lock"]
                path = drawn.choice(files) if files else chosen
                if path.is_file():
                    done.append(f"{path.relative_to(work)}: {damage_file(path, drawn)}")
            before = state_of(work)
            with contextlib.chdir(work):
                code, said = run_command(words)
            fault = judge(command, code, said, before, state_of(work))
            codes[command.name][f"exit {code}"] += 1
            if fault:
                codes[command.name]["failed"] += 1
                failures.append(f"{number}, {command.name}, {'; '.join(done) or words}: {fault}")
                if keep:
                    aside = keep / f"{seed}-{number}"
                    shutil.rmtree(aside, ignore_errors=True)
                    shutil.copytree(work, aside, symlinks=True)
                    (aside / "command.json").write_text(json.dumps(words))
                    (aside / "said.txt").write_text(f"{failures[-1]}\n{said}", errors="backslashreplace")
    return codes, failures


def main(arguments: list[str] | None = None) -> int:
    """Fuzz; 1 if an input failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100, help="inputs; with --minutes: no limit")
    parser.add_argument("--minutes", type=float, help="stop after so long")
    parser.add_argument("--only", type=int, help="run the input of this number alone")
    parser.add_argument("--keep", type=Path, help="folder of failing inputs")
    options = parser.parse_args(arguments)
    # Compiled kernels outlive the run, and are those of the tests.
    os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "numba"))
    numbers = range(10**9 if options.minutes else options.count)
    if options.only is not None:
        numbers = range(options.only, options.only + 1)
    keep = options.keep and options.keep.resolve()
    before = {name: os.environ.get(name) for name in ("HAD_DEBUG", "HAD_CACHE")}
    with tempfile.TemporaryDirectory(prefix="had-fuzz-") as place:
        os.environ.update(HAD_DEBUG="1", HAD_CACHE=f"{place}/cache")
        try:
            make_inputs(Path(place) / "inputs")
            codes, failures = fuzz(Path(place) / "inputs", iter(numbers), options.seed, keep, options.minutes)
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    for name, counts in codes.items():
        print(f"{name:36} " + ", ".join(f"{what}: {n}" for what, n in sorted(counts.items())))
    print("\n".join(failures))
    print(f"{sum(sum(c.values()) - c['failed'] for c in codes.values()):,} inputs, {len(failures):,} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.exit(main())
