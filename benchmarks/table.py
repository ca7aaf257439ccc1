"""One command that writes a table of speed and memory: had, what it replaces and what it is compared with.

    PYTHONPATH=src python benchmarks/table.py --out results/ --threads 1
    PYTHONPATH=src python benchmarks/table.py --out results/ --device cuda --budget-seconds 240

In the folder: ``table.csv`` (one row a cell), ``table.md`` (for readers) and ``setups.json`` (machine, versions,
commands). Both tables are written anew after every cell, and what was measured on the same machine with the same
versions, code, threads and dtype is not measured again: a later call with a larger budget goes on. Lengths are done
from short to long. A cell that by the shorter ones would not fit into what is left of the budget, or into memory, is
written as skipped, with the reason; so is what is not installed. It needs no network.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
from tqdm import tqdm

from cells import HAD, KINDS, MODELS, NEEDS, OPS, RULE, Cell, Unavailable
from had.errors import UserError
from had.files import atomic_write_text
from machine import describe, digest_of, occasion
from presentation import report
from results import Results, Row, forecast
from workers import Died, TookTooLong, Workers

LENGTHS = [2**n for n in range(7, 18)]
"""128 to 131,072."""
LETTERS = {"cpu": 8_192, "cuda": 131_072}
"""Letters of a batch of short sequences."""
MARGIN = 1.2
"""By how much a forecast of memory may fall short."""
STARTING = 300.0
"""Seconds after which a process that has still not imported everything is given up."""


def all_cells(options: argparse.Namespace, threads: int) -> Iterator[Cell]:
    """What was asked for, short lengths first; at each length the ratios follow the rows that they compare."""
    for length in options.lengths:
        batch = max(1, options.letters // length)
        for part, names in (("op", OPS), ("model", MODELS)):
            if options.only not in (None, part):
                continue
            for kind in options.what:
                for name in names:
                    if options.rows is None or name in options.rows:
                        yield Cell(part, name, kind, length, batch, threads, options.dtype, options.device)
                if options.rows is None or {HAD, RULE} <= set(options.rows):
                    yield Cell(part, HAD, kind, length, batch, threads, options.dtype, options.device, RULE)


class Budget:
    """Seconds that are left, and what a cell will need of them."""

    def __init__(self, seconds: float, cell_seconds: float) -> None:
        self.whole, self.cell_seconds = seconds, cell_seconds
        self.ends = time.monotonic() + seconds
        self.overhead = 0.0
        """What a cell takes beside its passes, a mean that remembers recent ones best."""

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def need(self, pass_seconds: float) -> float:
        """Seconds of a cell whose pass takes so long: warm-up, repetitions and the process."""
        passes = pass_seconds if pass_seconds > self.cell_seconds else max(4 * pass_seconds, self.cell_seconds)
        return passes + self.overhead

    def learn(self, cell_seconds: float, row: Row) -> None:
        """Take note of how long a measured cell took in all."""
        beside = max(0.0, cell_seconds - row["seconds"] * (row["repeats"] + 1))
        self.overhead = (self.overhead + beside) / 2


def reason_to_skip(cell: Cell, results: Results, budget: Budget, free_mib: float) -> str | None:
    """Why a cell is not even tried, judged by the shorter ones of its row; None where it is."""
    if (left := budget.left()) <= 0:
        return f"the budget of {budget.whole:.0f} s is used up"
    per_sequence = forecast(results.points(cell, "seconds"), cell.length)
    if per_sequence is not None:
        both = 2 if cell.against else 1
        need = budget.need(both * per_sequence * cell.batch)
        if need > left:
            return f"would take about {need:.0f} s; {left:.0f} s of the budget are left"
    # A batch of twice the length has half the sequences, so that weights would look as if they grew with the square.
    memory = forecast(results.points(cell, "peak_mib"), cell.length, from_one=1.0)
    if memory is not None and (need := MARGIN * memory * cell.batch) > free_mib:
        return f"would need up to {need:,.0f} MiB; {free_mib:,.0f} are free"
    return None


def fill(
    cells: list[Cell],
    results: Results,
    budget: Budget,
    call: Callable[[Cell, float], Row],
    free_mib: Callable[[], float],
    written: Callable[[], None] = lambda: None,
) -> None:
    """Measure the cells that are not measured yet, one after another.

    Parameters
    ----------
    cells
        Short before long.
    results
        Where they are kept.
    budget
        How long this may take.
    call
        Measures a cell within a number of seconds and gives its columns; may raise `TookTooLong` or `Died`.
    free_mib
        Memory that a cell could take.
    written
        Called after every cell.
    """
    limit = results.setups[results.setup].get("limit")
    for cell in tqdm(cells, unit="cell", disable=None):
        if results.measured(cell):
            continue
        reason = reason_to_skip(cell, results, budget, free_mib())
        values: Row
        if reason is not None:
            values = {"status": f"skipped: {reason}"}
        else:
            began, left = time.monotonic(), budget.left()
            try:
                values = call(cell, left)
            except TookTooLong:
                values = {"status": f"skipped: took longer than the {left:.0f} s that were left of the budget"}
            except Died as death:
                values = {"status": f"skipped: {death}"}
            if values["status"] == "measured":
                budget.learn(time.monotonic() - began, values)
                if limit and values.get("gflop_per_s") is not None:
                    values["share_of_limit"] = values["gflop_per_s"] / limit["gflop_per_s"]
        results.add(cell, values)
        written()


def modules_to_preload(options: argparse.Namespace) -> list[str]:
    """What the processes of the cells will import, as far as it is installed."""
    modules = ["measure"]
    wanted = set(options.rows or (*OPS, *MODELS))
    if RULE in wanted and find_spec("transformers") is not None:
        modules.append("transformers.models.qwen3_next.modeling_qwen3_next")
    if any("multimolecule" in NEEDS.get(name, ()) for name in wanted) and find_spec("multimolecule") is not None:
        modules.append("multimolecule")
    return modules


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--lengths", type=_numbers, default=LENGTHS, help="in bp, separated by commas")
    parser.add_argument("--budget-seconds", type=float, default=600)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="default: PyTorch's own")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU, else bfloat16")
    parser.add_argument("--only", choices=("op", "model"))
    parser.add_argument("--what", type=_kinds, default=list(KINDS), help="forward, training or both, by commas")
    parser.add_argument(
        "--rows", type=lambda text: text.split(","), help=f"of {', '.join(dict.fromkeys(OPS + MODELS))}"
    )
    parser.add_argument("--letters", type=int, help=f"of a batch of short sequences; default: {LETTERS}")
    parser.add_argument("--cell-seconds", type=float, default=1.0, help="of the repetitions of a cell, about")
    options = parser.parse_args()
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    options.letters = options.letters or LETTERS[options.device]
    options.lengths = sorted(options.lengths)
    if options.rows is not None and (unknown := set(options.rows) - {*OPS, *MODELS}):
        parser.error(f"there is no row {', '.join(sorted(unknown))}; see --help")
    return options


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("lengths are at least 1")
    return numbers


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    if not set(kinds) <= set(KINDS):
        raise argparse.ArgumentTypeError(f"choose of {', '.join(KINDS)}")
    return kinds


def main() -> None:
    options = read_options()
    budget = Budget(options.budget_seconds, options.cell_seconds)
    workers = Workers(options.device, modules_to_preload(options))
    try:
        results, free_mib, threads = open_results(options, workers)
        cells = list(all_cells(options, threads))
        if not cells:
            raise UserError("there is nothing to measure: no row of --rows belongs to --only.")
        first = [cell for cell in cells if cell.length == cells[0].length and cell.what == HAD and not cell.against]
        if budget.left() > 0 and not all(map(results.measured, cells)):
            with suppress(TookTooLong, Died):
                workers.call("measure:prepare", (first,), budget.left())

        def write() -> None:
            atomic_write_text(options.out / "table.md", report(results))

        fill(
            cells, results, budget,
            lambda cell, left: workers.call("measure:measure", (cell, options.cell_seconds), left), free_mib, write,
        )  # fmt: skip
        write()
    except (Unavailable, UserError) as error:
        raise SystemExit(f"table.py: {error}") from error
    finally:
        workers.stop()
    states = [results.rows()[cell]["status"].partition(":")[0] for cell in cells]
    print(f"{options.out / 'table.md'}: " + ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)))


def open_results(options: argparse.Namespace, workers: Workers) -> tuple[Results, Callable[[], float], int]:
    """The results under this machine's header, with this call noted; what gives the free memory in MiB; threads."""
    facts = workers.call("measure:describe_device", (options.device,), STARTING)
    threads = options.threads or facts["threads"]
    header = {**describe(), **facts, "device": options.device, "threads": threads, "dtype": options.dtype}
    header["seconds a cell"] = options.cell_seconds
    results = Results(options.out, digest_of(header))
    setup = results.setups.setdefault(results.setup, {"header": header, "occasions": []})
    setup["occasions"].append(occasion())
    if "limit" not in setup:
        setup["limit"] = workers.call("measure:measure_limit", (options.device, options.dtype, threads), STARTING)
    results.write_setups()
    if "gpu_mib" in facts:
        return results, lambda: facts["gpu_mib"], threads
    return results, lambda: psutil.virtual_memory().available / 2**20, threads


if __name__ == "__main__":
    main()
