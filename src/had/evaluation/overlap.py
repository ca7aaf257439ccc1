"""Test rows that also stand in the training rows: exactly, as reverse complement, or nearly."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from had.dna.kmers import find_duplicates, shared_kmers
from had.errors import RunFault
from had.evaluation.suite_data import TaskData
from had.files import atomic_write_bytes

FOLDER = "overlap"
K = 12
NEAR = 0.5
"""[ours] A test row is a near-duplicate where this share of its distinct 12-mers, on either strand, stands in one
training row."""


@dataclass(frozen=True)
class Overlap:
    """One flag for each test row."""

    exact: NDArray[np.bool_]
    """(n,) The same letters stand among the training rows."""
    reverse_complement: NDArray[np.bool_]
    """(n,) Its reverse complement does."""
    shared: NDArray[np.float64]
    """(n,) Largest share of its distinct 12-mers that one training row has."""

    @property
    def same(self) -> NDArray[np.bool_]:
        """(n,) Exact or reverse complement."""
        return self.exact | self.reverse_complement

    @property
    def near(self) -> NDArray[np.bool_]:
        """(n,) The same, or nearly."""
        return self.same | (self.shared >= NEAR)

    def sentence(self) -> str:
        """The counts, in words."""
        return (
            f"{int(self.exact.sum()):,} exact, {int((self.reverse_complement & ~self.exact).sum()):,} as reverse "
            f"complement, {int((self.near & ~self.same).sum()):,} near-duplicates, of {len(self.exact):,}"
        )


def overlap_of(folder: Path, data: TaskData | None, task: str, test_digest: str, n_test: int) -> Overlap | None:
    """Find a task's overlap, or read it where it was found before.

    Parameters
    ----------
    folder
        The benchmark's folder.
    data
        The task; None where its files are not at hand.
    task
        Its name.
    test_digest
        sha256 of the test file that was predicted.
    n_test
        Its rows.

    Returns
    -------
    The flags, or None where they were not computed before and the files are not at hand, or are others.

    Raises
    ------
    RunFault
        If the disk refused.
    """
    import pyarrow as pa
    from pyarrow import parquet

    path = folder / FOLDER / f"{task.replace('/', '__')}.parquet"
    key = {"test": test_digest, "train": data.train_digest() if data is not None else None, "k": K}
    if data is not None:
        key["max_train_rows"] = data.max_train_rows
    if found := _found_before(path, n_test, key if data is not None else {"test": test_digest}):
        return found
    if data is None:
        return None
    test = data.test()
    if test.digest != test_digest:
        return None
    # Rows that only validate are left out: no model was fitted to them, where they are the official ones.
    trained = data.sequences[: len(data.sequences) - data.n_dev]
    duplicates = find_duplicates(test.sequences, trained)
    found = Overlap(duplicates.exact, duplicates.reverse_complement, shared_kmers(test.sequences, trained, K))
    table = pa.table(
        {"exact": found.exact, "reverse_complement": found.reverse_complement, "shared_12mers": found.shared}
    ).replace_schema_metadata({b"had": json.dumps(key)})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise RunFault(f"{path.parent}: the folder cannot be made ({error.strerror or error})") from error
    atomic_write_bytes(path, buffer.getvalue())
    return found


def _found_before(path: Path, n_test: int, key: Mapping[str, Any]) -> Overlap | None:
    """The flags in a file of this key; None where it is another's or damaged, so that it is written anew."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        then = dict(json.loads((parquet.read_schema(path).metadata or {})[b"had"]))
        if any(then.get(name) != value for name, value in key.items()):
            return None
        table = parquet.read_table(path)
        flags = [table[name].to_numpy() for name in ("exact", "reverse_complement")]
        shared = table["shared_12mers"].to_numpy()
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException):
        return None
    whole = len(table) == n_test and all(column.dtype == bool for column in flags) and shared.dtype == np.float64
    return Overlap(flags[0], flags[1], shared) if whole else None
