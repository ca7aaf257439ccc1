"""Where the rows of a benchmark's task are, in the layouts that the official files and their copies have.

- a folder per task with ``{train,dev,test}.csv`` (``.tsv``, ``.fna``, ``.parquet``; plain or gzip), as GUE and the
  Nucleotide Transformer tasks;
- ``{train,test}/<class>/<id>.txt``, as Genomic Benchmarks' own package writes them;
- Parquet in pieces, ``data/train-00000-of-00002.parquet`` or ``train/0000.parquet``, as the Hub stores them;
- Parquet with the rows of all tasks and a column ``task``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from had.dna.labelled import SPLIT_NAMES, DroppedRow, find_splits, no_usable_row, sort_out
from had.dna.labelled_rows import is_hidden, iterate_records
from had.dna.labelled_tasks import LabelledRow
from had.errors import UserError
from had.evaluation.protocols import BenchmarkTask, Suite, smallest_first
from had.training.finetuning_data import digest_of

HUB_PATTERNS = ("{place}/*", "*/{place}/*")
"""What of a Hub repository belongs to a task in a folder of its own."""
SHARED_PATTERNS = ("data/*.parquet", "*.parquet")
"""What may hold the rows of many tasks."""


@dataclass(frozen=True)
class TaskFiles:
    """The files of one task, by split."""

    splits: dict[str, tuple[Path, ...]]
    """train, dev, test; those that are there."""
    task_column: str | None = None
    """Only rows with this content of the column ``task`` are the task's."""

    def read(self, split: str) -> tuple[list[LabelledRow], list[DroppedRow]]:
        """Rows of a split that have a sequence and a label, and those left out.

        Raises
        ------
        UserError
            If a file cannot be read, or no row can be used.
        """
        return self._rows(split)

    def check(self, split: str) -> None:
        """Look whether the rows of a split can be read, before hours are spent; nothing of them is kept or told.

        Raises
        ------
        UserError
            As `read`.
        """
        self._rows(split)

    def _rows(self, split: str) -> tuple[list[LabelledRow], list[DroppedRow]]:
        rows: list[LabelledRow] = []
        dropped: list[DroppedRow] = []
        for path in self.splits[split]:
            records = iterate_records(path)
            if self.task_column is not None:
                records = (record for record in records if record.task == self.task_column)
            found, left_out = sort_out(records, path)
            rows += found
            dropped += left_out
        if not rows:
            raise no_usable_row(self.splits[split][0], "of this task ", dropped)
        return rows, dropped

    def digest(self, split: str) -> str:
        """sha256 of each file of a split, joined."""
        return " ".join(digest_of(path) for path in self.splits[split])


def find_task(folder: Path, suite: Suite, task: BenchmarkTask, *, is_its_own: bool = False) -> TaskFiles | None:
    """Find the files of a task; None where there are none.

    Parameters
    ----------
    folder
        The suite's folder, or one around it.
    suite, task
        What is looked for.
    is_its_own
        The folder itself is the task's.

    Raises
    ------
    UserError
        If a split has two files.
    """
    if is_its_own:
        splits = _splits(folder)
        return TaskFiles(splits) if splits else None
    for inner in suite.inner:
        for place in task.places:
            if (folder / inner / place).is_dir() and (splits := _splits(folder / inner / place)):
                return TaskFiles(splits)
    for inner in suite.inner:
        splits = _splits(folder / inner) if (folder / inner).is_dir() else {}
        if splits and all(_has_task_column(path) for paths in splits.values() for path in paths):
            return TaskFiles(splits, task.name) if _holds(splits, task.name) else None
    return None


def need_task(folder: Path, suite: Suite, task: BenchmarkTask, *, is_its_own: bool = False) -> TaskFiles:
    """The files of a task that was asked for.

    Raises
    ------
    UserError
        If the task is not there, or lacks rows to train on or a test file.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name the folder of {suite.title} by --data, or hub")
    files = find_task(folder, suite, task, is_its_own=is_its_own)
    if files is None:
        here = [other.name for other in suite.tasks if find_task(folder, suite, other)]
        names = [] if task.official else suite.nearest(task.name) or here[:3]
        near = f" (did you mean {' or '.join(names)}?)" if names else ""
        found = f"of {suite.title} it has {', '.join(here)}" if here else f"it has no task of {suite.title}"
        raise UserError(f"{folder} has no files of {task.name}{near}; {found}")
    if "test" not in files.splits:
        raise UserError(f"{task.name}: {_where(files)} has no test file; a benchmark's score is of the official one")
    if not {"train", "dev"} & files.splits.keys():
        raise UserError(f"{task.name}: {_where(files)} has neither a train nor a dev file")
    return files


def tasks_here(folder: Path, suite: Suite) -> list[BenchmarkTask]:
    """Official tasks whose files are in a folder, fewest training rows first.

    Raises
    ------
    UserError
        If the folder is not there or has none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name the folder of {suite.title} by --data, or hub")
    found = [task for task in suite.tasks if find_task(folder, suite, task)]
    if not found:
        places = ", ".join(task.name for task in suite.tasks[:3])
        if _splits(folder):
            raise UserError(
                f"{folder} is the folder of one task; name the folder around it by --data, and the task by --tasks"
            )
        raise UserError(
            f"{folder} has no task of {suite.title}; it needs folders such as {places}, or name folders of your own "
            "by --tasks"
        )
    return smallest_first(found)


def _where(files: TaskFiles) -> Path:
    return next(iter(files.splits.values()))[0].parent


def _splits(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Files of each split in a folder or its ``data`` folder."""
    found: dict[str, tuple[Path, ...]] = {}
    for place in (folder, folder / "data"):
        if not place.is_dir():
            continue
        single = find_splits(place, none_is_an_error=False)
        for split, names in SPLIT_NAMES.items():
            if split in found:
                continue
            if split in single:
                found[split] = (single[split],)
            elif pieces := _pieces(place, names):
                found[split] = pieces
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def _pieces(place: Path, names: Sequence[str]) -> tuple[Path, ...]:
    for name in names:
        found = [*place.glob(f"{name}-*.parquet"), *(place / name).glob("*.parquet")]
        if pieces := sorted(path for path in found if not is_hidden(path)):
            return tuple(pieces)
    return ()


def _has_task_column(path: Path) -> bool:
    if path.suffix != ".parquet":
        return False
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return "task" in parquet.read_schema(path).names
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]}); copy it again") from error


def _holds(splits: dict[str, tuple[Path, ...]], name: str) -> bool:
    from pyarrow import compute, parquet

    first = splits.get("train", next(iter(splits.values())))
    return any(
        compute.any(compute.equal(parquet.read_table(path, columns=["task"])["task"], name)).as_py() for path in first
    )
