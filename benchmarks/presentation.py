"""The table for readers: overviews of speed and memory, ratios, growth, every cell."""

from collections.abc import Callable, Iterable
from typing import Any

from cells import KINDS, MODELS, OPS, Cell
from machine import as_markdown
from results import Results, Row, growth

EXPLANATION = """\
Every cell is the median of several passes over random letters (`repeats`; 1 where a pass is long) after one that does
not count. `training` is a forward and a backward pass to every input (op) or weight (model), without an optimizer. Peak
memory is that of the cell alone, its weights included, without what Python, PyTorch and compiled kernels hold by
themselves. GFLOP are counted from what has to be computed, whoever computes it (`benchmarks/flops.py`); the limit is
{limit}.
A cell that was not measured says why.
"""


def number(value: Any, digits: int = 3) -> str:
    """A number for people: three digits, thousands separated; – for none."""
    if value is None:
        return "–"
    if value and abs(value) < 10 ** (digits - 1):
        return f"{value:.{digits}g}"
    return f"{float(f'{value:.{digits}g}'):,.0f}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def overview(rows: dict[Cell, Row], part: str, kind: str, entry: Callable[[Row], str]) -> str:
    """Contenders down, lengths across."""
    chosen = {cell: row for cell, row in rows.items() if (cell.part, cell.kind) == (part, kind) and not cell.against}
    lengths = sorted({cell.length for cell in chosen})
    names = [name for name in (OPS if part == "op" else MODELS) if any(cell.what == name for cell in chosen)]
    by_place = {(cell.what, cell.length): row for cell, row in chosen.items()}
    body = []
    for name in names:
        found = [by_place.get((name, length)) for length in lengths]
        body.append([name, *("" if row is None else entry(row) for row in found)])
    return table(["", *(f"{length:,}" for length in lengths)], body) if body else ""


def _or_reason(column: str) -> Callable[[Row], str]:
    def entry(row: Row) -> str:
        return number(row.get(column)) if row["status"] == "measured" else "*"

    return entry


def _fit(points: list[tuple[int, float]]) -> str:
    found = growth(points)
    return "–" if found is None else f"{found[0]:.2f} ({found[1]:,} to {found[2]:,})"


def _growth_table(results: Results, rows: dict[Cell, Row]) -> str:
    body, seen = [], set()
    for cell in rows:
        if cell.against or cell.row in seen:
            continue
        seen.add(cell.row)
        fits = [_fit(results.points(cell, column)) for column in ("seconds", "peak_mib")]
        if any(fit != "–" for fit in fits):
            body.append([cell.part, cell.what, cell.kind, *fits])
    return table(["", "what", "pass", "exponent of time", "exponent of memory"], body) if body else ""


def _ratio_table(rows: dict[Cell, Row]) -> str:
    body = []
    for cell, row in rows.items():
        if not cell.against:
            continue
        if row["status"] == "measured":
            both = row.get("ratio_low") is not None
            spread = f"{number(row['ratio_low'])} to {number(row['ratio_high'])}" if both else "–"
            values = [number(row["ratio"]), spread, number(row["repeats"])]
        else:
            values = ["–", row["status"], ""]
        body.append([cell.part, cell.kind, f"{cell.length:,}", f"{cell.batch:,}", *values])
    return table(["", "pass", "length", "batch", "times", "quartiles", "repeats"], body) if body else ""


def _every_cell(rows: dict[Cell, Row]) -> str:
    head = ["", "what", "pass", "length", "batch", "threads", "dtype", "seconds", "bp/s", "peak MiB", "GFLOP"]
    head += ["GFLOP/s", "% of limit", "repeats", "note"]
    body = []
    for cell, row in rows.items():
        if cell.against:
            continue
        share = row.get("share_of_limit")
        values = [number(row.get(c)) for c in ("seconds", "bp_per_s", "peak_mib", "gflop", "gflop_per_s")]
        values += [number(None if share is None else 100 * share), number(row.get("repeats"))]
        note = row.get("note", "") if row["status"] == "measured" else row["status"]
        sizes = [f"{cell.length:,}", f"{cell.batch:,}", str(cell.threads), cell.dtype]
        body.append([cell.part, cell.what, cell.kind, *sizes, *values, note.replace("|", "/")])
    return table(head, body)


def report(results: Results) -> str:
    """The whole Markdown of one setup."""
    setup, rows = results.setups[results.setup], results.rows()
    names = {"op": OPS, "model": MODELS}

    def place(cell: Cell) -> tuple[int, int, int, int]:
        return len(cell.part), KINDS.index(cell.kind), names[cell.part].index(cell.what), cell.length

    rows = {cell: rows[cell] for cell in sorted(rows, key=place)}
    limit = setup["limit"]
    about = (
        f"{number(limit['gflop_per_s'])} GFLOP/s, a {limit['size']:,} x {limit['size']:,} {limit['dtype']} matrix "
        "product on the same threads, the best of eight"
    )
    parts = ["# Speed and memory\n", as_markdown(setup["header"], setup["occasions"]), EXPLANATION.format(limit=about)]
    for part, title in (("op", "The gated delta rule and attention"), ("model", "Models")):
        for kind in KINDS:
            for column, unit in (("bp_per_s", "bp/s"), ("peak_mib", "peak MiB")):
                text = overview(rows, part, kind, _or_reason(column))
                if text:
                    parts.append(
                        f"## {title}, {kind}: {unit}, by length in bp\n\n{text}\n\\* not measured: see below\n"
                    )
    if ratios := _ratio_table(rows):
        parts.append(
            "## Times faster than transformers' chunk rule\n\nBoth in the same process, in turn; the model is the "
            f"student, the other one on that rule and plain PyTorch, with the same weights.\n\n{ratios}"
        )
    if grown := _growth_table(results, rows):
        parts.append(
            "## How cost grows with length\n\nExponent of length in seconds and peak memory for a sequence (that of a "
            f"batch divided by its size), fitted over the longest octaves.\n\n{grown}"
        )
    parts.append(f"## Every cell\n\n{_every_cell(rows)}")
    return "\n".join(parts)
