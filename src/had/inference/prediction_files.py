"""Tables of predictions, written a piece at a time: TSV, CSV, Parquet, bedGraph and BED."""

import csv
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from gzip import GzipFile
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from had.console import some_of
from had.dna.labelled_records import Locus
from had.errors import RunFault, UserError
from had.files import fsync_file, is_no_plain_file, temporary_name


class Row(NamedTuple):
    """Prediction for one record."""

    id: str
    prediction: str
    """Class, labels joined by ``;``, or value; ``NaN`` where nothing can be said."""
    outputs: list[float]
    """Probability of each class, or the value; NaN where nothing can be said."""
    reason: str
    """Why nothing can be said; empty otherwise."""
    kind: str
    """The reason without what is particular to the record."""
    locus: Locus | None
    strand: str = "."
    """Strand that the letters of an interval were read on: ``+``, ``-`` or ``.``."""


Write = Callable[[Sequence[Row]], None]
_NOT_WRITTEN = (
    *(".xlsx", ".xls", ".ods", ".json", ".jsonl", ".feather", ".h5", ".bw", ".bigwig", ".bb", ".zip"),
    *(".fa", ".fasta", ".fna", ".fai", ".2bit"),
)
_ROWS_PER_GROUP = 16_384
"""Rows in one row group of a Parquet file; so many are kept in memory."""


@contextmanager
def open_writer(path: Path, task: str, classes: Sequence[str], shown: int | None = None) -> Iterator[Write]:
    """Open a table for writing; it gets its name only when it is complete.

    Parameters
    ----------
    path
        ``.parquet``, ``.csv``, ``.bedgraph``, ``.bed``, anything else tab-separated; with ``.gz`` compressed. A
        symbolic link is written through, a pipe or device written into.
    task, classes
        As the model's.
    shown
        Output that a ``.bedgraph`` or ``.bed`` shows, as `track_shown` gives it.

    Raises
    ------
    RunFault
        If the system refused to write; nothing is left then.
    """
    try:
        if is_no_plain_file(path):
            with _open_table(path, path, task, classes, shown) as write:
                yield write
            return
        target = Path(os.path.realpath(path))
        aside = temporary_name(target)
        try:
            with _open_table(aside, path, task, classes, shown) as write:
                yield write
            fsync_file(aside)
            os.replace(aside, target)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RunFault(f"{path}: could not be written ({error.strerror or error}); nothing was left there.") from error


@contextmanager
def _open_table(place: Path, named: Path, task: str, classes: Sequence[str], shown: int | None) -> Iterator[Write]:
    """Write at a place in the format that another name asks for."""
    name = named.name.lower().removesuffix(".gz")
    columns = ["value"] if task == "regression" else [f"p_{c}" for c in classes]
    if name.endswith(".parquet"):
        with open(place, "wb") as raw, _parquet(raw, task, columns) as write:
            yield write
        return
    with open(place, "wb") as raw, _packed(raw, named) as file, TextIOWrapper(file, "utf-8", newline="") as text:
        if shown is not None:
            yield _intervals(text, shown, task, name.endswith(".bed"))
        else:
            yield _table(text, "," if name.endswith(".csv") else "\t", task, columns)


def _packed(raw: BinaryIO, named: Path) -> AbstractContextManager[Any]:
    """The file to write into: with gzip where the name ends in .gz, its header without name and time."""
    return GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) if named.name.lower().endswith(".gz") else raw


def check_format(path: Path) -> None:
    """Refuse a file whose name promises a format that is not written.

    Raises
    ------
    UserError
        For names such as ``x.xlsx``, which would hold text that no program expects there.
    """
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix in _NOT_WRITTEN:
        raise UserError(
            f"{path}: {suffix} cannot be written; name a .tsv, .csv, .parquet, .bed or .bedgraph file by --out"
        )


def track_shown(path: Path, task: str, classes: Sequence[str], track: str | None) -> int | None:
    """Index of the output that a ``.bedgraph`` or ``.bed`` shows; None for a table.

    Raises
    ------
    UserError
        If ``track`` is no class, or is needed.
    """
    if not path.name.lower().removesuffix(".gz").endswith((".bedgraph", ".bg", ".bed")):
        if track is not None:
            raise UserError(f"--track goes with a .bedgraph or .bed file; {path} holds all classes")
        return None
    if track is not None:
        if track not in classes:
            raise UserError(f"--track {track!r} is none of the classes {some_of(classes)}")
        return list(classes).index(track)
    if task == "regression":
        return 0
    if task == "binary":
        return 1
    raise UserError(f"{path}: name the class to show by --track ({some_of(classes)})")


def _table(text: Any, delimiter: str, task: str, columns: Sequence[str]) -> Write:
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(["id", "prediction", *columns, "reason"])
    as_text = value_text if task == "regression" else probability_text

    def write(rows: Sequence[Row]) -> None:
        for row in rows:
            writer.writerow([row.id, row.prediction, *map(as_text, row.outputs), row.reason])

    return write


def probability_text(value: float) -> str:
    """Write a probability; float32 has hardly more digits."""
    return "NaN" if math.isnan(value) else f"{value:.6g}"


def value_text(value: float) -> str:
    """Write a value with digits enough for values that lie close together but far from 0."""
    return "NaN" if math.isnan(value) else f"{value:.12g}"


def _intervals(text: Any, shown: int, task: str, is_bed: bool) -> Write:
    """Lines for records that have coordinates and a prediction."""
    as_text = value_text if task == "regression" else probability_text

    def write(rows: Sequence[Row]) -> None:
        for row in rows:
            if row.locus is None or row.reason:
                continue
            contig, start, end = row.locus
            value = row.outputs[shown]
            if is_bed:
                score = min(1000, max(0, round(1000 * value)))
                name = "_".join(row.id.split())
                text.write(f"{contig}\t{start}\t{end}\t{name}\t{score}\t{row.strand}\t{as_text(value)}\n")
            else:
                text.write(f"{contig}\t{start}\t{end}\t{as_text(value)}\n")

    return write


@contextmanager
def _parquet(raw: BinaryIO, task: str, columns: Sequence[str]) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow import parquet

    prediction = pa.float64() if task == "regression" else pa.string()
    schema = pa.schema(
        [("id", pa.string()), ("prediction", prediction)]
        + [(column, pa.float64()) for column in columns]
        + [("reason", pa.string())]
    )
    with parquet.ParquetWriter(raw, schema) as writer:
        kept: list[Row] = []

        def write(rows: Sequence[Row]) -> None:
            kept.extend(rows)
            if len(kept) >= _ROWS_PER_GROUP:
                write_group()

        def write_group() -> None:
            rows = kept
            predicted: list[Any] = [row.outputs[0] if task == "regression" else row.prediction for row in rows]
            values = [[row.outputs[k] for row in rows] for k in range(len(columns))]
            arrays = [[row.id for row in rows], predicted, *values, [row.reason for row in rows]]
            batch = [pa.array(array, type=field.type) for array, field in zip(arrays, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(batch, schema=schema))
            kept.clear()

        yield write
        if kept:
            write_group()
