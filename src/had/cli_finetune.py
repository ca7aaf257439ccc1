"""``had finetune`` and ``had predict``: a student on labelled sequences, and what it says of others."""

from pathlib import Path
from typing import Annotated

import typer

from had.cli_options import Device, DryRun, Genome, Out, Quiet, Resume, Threads, files_and_overrides, lay_over
from had.errors import UserError


def finetune(
    data: Annotated[
        str,
        typer.Argument(
            help="CSV, TSV or Parquet with columns sequence and label, FASTA (>name|label or label=…), or a folder "
            "with train, dev and test files; or a BED or narrowPeak file of peaks, with --genome."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings by name: test_fraction=0.2, training.class_weights=balanced, …"),
    ] = None,
    genome: Genome = None,
    width: Annotated[int | None, typer.Option(help="Peaks: bp of each window, around the summit or middle.")] = None,
    negatives: Annotated[
        int | None, typer.Option(help="Peaks: background regions for each, of its length and GC content (default 1).")
    ] = None,
    blacklist: Annotated[Path | None, typer.Option(help="Peaks: BED that background must not touch.")] = None,
    valid_contig: Annotated[list[str] | None, typer.Option(help="Peaks: contig that validates.")] = None,
    test_contig: Annotated[list[str] | None, typer.Option(help="Peaks: contig that tests.")] = None,
    out: Out = Path("runs/finetune"),
    model: Annotated[
        str | None, typer.Option(help="A pre-trained student: bundled name (default student), folder, Hub; or scratch.")
    ] = None,
    freeze: Annotated[
        bool, typer.Option("--freeze", help="Train the last layer alone, quickly; the student stays as it is.")
    ] = False,
    task: Annotated[
        str | None, typer.Option(help="auto (default), binary, multiclass, multilabel or regression.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Columns of 0 and 1, comma-separated, one a label.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Where you gave no validation rows: auto (by locus, else random), locus, random.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="YAML of settings, such as config.yaml of an earlier run; the options here win.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows.")] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="muon for the weight matrices of the layers (default, auto), or adamw.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    stop_after: Annotated[int | None, typer.Option(help="Stop once this epoch is done; the schedule stays.")] = None,
    resume: Resume = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the split, fresh weights, order and small changes of the rows.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a student on your labelled sequences, or on peaks against background of like length and GC content.

    Example: had finetune promoters.csv --out runs/promoters

    Example: had finetune peaks.narrowPeak --genome hg38.fa --width 200 --out runs/peaks
    """
    from had.config import apply_overrides, build, load_recipe
    from had.console import setup_logging
    from had.training.finetuning import finetune as run
    from had.training.finetuning_config import SCRATCH, FinetuneConfig
    from had.training.runs import RunOptions

    setup_logging(quiet)
    names = [name.strip() for name in (labels or "").split(",") if name.strip()] or None
    files, changes = files_and_overrides(genome, overrides)
    values = apply_overrides(load_recipe(recipe) if recipe else {}, changes)
    peaks = {
        "width": width,
        "ratio": negatives,
        "blacklist": blacklist and str(blacklist),
        "valid_contigs": valid_contig,
        "test_contigs": test_contig,
    }
    if peaks := {k: v for k, v in peaks.items() if v is not None}:
        lay_over(values, "peaks", peaks)
    given = {
        "genome": files or None,
        "model": model,
        "task": task,
        "labels": names,
        "split": split,
        "seed": seed,
        "freeze": freeze or None,
    }
    values |= {"data": data, **{k: v for k, v in given.items() if v is not None}}
    training = {k: v for k, v in {"epochs": epochs, "lr": lr, "optimizer": optimizer}.items() if v is not None}
    lay_over(values, "training", training)
    config = build(FinetuneConfig, values, "options")
    sizes = next((change for change in changes if change.startswith("student.")), None)
    if sizes and config.model != SCRATCH:
        raise UserError(f"{sizes} is of fresh weights: {config.model} has its own sizes; name --model {SCRATCH}")
    run(config, out, RunOptions(resume, stop_after, device, threads, dry_run, quiet))


def predict(
    model: Annotated[str, typer.Argument(help="A fine-tuned model: the run folder of had finetune, or RUN/model.")],
    input_file: Annotated[
        Path, typer.Argument(metavar="INPUT", help="FASTA, CSV, TSV, Parquet; or BED with --genome.")
    ],
    out: Annotated[Path, typer.Option(help="Table: .tsv, .csv (.gz), .parquet; .bedgraph or .bed for intervals.")],
    genome: Annotated[list[Path] | None, typer.Option(help="FASTA file(s) that the intervals of a BED are of.")] = None,
    conjoin: Annotated[
        bool | None, typer.Option("--both-strands/--one-strand", help="Default: as fine-tuning chose.")
    ] = None,
    as_written: Annotated[
        bool,
        typer.Option(
            "--as-written",
            help="Intervals as in the file, not cut as peaks were in training; sequences of any length, also where the "
            "model knows positions.",
        ),
    ] = False,
    track: Annotated[
        str | None, typer.Option(help="Class shown in .bedgraph and .bed; default: the second of two.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Prediction draws nothing at random.", hidden=True)] = 0,
    device: Device = "auto",
    threads: Threads = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Predict for every sequence of a file with a fine-tuned model.

    Example: had predict runs/promoters new.fa.gz --out predictions.tsv

    Example: had predict runs/peaks regions.bed --genome hg38.fa --out regions.bedgraph
    """
    from had.console import setup_logging
    from had.inference.predict import predict as run

    setup_logging(quiet)
    run(
        model,
        input_file,
        out,
        genome=genome,
        conjoin=conjoin,
        as_written=as_written,
        track=track,
        device=device,
        threads=threads,
        dry_run=dry_run,
        quiet=quiet,
    )
