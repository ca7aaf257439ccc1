"""Wrong input: one sentence that names the culprit, exit code 2, no traceback, nothing left behind."""

import errno
import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from had.cli import main

BASES = "ACGTTGCATTAC" * 400
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; return its exit code and what it wrote to standard error."""

    def call(*words: str | Path) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["had", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), capsys.readouterr().err

    return call


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    path = tmp_path / "genome.fa"
    path.write_text(f">chr1\n{BASES}\n>chr2\n{BASES}\n")
    return path


def pretrain(run: Run, genome: Path, out: Path, *more: str | Path) -> tuple[int, str]:
    size = ("data.window=60", "training.steps=2", "training.global_batch=2", "data.validation_windows=2")
    words = ("pretrain", "laptop", "--genome", genome, "--teacher", "random:16x1x1x16", "--out", out)
    return run(*words, "--device", "cpu", *more, *size)


def check_refused(result: tuple[int, str], out: Path, *mentioned: str) -> None:
    code, text = result
    assert code == 2, text
    assert "Traceback" not in text
    message = next(line for line in text.splitlines() if line.startswith("had: "))
    for word in mentioned:
        assert word in message, message
    assert not out.exists() or not any(out.iterdir())


def test_a_home_of_nobodys_is_named(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    check_refused(pretrain(run, Path("~nosuchuser/g.fa"), out), out, "~nosuchuser/g.fa", "home folder")


@pytest.mark.parametrize(
    ("content", "mentioned"),
    [
        (None, ["nowhere.fa"]),
        ("", ["genome.fa"]),
        (">chr1\n", ["genome.fa"]),
        (">p1 a protein\nMKVLLPEFQ\n", ["genome.fa", "p1"]),
        (f">chr1\n{'ACGTN' * 500}\n", ["genome.fa", "60"]),
        ("ACGT\n", ["genome.fa"]),
    ],
    ids=["missing", "empty", "no letters", "protein", "no window without N", "no header"],
)
def test_unusable_fasta(run: Run, tmp_path: Path, content: str | None, mentioned: list[str]) -> None:
    path = tmp_path / ("nowhere.fa" if content is None else "genome.fa")
    if content is not None:
        path.write_text(content)
    out = tmp_path / "run"
    check_refused(pretrain(run, path, out), out, *mentioned)


def test_truncated_gzip(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "genome.fa.gz"
    path.write_bytes(gzip.compress(f">chr1\n{BASES}\n".encode())[:-12])
    out = tmp_path / "run"
    check_refused(pretrain(run, path, out), out, "genome.fa.gz")


@pytest.mark.parametrize(
    ("rows", "mentioned"),
    [
        ("chr1\t0\t99999\n", ["line 1", "99,999", "chr1"]),
        ("1\t0\t600\n", ["line 1", "chr1"]),
        ("chr1\t0\t600\ttrain\nchr1\t300\t900\tvalidation\n", ["1", "2"]),
        ("chr1\t600\t0\n", ["line 1"]),
        ("chr1\n", ["line 1"]),
        ("chr1\tx\t600\n", ["line 1"]),
    ],
    ids=["beyond the contig", "absent contig", "overlapping splits", "start after end", "one column", "no number"],
)
def test_unusable_bed(run: Run, genome: Path, tmp_path: Path, rows: str, mentioned: list[str]) -> None:
    bed = tmp_path / "intervals.bed"
    bed.write_text(rows)
    out = tmp_path / "run"
    check_refused(pretrain(run, genome, out, "--bed", bed), out, "intervals.bed", *mentioned)


@pytest.mark.parametrize(
    ("override", "mentioned"),
    [
        ("data.window=100", ["6", "100"]),
        ("data.window=0", ["6"]),
        ("data.validation_windows=-1", ["validation_windows", "-1"]),
        ("data.windw=60", ["data.windw", "window"]),
        ("trainin.steps=3", ["trainin", "training"]),
        ("training.optimizer.lrr=3", ["lrr", "lr"]),
        ("objective.align_head=maen", ["mean", "concat"]),
        ("training.steps=many", ["training.steps"]),
        ("objective.align_positions=none", ["visible"]),
    ],
)
def test_unusable_recipe_values(run: Run, genome: Path, tmp_path: Path, override: str, mentioned: list[str]) -> None:
    out = tmp_path / "run"
    size = () if "window" in override else ("data.window=60",)
    words = ("pretrain", "laptop", "--genome", genome, "--teacher", "random:16x1x1x16", "--out", out, *size, override)
    check_refused(run(*words), out, *mentioned)


@pytest.mark.parametrize("section", ["training", "peaks"])
def test_a_value_in_the_place_of_a_section(run: Run, tmp_path: Path, section: str) -> None:
    (tmp_path / "a.csv").write_text("sequence,label\nACGT,1\n")
    words = ("--epochs", "1", "--width", "9", "--out", tmp_path / "run", f"{section}=5")
    check_refused(run("finetune", tmp_path / "a.csv", *words), tmp_path / "run", f"{section} is a section", "not 5")


def test_unknown_recipe_names_the_packaged_ones(run: Run, genome: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    check_refused(run("pretrain", "labtop", "--genome", genome, "--out", out), out, "labtop", "laptop")


def test_no_genome(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    check_refused(run("pretrain", "laptop", "--out", out), out, "--genome")


def test_window_too_long_for_the_teacher(run: Run, tmp_path: Path) -> None:
    genome = tmp_path / "long.fa"
    genome.write_text(f">chr1\n{'ACGTTGCA' * 4000}\n")
    out = tmp_path / "run"
    words = ("pretrain", "laptop", "--genome", genome, "--teacher", "random:16x1x1x16", "--out", out)
    check_refused(run(*words, "data.window=12288", "data.validation_windows=1"), out, "12288", "2047")


def test_teacher_folder_with_a_wrong_key(run: Run, genome: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from had.models.nucleotide_transformer import NucleotideTransformer, NucleotideTransformerConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    folder = tmp_path / "teacher"
    NucleotideTransformer(NucleotideTransformerConfig(**sizes)).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights["esm.encoder.surprise"] = weights.pop("lm_head.dense.bias")
    save_file(weights, folder / "model.safetensors")
    out = tmp_path / "run"
    check_refused(pretrain(run, genome, out, "--teacher", folder), out, "teacher", "surprise")


def test_run_folder_that_is_not_empty(run: Run, genome: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    code, text = pretrain(run, genome, out)
    assert code == 2
    assert "run" in text
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_unknown_option_and_device(run: Run, genome: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert pretrain(run, genome, out, "--genomes", "x")[0] == 2
    check_refused(pretrain(run, genome, out, "--device", "tpu"), out, "tpu", "cpu")
    assert not out.exists()


def test_batch_that_does_not_divide_is_refused_in_words() -> None:
    from had.errors import UserError
    from had.training.loop import split_batch

    with pytest.raises(UserError, match="multiple of 3"):
        split_batch(32, 8, 0, 3)


def test_dry_run_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], genome: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ["pretrain", "laptop", "--genome", str(genome), "--out", str(out), "--dry-run", "data.window=60"]
    monkeypatch.setattr("sys.argv", ["had", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert not out.exists()
    assert "steps" in capsys.readouterr().err


def test_loss_that_is_not_finite_ends_with_1_and_keeps_the_last_checkpoint(
    run: Run, genome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from had.training.checkpoints import latest_valid
    from had.training.distillation import DistillationModule

    calls = {"n": 0}
    whole = DistillationModule.forward

    def poisoned(self: DistillationModule, batch: dict) -> dict:
        calls["n"] += 1
        sums = whole(self, batch)
        return {k: v * float("nan") if calls["n"] > 6 else v for k, v in sums.items()}

    monkeypatch.setattr(DistillationModule, "forward", poisoned)
    out = tmp_path / "run"
    often = ("training.checkpoint_every=4", "training.log_every=1", "--steps", "10")
    code, text = pretrain(run, genome, out, *often)
    assert code == 1, text
    assert "not finite" in text
    assert "step-00000004" in text
    assert latest_valid(out / "checkpoints")[0] == out / "checkpoints" / "step-00000004"
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss"] is None
    assert last["step"] == 7


@pytest.mark.parametrize("ends", ["raise", "return 130"])
@pytest.mark.parametrize(("name", "expected"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_within_code_run_from_text_ends_with_its_exit_code(
    tmp_path: Path, ends: str, name: str, expected: int
) -> None:
    # A process of its own: what Python remembers of such an interrupt counts when `python -m` ends.
    (tmp_path / "interrupted.py").write_text(
        "import signal\n"
        "import had.console\n"
        "from had import cli\n"
        # A shell starts background jobs with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def app(**_):\n"
        "    try:\n"
        f"        exec('import signal; signal.raise_signal(signal.{name})')\n"
        "    except KeyboardInterrupt:\n"
        f"        {ends}\n"
        "cli.app = app\n"
        "cli.main()\n"
    )
    ended = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == expected, ended.stderr
    assert "had: interrupted" in ended.stderr


LONG = "long" * 100


@pytest.mark.parametrize(
    "words",
    [
        ("finetune", LONG),
        ("finetune", "a.csv", "--model", LONG),
        ("finetune", "a.csv", "--recipe", LONG),
        ("finetune", "a.csv", "--resume", LONG),
        ("finetune", "a.csv", f"peaks.test_contigs=[{LONG}]"),
        ("predict", LONG, "a.csv"),
        ("predict", "student", LONG),
        ("pretrain", LONG),
        ("benchmark", "gue", "--data", LONG),
        ("benchmark", "gue", "--data", ".", "--tasks", LONG),
        ("teacher", "verify", LONG),
    ],
    ids=" ".join,
)
def test_a_word_longer_than_a_file_name_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("sequence,label\nACGT,1\n")
    out = () if words[0] == "teacher" else ("--out", tmp_path / "out")
    check_refused(run(*words, *out), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_an_output_with_a_long_name_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sequence,label\nACGT,1\n")
    assert run("finetune", tmp_path / "a.csv", "--out", tmp_path / LONG)[0] == 2


@pytest.mark.parametrize(
    ("error", "expected", "sentence"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "locked/a.csv"), 2, "locked/a.csv cannot be read (Perm"),
        (OSError(errno.ENOSPC, "No space left on device", "a.csv"), 1, "a.csv: No space left"),
        (ValueError("of its own \x1b[31m\u202e"), 1, r"unexpected ValueError: of its own \x1b[31m\u202e"),
    ],
)
def test_what_nobody_foresaw_is_one_sentence_and_a_traceback_on_request(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: int, sentence: str
) -> None:
    def app(**_: object) -> None:
        raise error

    monkeypatch.setattr("had.cli.app", app)
    code, text = run("finetune")
    assert code == expected
    assert text.startswith(f"had: {sentence}")
    assert text.count("\n") == 1
    assert ("HAD_DEBUG=1" in text) == (expected == 1)
    monkeypatch.setenv("HAD_DEBUG", "1")
    code, text = run("finetune")
    assert code == expected
    assert text.startswith("Traceback")
    assert f"had: {sentence}" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("words", [("predict", "nowhere", "a.csv", "--out", "b.tsv"), ("--nonsense",)])
def test_wrong_input_has_its_exit_code_where_nobody_listens(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    for listener in (None, Full()):
        monkeypatch.setattr(sys, "stderr", listener)
        assert run(*words)[0] == 2


def test_help_has_letters_that_the_terminal_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "argv", ["had", "pretrain", "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    shown.flush()
    assert b"50m \\u2026 500m" in shown.buffer.getvalue()  # type: ignore[attr-defined]


def test_names_that_are_not_utf8_are_refused(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (tmp_path / "a.csv").write_text("sequence,label\nACGT,1\n")
    check_refused(run("finetune", tmp_path / "a\udce9.csv", "--out", out), out, r"a\udce9.csv", "UTF-8")
    check_refused(run("finetune", tmp_path / "a.csv", "--out", f"{out}\udce9"), out, "UTF-8")


def test_the_home_folder_is_known_behind_an_option(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for words in (("--out=~/x", "~/a.csv"), ("--out", "~/x", "--recipe=~/b.yaml", "a.csv")):
        code, text = run("finetune", *words)
        assert code == 2
        assert str(tmp_path) in text
    code, text = run("finetune", "a.csv", "--out=~nosuchuser/x")
    assert code == 2
    assert "~nosuchuser" in text
    # Not a path: YAML's null.
    assert "nothing (null)" in run("finetune", "a.csv", "labels=~")[1]


def test_a_size_that_no_memory_holds(run: Run, tmp_path: Path) -> None:
    rows = "".join(f"{'ACGTTGCA' * 3}{'ACGT'[i % 4] * (i // 4 + 1)},{i % 2}\n" for i in range(40))
    (tmp_path / "a.csv").write_text(f"sequence,label\n{rows}")
    words = ("finetune", tmp_path / "a.csv", "--model", "scratch", "--split", "random", "--dry-run")
    out = tmp_path / "run"
    for size in ("1e12", "1e17"):
        check_refused(run(*words, "--out", out, f"student.hidden_size={size}"), out, "student.hidden_size")
    check_refused(run(*words, "--out", out, f"student.hidden_size={'9' * 400}"), out, "18 digits")
    check_refused(run(*words, "--out", out, "--threads", "9" * 30), out, "--threads")


def test_one_of_several_processes_without_a_launcher(
    run: Run, genome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_refused(pretrain(run, genome, tmp_path / "run", "--dry-run"), tmp_path / "run", "MASTER_ADDR", "torchrun")
