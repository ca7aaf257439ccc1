"""The files of a benchmark's units: predictions with what is known of each, and states of fits that are under way."""

import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from had.errors import RunFault, UserError
from had.evaluation.suite_data import TestRows
from had.files import atomic_write_bytes
from had.training.provenance import circumstances

COLUMNS = ("suite", "task", "model", "seed", "metric", "value", "n_train", "n_test", "seconds", "note")
"""Of the table of scores, a row of which each unit has."""
SCORES, PREDICTIONS, UNFINISHED = "scores.csv", "predictions", "unfinished"
_METADATA = b"had"


class Unit(NamedTuple):
    """What is computed once."""

    task: str
    model: str
    seed: int


@dataclass(frozen=True)
class Record:
    """A finished unit."""

    row: dict[str, str]
    """By `COLUMNS`."""
    facts: dict[str, Any]
    """Parameters, seconds, learning rate, sizes of the data, …"""
    settings: dict[str, Any]
    """What the score depends on: two units with other settings cannot stand in one table."""

    @property
    def unit(self) -> Unit:
        """Which unit it is of."""
        return Unit(self.row["task"], self.row["model"], int(self.row["seed"]))


class Predictions(NamedTuple):
    """The test rows of one unit."""

    targets: NDArray[np.int64]
    """(n,) class ids; negative where no training row has the label."""
    probabilities: NDArray[np.float64]
    """(n, K)."""
    record: Record


def place_of(folder: Path, unit: Unit) -> Path:
    """File of a unit's predictions."""
    return task_folder(folder, unit.task) / unit.model / f"seed-{unit.seed}.parquet"


def task_folder(folder: Path, task: str) -> Path:
    """Folder of the predictions of a task, with a folder for each model."""
    return folder / PREDICTIONS / task.replace("/", "__")


def states_of(folder: Path, unit: Unit, settings: Mapping[str, Any]) -> Path:
    """Folder of the states of a unit's unfinished fits; another one for other settings or versions."""
    versions = {name: value for name, value in circumstances([], {}, None, None, 1).items() if name in ("had", "torch")}
    text = json.dumps([settings, versions], sort_keys=True, default=str)
    return _unfinished(folder, unit) / hashlib.sha256(text.encode()).hexdigest()[:16]


def forget_states(folder: Path, unit: Unit) -> None:
    """Remove the states of a unit that is finished, and the folders that are empty then."""
    place = _unfinished(folder, unit)
    shutil.rmtree(place, ignore_errors=True)
    for parent in list(place.parents)[:3]:
        with suppress(OSError):
            parent.rmdir()


def _unfinished(folder: Path, unit: Unit) -> Path:
    return folder / UNFINISHED / unit.task.replace("/", "__") / unit.model / f"seed-{unit.seed}"


def write_predictions(
    path: Path, test: TestRows, probabilities: NDArray[np.float64], classes: tuple[str, ...], record: Record
) -> None:
    """Write one unit: ``label``, ``target``, ``prediction`` and ``p_<class>`` of each test row, in their order.

    Raises
    ------
    RunFault
        If the disk refused.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, Any] = {
        "label": pa.array(test.labels),
        "target": pa.array(test.targets, pa.int32()),
        "prediction": pa.array([classes[i] for i in probabilities.argmax(1)]),
    }
    columns |= {f"p_{name}": pa.array(probabilities[:, i], pa.float64()) for i, name in enumerate(classes)}
    known = {"row": record.row, "facts": record.facts, "settings": record.settings, "classes": list(classes)}
    table = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(known, ensure_ascii=False)})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFault(f"{path.parent}: the folder cannot be made ({error.strerror or error})") from error
    atomic_write_bytes(path, buffer.getvalue())


def read_record(path: Path) -> Record:
    """What is known of a finished unit.

    Raises
    ------
    UserError
        If the file is damaged or is not of a benchmark.
    """
    from pyarrow import parquet

    with _readable(path):
        known = json.loads((parquet.read_schema(path).metadata or {})[_METADATA])
        record = Record(*(dict(known[name]) for name in ("row", "facts", "settings")))
        float(record.row["value"])
        texts = [record.facts["test_sha256"], *(record.row[name] for name in COLUMNS)]
        if not all(isinstance(text, str) for text in texts) or record.unit.seed < 0:
            raise ValueError("other values than had writes")
    return record


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: is no readable file of a benchmark ({reason}); remove it, and its row of {SCORES}, "
            "to compute it again"
        ) from error


def read_predictions(path: Path) -> Predictions:
    """Read one unit's test rows.

    Raises
    ------
    UserError
        As `read_record`.
    """
    from pyarrow import parquet

    record = read_record(path)
    with _readable(path):
        table = parquet.read_table(path)
        columns = [name for name in table.column_names if name.startswith("p_")]
        probabilities = np.stack([table[name].to_numpy() for name in columns], axis=1).astype(np.float64)
        if len(table) != int(record.row["n_test"]) or not np.isfinite(probabilities).all():
            raise ValueError("other rows than had writes")
        return Predictions(table["target"].to_numpy().astype(np.int64), probabilities, record)
