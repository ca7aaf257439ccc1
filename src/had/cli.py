"""Command line: one thin function per command. Heavy imports wait until a command runs."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from had import __version__
from had.errors import RunFault, UserError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Distil a large DNA model into a 1.1 M-parameter one on any genome, and use it.",
)
teacher_app = typer.Typer(no_args_is_help=True, help="Train, verify and evaluate teachers.")
app.add_typer(teacher_app, name="teacher")

Recipe = Annotated[str, typer.Argument(help="A packaged recipe's name, or the path of a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes to the recipe: key=value, dotted.")]
Genome = Annotated[list[Path] | None, typer.Option("--genome", help="FASTA file(s), plain, gzip or bgzip.")]
Bed = Annotated[Path | None, typer.Option(help="BED of the intervals to use; column 4 may name the split.")]
Out = Annotated[Path, typer.Option(help="Run folder; new or empty, unless a run is resumed.")]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps of the whole schedule.")]
StopAfter = Annotated[int | None, typer.Option(help="Stop once this step is done; the schedule stays the recipe's.")]
Resume = Annotated[str | None, typer.Option(help="auto: the newest valid checkpoint of --out; or a checkpoint.")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, windows, strands and masks.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: the machine's.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be read, written and computed; do nothing.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar, no remarks.")]


def _version(show: bool) -> None:
    if show:
        typer.echo(f"had {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


def _options_and_overrides(genome: list[Path] | None, words: list[str] | None) -> tuple[list[str], list[str]]:
    """Sort words after --genome FASTA into further FASTA files and key=value overrides."""
    files, overrides = [str(path) for path in genome or []], []
    for word in words or []:
        if "=" in word and not Path(word).exists():
            overrides.append(word)
        elif files:
            files.append(word)
        else:
            raise UserError(f"{word!r} is neither key=value nor a file after --genome")
    return files, overrides


def _recipe(
    recipe: str, overrides: list[str], data: dict[str, Any], top: dict[str, Any], steps: int | None
) -> dict[str, Any]:
    """The recipe with the command line's options and overrides laid over it; options win over the file."""
    from had.config import apply_overrides, load_recipe

    values = apply_overrides(load_recipe(recipe), overrides)
    for section, changes in (("data", data), ("training", {"steps": steps})):
        changes = {k: v for k, v in changes.items() if v not in (None, [])}
        if changes:
            values[section] = {**(values.get(section) or {}), **changes}
    return {**values, **{k: v for k, v in top.items() if v is not None}}


@app.command()
def pretrain(
    recipe: Recipe,
    overrides: Overrides = None,
    genome: Genome = None,
    bed: Bed = None,
    teacher: Annotated[
        str | None, typer.Option(help="bundled, 50m … 500m, random:50m, a folder, a Hub id or module:Class.")
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
    files, changes = _options_and_overrides(genome, overrides)
    values = _recipe(recipe, changes, {"genome": files, "bed": bed and str(bed)}, {"seed": seed}, steps)
    if teacher is not None:
        values["teacher"] = {**(values.get("teacher") or {}), "name": teacher}
    config = build(PretrainConfig, values, recipe)
    run(config, out, RunOptions(resume, stop_after, device, threads, dry_run, quiet))


@teacher_app.command("train")
def teacher_train(
    recipe: Recipe,
    overrides: Overrides = None,
    genome: Genome = None,
    bed: Bed = None,
    out: Out = Path("runs/teacher"),
    steps: Steps = None,
    stop_after: StopAfter = None,
    resume: Resume = None,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Train a teacher of your own by masked-LM on your genome.

    Example: had teacher train teacher --genome hg38.fa.gz --out runs/teacher model.hidden_size=512
    """
    from had.config import build
    from had.console import setup_logging
    from had.training.runs import RunOptions
    from had.training.teacher_training import TeacherTrainingConfig, train_teacher

    setup_logging(quiet)
    files, changes = _options_and_overrides(genome, overrides)
    values = _recipe(recipe, changes, {"genome": files, "bed": bed and str(bed)}, {"seed": seed}, steps)
    config = build(TeacherTrainingConfig, values, recipe)
    train_teacher(config, out, RunOptions(resume, stop_after, device, threads, dry_run, quiet))


@teacher_app.command("verify")
def teacher_verify(
    name: Annotated[str, typer.Argument(help="50m, 100m, 250m, 500m, a Hub id, or a folder with such a checkpoint.")],
    quiet: Quiet = False,
) -> None:
    """Check a published checkpoint: its sha256 and its numbers against recorded ones.

    Example: had teacher verify 50m
    """
    from had.console import setup_logging
    from had.models.ntv2_verification import verify_teacher

    setup_logging(quiet)
    result = verify_teacher(name)
    typer.echo(str(result))
    if result.passed is False:
        raise typer.Exit(1)


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

    from had.config import build
    from had.console import say, setup_logging
    from had.evaluation.held_out import evaluate_held_out
    from had.files import atomic_write_text
    from had.training.data import DataConfig
    from had.training.devices import choose_device, set_threads
    from had.training.held_out import as_lines

    setup_logging(quiet)
    set_threads(threads)
    if split not in ("test", "validation"):
        raise UserError(f"--split is test or validation; got {split!r}")
    files, wrong = _options_and_overrides(genome, more)
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
        model, data, split=split, teacher=teacher, device=choose_device(device), seed=seed, progress=not quiet
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
    max_rows: Annotated[int | None, typer.Option(help="Training rows per probe at most.")] = None,
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
        say(
            f"{line.model}: mean test MCC {line.mean:.3f} over {line.n_tasks} tasks; against {line.reference} "
            f"{line.difference:+.3f} [{line.low:+.3f}, {line.high:+.3f}], better on {line.wins}"
        )


def main() -> None:
    """Run a command; exit 2 where the input is wrong, 1 on a fault, without a traceback."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        sys.stderr.write(f"had: {error}\n")
        sys.exit(2)
    except RunFault as error:
        sys.stderr.write(f"had: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("had: interrupted; a run goes on from its last checkpoint with --resume auto\n")
        sys.exit(1)
