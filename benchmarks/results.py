"""The table's file, from which a later call goes on, and how cost grows with length."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from cells import Cell
from had.errors import UserError
from had.files import atomic_write_text

CELL_COLUMNS = [field.name for field in fields(Cell)]
VALUE_COLUMNS = [
    "seconds", "bp_per_s", "peak_mib", "gflop", "gflop_per_s", "share_of_limit", "repeats",
    "ratio", "ratio_low", "ratio_high", "note", "status",
]  # fmt: skip
COLUMNS = ["setup", *CELL_COLUMNS, *VALUE_COLUMNS]
NUMBERS = {name: int if name == "repeats" else float for name in VALUE_COLUMNS if name not in ("note", "status")}
OCTAVES = 3
"""Over how many of the longest octaves growth is fitted."""
Row = dict[str, Any]


def cell_of(row: Row) -> Cell:
    """The cell that a row of the file belongs to."""
    kinds = {field.name: field.type for field in fields(Cell)}
    return Cell(**{name: int(row[name]) if kinds[name] is int else row[name] for name in CELL_COLUMNS})


class Results:
    """Rows of all setups in ``table.csv``, and the headers of these setups in ``setups.json``.

    Parameters
    ----------
    folder
        Made where it does not exist.
    setup
        Name of the header that this call measures under; rows of others are kept, and neither used nor shown.
    """

    def __init__(self, folder: Path, setup: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.setups_path, self.setup = folder / "table.csv", folder / "setups.json", setup
        self.setups: dict[str, Any] = {}
        self._rows: dict[tuple[str, Cell], Row] = {}
        if self.setups_path.exists():
            self.setups = json.loads(self.setups_path.read_text(encoding="utf-8"))
        if self.path.exists():
            with open(self.path, encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                if reader.fieldnames != COLUMNS:
                    raise UserError(f"{self.path} has other columns than this version writes; choose another --out.")
                for row in reader:
                    self._rows[row["setup"], cell_of(row)] = {
                        name: NUMBERS.get(name, str)(text) for name, text in row.items() if text != ""
                    }

    def measured(self, cell: Cell) -> bool:
        """Whether an earlier call has measured this."""
        return self._rows.get((self.setup, cell), {}).get("status") == "measured"

    def add(self, cell: Cell, values: Row) -> None:
        """Keep what became of a cell, in place of what an earlier call wrote, and write the file."""
        self._rows[self.setup, cell] = {"setup": self.setup, **asdict(cell), **values}
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({n: _short(row.get(n)) for n in COLUMNS} for row in self._rows.values())
        atomic_write_text(self.path, text.getvalue())

    def write_setups(self) -> None:
        """Write the headers."""
        atomic_write_text(self.setups_path, json.dumps(self.setups, indent=1, ensure_ascii=False) + "\n")

    def rows(self) -> dict[Cell, Row]:
        """What is known under this header."""
        return {cell: row for (setup, cell), row in self._rows.items() if setup == self.setup}

    def points(self, like: Cell, column: str) -> list[tuple[int, float]]:
        """(length, value per sequence) of the measured cells of a row, short before long."""
        found = [
            (cell.length, float(row[column]) / cell.batch)
            for cell, row in self.rows().items()
            if cell.row == like.row and row.get("status") == "measured" and row.get(column) is not None
        ]
        return sorted(found)


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def forecast(points: Sequence[tuple[int, float]], length: int, from_one: float = 2.0) -> float | None:
    """What a quantity will be at a length, judged by shorter ones; None where there are none.

    It is taken to go on growing as it did over the last step, at least linearly and at most with the square. Where only
    one point is known ``from_one`` is the exponent.
    """
    shorter = [point for point in points if point[0] < length and point[1] > 0]
    if not shorter:
        return None
    exponent = from_one
    if len(shorter) > 1:
        (l1, y1), (l2, y2) = shorter[-2:]
        exponent = min(2.0, max(1.0, math.log(y2 / y1) / math.log(l2 / l1)))
    last_length, last = shorter[-1]
    return last * (length / last_length) ** exponent


def growth(points: Sequence[tuple[int, float]]) -> tuple[float, int, int] | None:
    """Exponent of a power law over the longest octaves, and the first and last length that it was fitted to.

    Least squares on logarithms; None where fewer than three points lie within the ``OCTAVES`` longest octaves.
    """
    positive = sorted(point for point in points if point[1] > 0)
    used = [(n, y) for n, y in positive if n * 2**OCTAVES >= positive[-1][0]]
    if len(used) < 3:
        return None
    xs, ys = [math.log(n) for n, _ in used], [math.log(y) for _, y in used]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)
    return slope, used[0][0], used[-1][0]
