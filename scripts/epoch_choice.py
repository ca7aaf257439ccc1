"""Is the epoch that validation chooses better than the last one? Asked of halves of the dev rows; no test is read.

Each fit of `had finetune`'s default recipe keeps its logits of all dev rows after every epoch. Then the dev rows are
halved at random, many times: the epoch that one half likes best, and the last epoch, are both scored on the other half.

Example:
    python scripts/epoch_choice.py --data GUE --tasks mouse/3,tf/3 --max-train-rows 2600 --seeds 2 --out choice.csv

Rows that are in the table are not computed again; several processes may fill tables of their own.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from had.bootstrap import t_interval
from had.console import progress, setup_logging
from had.errors import UserError
from had.evaluation.contestants import parse_models
from had.evaluation.layouts import need_task
from had.evaluation.protocols import SUITES
from had.evaluation.selection import as_finetuning, build_classifier, finetune_config
from had.evaluation.suite_data import TaskData
from had.files import atomic_write_text
from had.metrics import mcc
from had.models.saving import DEFAULT_MODEL
from had.training.devices import choose_device, keep_freed_memory, set_threads
from had.training.finetuning_loop import Fit
from had.training.finetuning_recipe import FitConfig
from had.training.finetuning_scores import predict_logits

FIELDS = ("task", "seed", "n_train", "n_dev", "epochs", "best_epoch", "chosen", "last", "difference")
HALVINGS = 400


def logits_by_epoch(
    data: Path, task: str, seed: int, max_train_rows: int | None
) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
    """Logits (epochs, n, K) of a task's dev rows after each epoch, their classes (n,), and the rows trained on."""
    suite = SUITES["gue"]
    found = TaskData(suite, suite.task(task), need_task(data, suite, suite.task(task)), max_train_rows=max_train_rows)
    fold = found.fold(seed)
    rows = as_finetuning(found, found.part(fold.train), found.part(fold.valid), fold.how)
    (contestant,) = parse_models(["had"], DEFAULT_MODEL, "")
    setting = finetune_config(contestant, found, FitConfig(), seed, DEFAULT_MODEL)
    model = build_classifier(contestant, setting, rows, choose_device("cpu"))
    fit = Fit(model, rows.train, rows.valid, setting.training, seed=seed)
    logits: list[NDArray[np.float32]] = []

    def log(line: dict) -> None:
        if line["split"] == "validation":
            logits.append(predict_logits(fit.shadow, fit.valid, False))

    fit.run(log=log)
    return np.stack(logits), np.asarray(rows.valid.targets), len(rows.train)


def halves(logits: NDArray[np.float32], targets: NDArray[np.int64], seed: int) -> tuple[float, float]:
    """Mean MCC on the half that chose nothing: of the epoch that the other half likes best, and of the last one."""
    rng = np.random.default_rng(seed)
    predicted = logits.argmax(2)
    scores = []
    for _ in range(HALVINGS):
        order = rng.permutation(len(targets))
        a, b = order[: len(order) // 2], order[len(order) // 2 :]
        # As fine-tuning does: the first of equal scores stays, where the loss does not decide.
        best = int(np.argmax([mcc(targets[a], epoch[a]) for epoch in predicted]))
        scores.append((mcc(targets[b], predicted[best][b]), mcc(targets[b], predicted[-1][b])))
    chosen, last = np.mean(scores, axis=0)
    return float(chosen), float(last)


def main() -> int:
    """Fit, halve, write; 2 where the input is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of GUE")
    parser.add_argument("--tasks", required=True, help="comma-separated")
    parser.add_argument("--max-train-rows", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", required=True, type=Path, help="table; what is there is kept")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    setup_logging()
    keep_freed_memory()
    set_threads(given.threads)
    rows = list(csv.DictReader(given.out.read_text().splitlines())) if given.out.is_file() else []
    done = {(row["task"], row["seed"]) for row in rows}
    wanted = [(task, seed) for seed in range(given.seeds) for task in given.tasks.split(",")]
    try:
        with progress(len(wanted), "fitting", "fits") as advance:
            for task, seed in wanted:
                if (task, str(seed)) not in done:
                    rows.append(_row(given.data, task, seed, given.max_train_rows))
                    lines = [",".join(FIELDS), *(",".join(str(row[name]) for name in FIELDS) for row in rows)]
                    atomic_write_text(given.out, "\n".join(lines) + "\n")
                advance()
    except UserError as error:
        sys.stderr.write(f"epoch_choice: {error}\n")
        return 2
    tasks = sorted({row["task"] for row in rows})
    means = [np.mean([float(row["difference"]) for row in rows if row["task"] == task]) for task in tasks]
    interval = t_interval(means)
    print(
        f"chosen minus last, mean over {len(tasks)} tasks: {interval.mean:+.4f} "
        f"[{interval.low:+.4f}, {interval.high:+.4f}]"
    )
    return 0


def _row(data: Path, task: str, seed: int, max_train_rows: int | None) -> dict[str, str]:
    logits, targets, n_train = logits_by_epoch(data, task, seed, max_train_rows)
    chosen, last = halves(logits, targets, seed)
    best = int(np.argmax([mcc(targets, epoch.argmax(1)) for epoch in logits])) + 1
    values = (task, seed, n_train, len(targets), len(logits), best)
    scores = (f"{chosen:.4f}", f"{last:.4f}", f"{chosen - last:+.4f}")
    return dict(zip(FIELDS, (*map(str, values), *scores), strict=True))


if __name__ == "__main__":
    sys.exit(main())
