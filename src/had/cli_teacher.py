"""Command line of teachers: train, cache, verify. Heavy imports wait until a command runs."""

from pathlib import Path
from typing import Annotated

import typer

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
    files_and_overrides,
    resolve_recipe,
)

teacher_app = typer.Typer(no_args_is_help=True, help="Train, cache and verify teachers.")


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
    files, changes = files_and_overrides(genome, overrides)
    values = resolve_recipe(recipe, changes, {"genome": files, "bed": bed and str(bed)}, {"seed": seed}, steps)
    config = build(TeacherTrainingConfig, values, recipe)
    train_teacher(config, out, RunOptions(resume, stop_after, device, threads, dry_run, quiet))


@teacher_app.command("cache")
def teacher_cache(
    recipe: Recipe,
    overrides: Overrides = None,
    genome: Genome = None,
    bed: Bed = None,
    teacher: Annotated[
        str | None, typer.Option(help="bundled, 50m … 500m, random:50m, a folder, a Hub id or module:Class.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the cache; one that is not finished is gone on with.")] = Path(
        "runs/teacher-cache"
    ),
    dtype: Annotated[str, typer.Option(help="float32 (exact), float16 or int8.")] = "float16",
    slots: Annotated[int | None, typer.Option(help="Cache only so many slots (windows), evenly spread.")] = None,
    share: Annotated[float | None, typer.Option(help="Cache only this part of the slots: 0.1.")] = None,
    shard_mb: Annotated[float, typer.Option(help="Largest size of a file, about, in units of 2^20 bytes.")] = 256,
    yes: Annotated[bool, typer.Option("--yes", help="Write it even if it is large.")] = False,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Ask a teacher about every window once and keep its answers on disk, for had pretrain --teacher-cache.

    Example: had teacher cache laptop --genome hg38.fa.gz --bed part.bed --out runs/cache --dtype float16 --dry-run
    """
    from had.config import build
    from had.console import setup_logging
    from had.training.cache_building import CacheOptions, cache_teacher
    from had.training.pretraining import PretrainConfig

    setup_logging(quiet)
    files, changes = files_and_overrides(genome, overrides)
    values = resolve_recipe(recipe, changes, {"genome": files, "bed": bed and str(bed)}, {"seed": seed}, None)
    if teacher is not None:
        values["teacher"] = {**(values.get("teacher") or {}), "name": teacher}
    shard_bytes = int(shard_mb * (1 << 20))
    options = CacheOptions(dtype, slots, share, yes, device, threads, dry_run, quiet, shard_bytes)  # type: ignore[arg-type]
    cache_teacher(build(PretrainConfig, values, recipe), out, options)


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
