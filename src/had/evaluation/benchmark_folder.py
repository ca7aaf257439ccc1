"""The folder of a benchmark: scores that grow row by row, and the predictions they can be computed from again.

::

    RUN/scores.csv                                  a row for each task, model and seed
    RUN/predictions/<task>/<model>/seed-<n>.parquet the test rows' probabilities; what is known of the model as metadata
    RUN/benchmark.json                              every invocation: command, versions, where the data are from
    RUN/unfinished/                                 states of fits that are under way, or were when a run was killed

A unit (task, model, seed) is done once its predictions are written; a row that a crash kept out of ``scores.csv`` is
taken from them.
"""

import csv
import io
import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

from had.errors import RunFault, UserError
from had.evaluation.unit_files import (
    COLUMNS,
    PREDICTIONS,
    SCORES,
    Record,
    Unit,
    place_of,
    read_predictions,
    read_record,
    task_folder,
)
from had.files import atomic_write_text, why_no_folder
from had.training.finetuning_recipe import FitConfig
from had.training.locking import FolderLock
from had.training.provenance import circumstances, differences, with_later_keys

_log = logging.getLogger(__name__)

ABOUT = "benchmark.json"
KIND = "had benchmark"


class BenchmarkFolder:
    """The folder, locked against another process that writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FolderLock | None = None
        self.rows: dict[Unit, dict[str, str]] = {}
        self.about: dict[str, Any] = {}

    @classmethod
    def look(cls, path: Path, suite: str) -> Self:
        """Read what is there, without writing or locking.

        Raises
        ------
        UserError
            If the folder is a file, holds something else, or another suite's scores.
        """
        folder = cls(path)
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, not a folder; use another --out")
        if reason := why_no_folder(path):
            raise UserError(f"{path}: cannot be made a folder ({reason}); use another --out")
        if not path.exists():
            return folder
        if not any(not entry.name.startswith(".") for entry in path.iterdir()):
            return folder
        folder.about = _read_about(path / ABOUT)
        if not folder.about and not (path / SCORES).is_file():
            raise UserError(f"{path} is not empty and holds no benchmark; use another --out")
        folder.rows = _read_scores(path / SCORES)
        suites = {folder.about.get("suite", suite), *(row["suite"] for row in folder.rows.values())}
        if others := sorted(suites - {suite}):
            raise UserError(f"{path} holds scores of {others[0]}; use another --out for {suite}")
        return folder

    @classmethod
    def open(cls, path: Path, suite: str, facts: Mapping[str, Any]) -> Self:
        """Make the folder or go on in it, and note this invocation.

        Raises
        ------
        UserError
            As `look`; or another process is at work here.
        RunFault
            If the disk refused.
        """
        folder = cls.look(path, suite)
        if not folder.about.get("invocations") and (path / ABOUT).exists():
            _log.warning("%s is damaged: the history of earlier commands is lost", path / ABOUT)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise UserError(
                f"{path}: cannot be made a folder ({error.strerror or error}); use another --out"
            ) from error
        except OSError as error:
            raise RunFault(f"{path}: the folder cannot be made ({error.strerror or error})") from error
        lock = FolderLock(path / ".lock")
        if not lock.acquire():
            raise UserError(f"{path}: another benchmark is running in this folder; wait for it, or use another --out")
        folder._lock = lock
        # Another process may have written between the look and the lock.
        folder.rows = _read_scores(path / SCORES)
        history = [*folder.about.get("invocations", []), {**circumstances(sys.argv, {}, None, None, 1), **facts}]
        folder.about = {"kind": KIND, "suite": suite, "invocations": history}
        atomic_write_text(path / ABOUT, json.dumps(folder.about, indent=1, ensure_ascii=False) + "\n")
        return folder

    def close(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def place(self, unit: Unit) -> Path:
        """Where a unit's predictions are."""
        return place_of(self.path, unit)

    def adopt(self, units: Iterable[Unit]) -> None:
        """Take rows of finished units that a crash kept out of the table."""
        lost = [unit for unit in units if unit not in self.rows and self.place(unit).is_file()]
        for unit in lost:
            self.rows[unit] = read_record(self.place(unit)).row
        if lost:
            self._write()

    def add(self, record: Record) -> None:
        """Add one row; the old table or the new one is there, never half of it."""
        self.rows[record.unit] = record.row
        self._write()

    def is_done(self, unit: Unit) -> bool:
        """Whether a unit is in the table, or its predictions are there."""
        return unit in self.rows or self.place(unit).is_file()

    def records_of(self, task: str, model: str) -> list[Record]:
        """What is known of the seeds of a task and model whose predictions are there, by seed."""
        found = [read_record(path) for path in self.place(Unit(task, model, 0)).parent.glob("seed-*.parquet")]
        return sorted(found, key=lambda record: record.unit.seed)

    def check(self, task: str, model: str, settings: Mapping[str, Any]) -> None:
        """Refuse to add to scores that were made otherwise.

        Raises
        ------
        UserError
            If a unit of this task and model is there with other settings.
        """
        for record in self.records_of(task, model):
            if found := differences(_with_later_keys(record.settings), json.loads(json.dumps(settings))):
                name, (was, now) = _first_difference(found)
                raise UserError(
                    f"{self.path}: {task}, {model}, seed {record.unit.seed} was made with another {name} "
                    f"({_short(was)}, now {_short(now)}); use another --out, or another name (NAME=KIND)"
                )

    def check_predictions(self, task: str, model: str) -> None:
        """Refuse to add seeds to rows whose predictions are gone: nobody knows how these were made.

        Raises
        ------
        UserError
            If a row of this task and model has no predictions.
        """
        for unit in self.rows:
            if (unit.task, unit.model) == (task, model) and not self.place(unit).is_file():
                raise UserError(
                    f"{self.path}: {task}, {model}, seed {unit.seed} stands in {SCORES}, but {self.place(unit)}, which "
                    "says how it was made, is gone; put it back, remove the row, or use another name (NAME=KIND)"
                )

    def check_whole(self) -> None:
        """Refuse damaged predictions before anything is computed or written, as the report reads them all.

        Raises
        ------
        UserError
            If a file of predictions is damaged.
        """
        for path in sorted((self.path / PREDICTIONS).glob("*/*/seed-*.parquet")):
            read_predictions(path)

    def check_test(self, task: str, digest: Callable[[], str]) -> None:
        """Refuse to add to scores of a task that were made on other test rows.

        Parameters
        ----------
        task
            Name of the task.
        digest
            Gives the sha256 of its test file; asked only where the task has a score, so no model is chosen after it
            that was not bound to meet this file.

        Raises
        ------
        UserError
            If a unit of this task, of any model, was tested on another file, or the file cannot be read.
        """
        found = sorted(task_folder(self.path, task).glob("*/seed-*.parquet"))
        if not found:
            return
        try:
            now = digest()
        except OSError as error:
            raise UserError(f"{task}: the test file cannot be read ({error})") from error
        for path in found:
            record = read_record(path)
            if record.facts["test_sha256"] != now:
                raise UserError(
                    f"{self.path}: {task}, {record.unit.model}, seed {record.unit.seed} was tested on another test "
                    "file; use another --out"
                )

    def _write(self) -> None:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows.values())
        atomic_write_text(self.path / SCORES, buffer.getvalue())


def _with_later_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an older version with the keys of recipes that came since."""
    return {**settings, "recipes": [with_later_keys(recipe, FitConfig()) for recipe in settings.get("recipes", [])]}


def _read_about(path: Path) -> dict[str, Any]:
    """Kind, suite and earlier invocations; what of it is absent or damaged is left out, as no score depends on it."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["kind"] != KIND or not isinstance(about["suite"], str):
            return {}
    except (OSError, KeyError, TypeError, ValueError):
        return {}
    try:
        texts = []
        for one in about["invocations"]:
            texts += [one[name] for name in ("date", "had", "torch", "platform", "device", "source")] + one["command"]
            _ = one["jobs"], one["threads"], dict(one.get("left_out", {}))
        if all(isinstance(text, str) for text in texts):
            return dict(about)
    except (KeyError, TypeError, ValueError):
        pass
    return {**about, "invocations": []}


def _read_scores(path: Path) -> dict[Unit, dict[str, str]]:
    if not path.exists():
        return {}
    rows = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError("other columns")
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"line {reader.line_num} is cut off or too long")
                float(row["value"])
                rows[Unit(row["task"], row["model"], int(row["seed"]))] = row
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{path}: is no whole table of scores ({error}); move it away, and the same command writes it anew from "
            "the predictions beside it (or use another --out)"
        ) from error
    return rows


def _first_difference(found: Mapping[str, tuple[Any, Any]]) -> tuple[str, tuple[Any, Any]]:
    """The first setting that differs, and its values; of lists of recipes the first key, of checksums the file's."""
    name, (was, now) = next(iter(found.items()))
    if name == "recipes" and was and now:
        if len(was) != len(now):
            return "choice of learning rates", ([one["lr"] for one in was], [one["lr"] for one in now])
        return next(iter(next(filter(None, map(differences, was, now))).items()))
    if name == "training data":
        files = list(zip_longest(was.split(), now.split(), fillvalue="absent"))
        place = next(i for i, pair in enumerate(files) if pair[0] != pair[1])
        return f"{name} (file {place + 1} of {len(files)}, sha256)", files[place]
    return name, (was, now)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:20] + "…"
