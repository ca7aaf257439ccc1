"""``had benchmark``: models on the tasks of a published suite."""

from pathlib import Path
from typing import Annotated

import typer

from had.cli_options import Device, DryRun, Quiet, Threads

SUITE_HELP = "gue, genomic-benchmarks or nucleotide-transformer."
DATA_HELP = "Folder of the suite; or hub (its repository on the Hugging Face Hub), or hub:owner/name."
MODELS_HELP = (
    "Rows, comma-separated: had, scratch, probe, teacher, teacher-probe, kmer, places, places-boosted, cnn; also "
    "NAME=KIND or NAME=KIND:FOLDER, such as other=had:runs/b/model or untrained=probe:untrained."
)


def benchmark(
    suite: Annotated[str, typer.Argument(help=SUITE_HELP)],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Changes to the recipes: training.epochs=5 (had, scratch), teacher.lr=1e-4, cnn.epochs=5."),
    ] = None,
    data: Annotated[str, typer.Option(help=DATA_HELP)] = "hub",
    tasks: Annotated[
        str | None, typer.Option(help="Tasks, comma-separated; default: all that are in the folder, smallest first.")
    ] = None,
    models: Annotated[str, typer.Option(help=MODELS_HELP)] = "had,scratch,probe,kmer,places,places-boosted,cnn",
    seeds: Annotated[
        int | None, typer.Option(help="How many seeds; default: the suite's (gue 3, genomic-benchmarks 5, NT 10).")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the results; what is there is kept and never computed again.")
    ] = Path("runs/benchmark"),
    model: Annotated[str, typer.Option(help="The student of had and probe, whose sizes scratch has, too.")] = "student",
    teacher: Annotated[str, typer.Option(help="The teacher of teacher and teacher-probe.")] = "bundled",
    revision: Annotated[
        str, typer.Option(help="Branch, tag or commit on the Hub; the commit of a branch is kept from first use on.")
    ] = "main",
    recipe: Annotated[
        str, typer.Option(help="protocol: epochs, batch and rates of the suite; finetune: had finetune's own recipe.")
    ] = "protocol",
    split: Annotated[
        str, typer.Option(help="Validation rows where the suite has none: protocol (row by row), or locus.")
    ] = "protocol",
    max_train_rows: Annotated[int | None, typer.Option(help="Training rows at most, for a quick look.")] = None,
    jobs: Annotated[int, typer.Option(help="Units computed at the same time, each in its own process.")] = 1,
    seed: Annotated[int, typer.Option(help="The first seed; the others follow it.")] = 0,
    device: Device = "auto",
    threads: Threads = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Compare models on a published benchmark, with controls, seeds and a report.

    Example: had benchmark gue --data GUE --tasks mouse/3,prom/prom_300_tata --models had,scratch,kmer,cnn --seeds 3
    """
    from had.config import apply_overrides
    from had.console import setup_logging
    from had.evaluation.benchmarks import BenchmarkOptions
    from had.evaluation.benchmarks import benchmark as run

    setup_logging(quiet)
    options = BenchmarkOptions(
        data,
        tasks=_words(tasks),
        models=_words(models),
        seeds=seeds,
        first_seed=seed,
        model=model,
        teacher=teacher,
        revision=revision,
        recipe=recipe,
        split=split,
        max_train_rows=max_train_rows,
        changes=apply_overrides({}, settings or []),
        device=device,
        threads=threads,
        jobs=jobs,
        dry_run=dry_run,
        quiet=quiet,
    )
    run(suite, out, options)


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]
