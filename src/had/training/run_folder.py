"""A run is a folder: what was asked for, with what, on which data, and how it went.

``config.yaml`` is the resolved recipe, ``run.json`` the circumstances, ``metrics.jsonl`` the log,
``checkpoints/`` the way back. Two runs never share a folder unless one resumes the other.
"""

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from had.config import dump_yaml, parse_yaml
from had.errors import RunFault, UserError
from had.files import atomic_write_text, fsync_file, why_no_folder
from had.training.checkpoints import checkpoint_step, latest_valid, require_valid, set_aside_after
from had.training.locking import FolderLock
from had.training.metrics_log import append_record, read_metrics, truncate_metrics
from had.training.provenance import MAY_DIFFER, circumstances, differences, with_later_keys

_LOCK_FILE = ".lock"
_NOT_ALWAYS_RECORDED = ("teacher",)
"""Data whose checksums earlier versions did not record."""


class RunFolder:
    """The folder of one run.

    Use `create`, `resume` or `open` in the process that writes, ``RunFolder(path)`` where it is only read.

    Attributes
    ----------
    path, checkpoints, metrics_path : Path
        The folder, its folder of checkpoints, its log.
    resume_from : Path or None
        The checkpoint to go on from; None at the start.
    notes : list of str
        Sentences the user should see: checkpoints skipped and why, circumstances that differ.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics_path = self.path / "metrics.jsonl"
        self.resume_from: Path | None = None
        self.notes: list[str] = []
        self._lock: FolderLock | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        config: object,
        command: Sequence[str],
        data_digests: Mapping[str, str],
        *,
        resume: str | os.PathLike[str] | None = None,
        seed: int | None = None,
        threads: int | None = None,
        processes: int = 1,
        precision: str | None = None,
        may_differ: Collection[str] = (),
    ) -> Self:
        """Create the folder, or resume in it, as ``--resume`` says.

        Parameters
        ----------
        path, config, command, data_digests, seed, threads, processes
            As in `create`.
        resume
            None: a new run. ``auto``: from the newest valid checkpoint; from the start where there is no run
            yet, or none of its checkpoints is valid. Else the folder of a checkpoint, which must be valid; it
            may be another run's with the same config, if `path` is empty.
        precision
            ``float32`` or ``bf16``, whichever the run computes in: a resumed run must compute in the same, whether
            the recipe says so or ``auto``.
        may_differ
            As in `resume`.
        """
        facts = {**circumstances(command, data_digests, seed, threads, processes), "precision": precision}
        run = cls(path)
        if resume is None:
            run._create(config, facts)
        elif os.fspath(resume) == "auto":
            if run._is_new(config):
                run._create(config, facts)
            else:
                run._resume(config, facts, None, may_differ)
        else:
            checkpoint = Path(resume)
            require_valid(checkpoint)
            home = checkpoint.resolve().parent.parent
            if home == run.path.resolve():
                run._resume(config, facts, checkpoint, may_differ)
            else:
                origin = cls(home)
                origin._check_same(config, facts, may_differ)
                run._create(config, facts)
                run.resume_from = checkpoint
                run.notes += origin.notes
                run.notes.append(f"Going on from {checkpoint}, of another run, whose log stays there.")
        return run

    @classmethod
    def check_free(cls, path: str | os.PathLike[str], config: object) -> None:
        """Refuse a folder that a new run could not use, before long work for it; nothing is made.

        Raises
        ------
        had.errors.UserError
            The folder is not empty, is a file, or lies below a file or below a folder that may not be written.
        """
        run = cls(path)
        run._check_new(config)
        if reason := why_no_folder(path):
            raise UserError(f"{path}: cannot be made a folder ({reason}); use another --out.")

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        config: object,
        command: Sequence[str],
        data_digests: Mapping[str, str],
        *,
        seed: int | None = None,
        threads: int | None = None,
        processes: int = 1,
    ) -> Self:
        """Start a new run in a new or empty folder.

        Parameters
        ----------
        path
            The folder; it and its parents are made.
        config
            The resolved recipe: a dataclass or nested plain values.
        command
            The exact command, such as ``sys.argv``.
        data_digests
            A checksum for each piece of data the run reads, by name.
        seed, threads, processes
            Conditions of a bit-for-bit repetition.

        Raises
        ------
        had.errors.UserError
            The folder is not empty, is a file, or another process is running in it.
        had.errors.RunFault
            The folder cannot be written.
        """
        run = cls(path)
        run._create(config, circumstances(command, data_digests, seed, threads, processes))
        return run

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        config: object,
        command: Sequence[str],
        data_digests: Mapping[str, str],
        *,
        checkpoint: Path | None = None,
        seed: int | None = None,
        threads: int | None = None,
        processes: int = 1,
        may_differ: Collection[str] = (),
    ) -> Self:
        """Go on with the run in a folder.

        The log is cut after the checkpoint's step and later checkpoints are set aside. ``config.yaml`` stays
        as it is; what differs is recorded in ``run.json``.

        Parameters
        ----------
        path, config, command, data_digests, seed, threads, processes
            As in `create`.
        checkpoint
            A valid checkpoint of this run; by default the newest valid one.
        may_differ
            Names of keys, or whole dotted keys, that may differ besides `MAY_DIFFER`.

        Raises
        ------
        had.errors.UserError
            There is no run in the folder, its config or data are not the same, or it is running.
        """
        run = cls(path)
        facts = circumstances(command, data_digests, seed, threads, processes)
        run._resume(config, facts, checkpoint, may_differ)
        return run

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to the log and flush it (`had.training.metrics_log.append_record`).

        Raises
        ------
        had.errors.RunFault
            The line could not be written; no half of it stays.
        """
        with self._fault_if_unwritable():
            append_record(self.metrics_path, record)

    def sync_metrics(self) -> None:
        """Make the log durable, so that no checkpoint outlives the lines that led to it."""
        if self.metrics_path.exists():
            with self._fault_if_unwritable():
                fsync_file(self.metrics_path)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the log, without a last line that was cut short; empty where there is none."""
        return read_metrics(self.metrics_path)

    def truncate_metrics(self, step: int) -> int:
        """Cut the lines after `step`, and unreadable ones, off the log; give the number of lines cut."""
        return truncate_metrics(self.metrics_path, step)

    def read_facts(self) -> dict[str, Any]:
        """Read ``run.json``."""
        path = self.path / "run.json"
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(f"{self.path}: there is no run to resume here (no run.json).") from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); it belongs to no usable run.") from error
        fits = isinstance(facts, dict) and isinstance(facts.get("resumed"), list)
        if not fits or not all(isinstance(e, dict) and isinstance(e.get("data"), dict) for e in _entries(facts)):
            raise UserError(f"{path}: was not written by had; there is no run to resume here.")
        return facts

    def saved_sentence(self) -> str:
        """Say what of the run is saved and how to go on."""
        last, _ = latest_valid(self.checkpoints)
        if last is None:
            return f"No checkpoint is saved yet in {self.path}; --resume auto starts again from step 0."
        return f"The last good checkpoint is {last}; go on with --resume auto."

    def close(self) -> None:
        """Let other processes into the folder (the end of the process does the same)."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _create(self, config: object, facts: Mapping[str, Any]) -> None:
        self._check_new(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            reason = error.strerror or error
            raise UserError(f"{self.path}: cannot be made a folder ({reason}); use another --out.") from error
        except OSError as error:
            raise RunFault(f"{self.path}: the folder cannot be made ({error.strerror or error}).") from error
        self._take_lock()
        self._check_new(config)
        atomic_write_text(self.path / "config.yaml", dump_yaml(config))
        self._write_facts({**facts, "resumed": []})

    def _resume(
        self,
        config: object,
        facts: Mapping[str, Any],
        checkpoint: Path | None,
        may_differ: Collection[str],
    ) -> None:
        changed = self._check_same(config, facts, may_differ)
        if checkpoint is not None:
            require_valid(checkpoint)
        self._take_lock()
        before = self.read_facts()
        if checkpoint is None:
            checkpoint, skipped = latest_valid(self.checkpoints)
            self.notes += [f"Skipped: {sentence}" for sentence in skipped]
        if checkpoint is None:
            self.notes.append(f"{self.path}: no valid checkpoint; starting again from step 0.")
        self.resume_from = checkpoint
        step = -1 if checkpoint is None else checkpoint_step(checkpoint)
        self.notes += set_aside_after(self.checkpoints, step)
        cut = self.truncate_metrics(step)
        if cut:
            self.notes.append(f"{self.metrics_path.name}: {cut} later or unreadable lines were cut off.")
        last = (before["resumed"] or [before])[-1]
        for key in ("had", "torch", "numpy", "python", "platform", "threads", "processes"):
            if last.get(key) != facts[key]:
                self.notes.append(
                    f"{key} is now {facts[key]}, it was {last.get(key)}: the result may differ from an "
                    "uninterrupted run's in the last bits."
                )
        again = {**facts, "from_step": max(step, 0), "changed": changed}
        self._write_facts({**before, "resumed": [*before["resumed"], again]})

    @contextmanager
    def _fault_if_unwritable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = f"{self.metrics_path}: could not be written ({error.strerror or error})."
            raise RunFault(f"{message} {self.saved_sentence()}") from error

    def _take_lock(self) -> None:
        self._lock = FolderLock(self.path / _LOCK_FILE)
        if not self._lock.acquire():
            raise UserError(f"{self.path}: another process is running in this folder; use another --out.")

    def _is_new(self, config: object) -> bool:
        if not self.path.exists():
            return True
        if not self.path.is_dir():
            raise UserError(f"{self.path} is a file, not a folder; use another --out.")
        there = [entry for entry in self.path.iterdir() if not entry.name.startswith(".")]
        if [entry.name for entry in there] == ["config.yaml"]:
            # A run that was killed before it wrote more than this.
            return there[0].read_text(encoding="utf-8", errors="replace") == dump_yaml(config)
        return not there

    def _check_new(self, config: object) -> None:
        if not self._is_new(config):
            raise UserError(
                f"{self.path}: this folder is not empty; use --resume auto to go on with the run in it, "
                "or another --out."
            )

    def _check_same(self, config: object, facts: Mapping[str, Any], may_differ: Collection[str]) -> dict[str, Any]:
        """Refuse another run; give the harmless differences as {key: [then, now]}."""
        first = self.read_facts()
        path = self.path / "config.yaml"
        try:
            then = with_later_keys(parse_yaml(path.read_text(encoding="utf-8"), str(path)), config)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error}); there is no run to resume here.") from error
        # What an earlier version did not record is known from where this one resumed the run.
        precision = next((entry["precision"] for entry in _entries(first) if entry.get("precision")), None)
        data = {name: digest for entry in reversed(_entries(first)) for name, digest in entry["data"].items()}
        allowed = MAY_DIFFER | set(may_differ)
        if precision is not None:
            # Compared below as it was computed.
            allowed |= {"training.precision"}
        changed, forbidden = {}, []
        for key, (old, new) in differences(then, parse_yaml(dump_yaml(config), "config")).items():
            if key in allowed or not allowed.isdisjoint(key.split(".")):
                changed[key] = [old, new]
            else:
                forbidden.append(f"{key} is {old} there and {new} here")
        if first.get("seed") != facts["seed"]:
            forbidden.append(f"the seed is {first.get('seed')} there and {facts['seed']} here")
        now = facts.get("precision")
        unknown = [name for name in _NOT_ALWAYS_RECORDED if name in facts["data"] and name not in data]
        if now is not None and precision is None:
            unknown.append("precision")
        elif now not in (None, precision):
            forbidden.append(f"the precision is {precision} there and {now} here (pass training.precision={precision})")
            # A teacher computes in the run's precision, so that its checksum differs with it.
            unknown.append("teacher")
        for name in sorted({*data, *facts["data"]} - {*unknown}):
            if data.get(name) != facts["data"].get(name):
                forbidden.append(f"the data {name!r} are not the same")
        if unknown:
            self.notes.append(
                f"{self.path}: an earlier version began this run and did not record its {' and '.join(unknown)}; had "
                "could not check that it is the same."
            )
        if forbidden:
            raise UserError(
                f"{self.path}: the run in this folder is another one: {'; '.join(forbidden)}. "
                "Resume with the same options and data, or use another --out."
            )
        return changed

    def _write_facts(self, facts: Mapping[str, Any]) -> None:
        atomic_write_text(self.path / "run.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def _entries(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The circumstances of a run's start and of each time it was resumed."""
    return [facts, *facts["resumed"]]
