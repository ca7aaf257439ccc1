"""Command line: one thin function per command. Heavy imports wait until a command runs."""

import errno
import io
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from had import __version__
from had.cli_benchmark import benchmark
from had.cli_finetune import finetune, predict
from had.cli_options import (
    Bed,
    Device,
    DryRun,
    Genome,
    Out,
    Overrides,
    Quiet,
    Recipe,
    Resume,
    Seed,
    Steps,
    StopAfter,
    Threads,
    checked_word,
    files_and_overrides,
    lay_over,
    resolve_recipe,
)
from had.cli_teacher import teacher_app
from had.errors import Interrupted, RunFault, UserError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Distil a large DNA model into a 1.1 M-parameter one on any genome, and use it.",
)
app.add_typer(teacher_app, name="teacher")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"had {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


@app.command()
def pretrain(
    recipe: Recipe,
    overrides: Overrides = None,
    genome: Genome = None,
    bed: Bed = None,
    teacher: Annotated[
        str | None, typer.Option(help="bundled, 50m … 500m, random:50m, a folder, a Hub id or module:Class.")
    ] = None,
    teacher_cache: Annotated[
        Path | None, typer.Option(help="Read its features from this folder of had teacher cache.")
    ] = None,
    out: Out = Path("runs/pretrain"),
    steps: Steps = None,
    stop_after: StopAfter = None,
    resume: Resume = None,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Distil a teacher into a student on your genome.

    Example: had pretrain laptop --genome hg38.fa.gz --out runs/mine training.steps=2000
    """
    from had.config import build
    from had.console import setup_logging
    from had.training.pretraining import PretrainConfig
    from had.training.pretraining import pretrain as run
    from had.training.runs import RunOptions

    setup_logging(quiet)
    files, changes = files_and_overrides(genome, overrides)
    values = resolve_recipe(recipe, changes, {"genome": files, "bed": bed and str(bed)}, {"seed": seed}, steps)
    named = {"name": teacher, "cache": teacher_cache and str(teacher_cache)}
    lay_over(values, "teacher", {k: v for k, v in named.items() if v is not None})
    config = build(PretrainConfig, values, recipe)
    run(config, out, RunOptions(resume, stop_after, device, threads, dry_run, quiet))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A student or a teacher: a folder (RUN/model) or a bundled name.")],
    genome: Genome = None,
    more: Annotated[list[str] | None, typer.Argument(help="Further FASTA files.")] = None,
    bed: Bed = None,
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    teacher: Annotated[str | None, typer.Option(help="Teacher of a student; default: its own.")] = None,
    window: Annotated[int, typer.Option(help="Letters per window, a multiple of 6.")] = 1020,
    valid_contig: Annotated[list[str] | None, typer.Option(help="Contig held out for validation.")] = None,
    test_contig: Annotated[list[str] | None, typer.Option(help="Contig held out as test split.")] = None,
    tiles: Annotated[
        int | None, typer.Option(min=1, help="Windows used at most, evenly spaced; default: all of the split.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the report here, as JSON.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of masks and resampling.")] = 0,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Held-out losses of a student or a teacher beside predictors that need no network, with intervals.

    Example: had evaluate runs/mine/model --genome hg38.fa.gz --bed splits.bed --split test
    """
    import json

    from had.config import build, check_seed
    from had.console import say, setup_logging
    from had.evaluation.held_out import evaluate_held_out
    from had.files import atomic_write_text
    from had.training.data import DataConfig
    from had.training.devices import choose_device, set_threads
    from had.training.held_out import as_lines

    setup_logging(quiet)
    set_threads(threads)
    check_seed(seed)
    if split not in ("test", "validation"):
        raise UserError(f"--split is test or validation; got {split!r}")
    files, wrong = files_and_overrides(genome, more)
    if wrong:
        raise UserError(f"{wrong[0]!r} is no file")
    values = {
        "genome": files,
        "bed": bed and str(bed),
        "window": window,
        "valid_contigs": valid_contig or [],
        "test_contigs": test_contig or [],
    }
    data = build(DataConfig, values, "options")
    result = evaluate_held_out(
        model,
        data,
        split=split,
        teacher=teacher,
        device=choose_device(device),
        seed=seed,
        max_tiles=tiles,
        progress=not quiet,
    )
    for line in as_lines(result):
        say(line)
    if out is not None:
        atomic_write_text(out, json.dumps(result, indent=1) + "\n")


@app.command()
def demo(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder of the results; an earlier demo in it is replaced.")] = Path(
        "runs/demo"
    ),
    steps: Annotated[int | None, typer.Option(help="Optimizer steps; default: enough to show learning.")] = None,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Show on bundled human DNA that distillation learns: minutes on two CPU cores; exit 1 if it does not.

    Example: had demo --out runs/demo
    """
    from had.console import setup_logging
    from had.demo import DemoOptions
    from had.demo import demo as run

    setup_logging(quiet)
    run(out, DemoOptions(steps, seed, device, threads, dry_run, quiet, overrides or []))


@app.command()
def probe(
    models: Annotated[
        list[str],
        typer.Argument(
            help="NAME=SPEC: a student's folder, untrained:SEED, teacher:NAME or kmers. The first is the reference."
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder with a folder per task: {train,dev,test}.csv(.gz).")],
    tasks: Annotated[str, typer.Option(help="Tasks, comma-separated folders below --data.")],
    out: Annotated[Path, typer.Option(help="CSV of every layer's scores; a table that is there is completed.")],
    max_rows: Annotated[
        int | None, typer.Option(help="Training rows used per task at most (a fixed subset); test rows: all.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Linear probes of every layer of frozen models on labelled tasks.

    Example: had probe untrained=untrained:0 mine=runs/mine/model --data GUE --tasks mouse/2,mouse/3 --out probes.csv
    """
    from had.console import say, setup_logging
    from had.evaluation.frozen import compare, probe_tasks
    from had.training.devices import choose_device, set_threads

    setup_logging(quiet)
    set_threads(threads)
    named = {model.partition("=")[0]: model.partition("=")[2] or model for model in models}
    rows = probe_tasks(data, tasks.split(","), named, out, choose_device(device), max_rows)
    for line in compare(rows, next(iter(named))):
        say(line.sentence())


for command in (finetune, predict, benchmark):
    app.command()(command)


def main() -> None:
    """Run a command; exit 2 where the input is wrong, 1 on a fault, 128 + its number after a signal; no traceback."""
    _stopped_by.update(number=signal.SIGINT)
    # What schedulers send: files that are not complete are removed, as after Ctrl-C. One of several processes must end
    # at once: it may be waiting for another that is gone.
    if os.environ.get("WORLD_SIZE", "1") == "1":
        signal.signal(signal.SIGTERM, _interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.argv[1:] = [checked_word(word) for word in sys.argv[1:]]
        code = app(standalone_mode=False)
    except UserError as error:
        _end(str(error), 2)
    except Interrupted as error:
        _end(str(error), _after_signal())
    except RunFault as error:
        _end(str(error), 1)
    except _UsageError as error:
        text = io.StringIO()
        error.show(text)  # type: ignore[attr-defined]
        _end("", 2, text.getvalue())
    except KeyboardInterrupt:
        code = _OF_TYPER
    except OSError as error:
        reason, place = error.strerror or error, error.filename
        if isinstance(place, str) and error.errno in _WRONG_PATH:
            _end(f"{place} cannot be read ({reason}); check the path and its permissions", 2)
        _end(f"{f'{place}: ' if place else ''}{reason}; {_DEBUG_HINT}", 1)
    except Exception as error:
        _end(f"unexpected {type(error).__name__}: {error}; {_DEBUG_HINT}, please report it", 1)
    if code == _OF_TYPER:
        _end(
            "interrupted; finished files stay, and --resume auto continues a training run from its last checkpoint",
            _after_signal(),
        )
    sys.exit(code)


_UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""Of click, which some versions of Typer contain under another name."""

_OF_TYPER = 130
"""What Typer makes of a KeyboardInterrupt."""

_WRONG_PATH = {
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
"""Errors of a path that the user named, not of the machine."""

_DEBUG_HINT = "HAD_DEBUG=1 shows the traceback"

_stopped_by = {"number": signal.SIGINT}


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    _stopped_by.update(number=signal.Signals(number))
    raise KeyboardInterrupt


def _after_signal() -> int:
    return 128 + _stopped_by["number"]


def _end(message: str, code: int, lines: str = "") -> NoReturn:
    from had.console import write_error

    if os.environ.get("HAD_DEBUG") == "1":
        lines = traceback.format_exc() + lines
    write_error(*lines.splitlines(), *([f"had: {message}"] if message else []))
    # A signal that met code which Python runs from text (numba and named tuples have it) leaves a mark by which
    # `python -m had` ends by SIGINT, whatever its exit code. Running any text takes the mark back.
    exec("")
    sys.exit(code)
