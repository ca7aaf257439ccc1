"""Speed of the student with this project's CPU kernels against the same student in plain PyTorch, as a Markdown table.

    OMP_NUM_THREADS=2 python benchmarks/student_step.py --threads 1 2

Plain: the gated delta rule of transformers (``torch_chunk_gated_delta_rule``) and PyTorch's own operators for all else
(conv1d, rms_norm, linear, …), float32, the same weights. A training step is the forward and backward pass of the
distillation objective (a random target stands for the teacher); inference is the student's forward pass. Every round
runs both forms, one after the other, so that a busy machine slows both; the table shows medians over the rounds and the
median of the rounds' own ratios. With ``--clock cpu`` processor time is compared, which other work on the machine
hardly changes, but which says nothing of how well threads share the work. Needs transformers (``had[hf]``).
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from had.models import HADModel
from had.models.functional import why_unavailable
from had.training.distillation import DistillationModule, ObjectiveConfig, windows_to_batch
from rules import plain_student, transformers_rule

GROUPS = 170
"""6-mers per window; 26 are hidden, as in pre-training."""
TEACHER_WIDTH = 256


def make_batch(windows: int) -> dict[str, Tensor]:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 4, (windows, 6 * GROUPS)).astype(np.uint8)
    hidden = np.zeros((windows, GROUPS), dtype=bool)
    for row in hidden:
        row[generator.permutation(GROUPS)[:26]] = True
    batch = windows_to_batch(codes, np.repeat(hidden, 6, axis=1))
    target = torch.randn(int(batch["aligned"].sum()), TEACHER_WIDTH, generator=torch.Generator().manual_seed(0))
    return batch | {"target": target}


def train(module: DistillationModule, batch: dict[str, Tensor]) -> Tensor:
    module.zero_grad()
    sums = module(batch)
    loss = sums["loss_align"] / batch["aligned"].sum() + sums["loss_rec"] / batch["query_codes"].numel()
    loss.backward()
    return loss.detach()


@torch.no_grad()
def infer(module: DistillationModule, batch: dict[str, Tensor]) -> Tensor:
    return module.student(batch["input_ids"]).last_hidden_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--windows", type=int, default=16, help="of 1,020 bp, per step")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    if (reason := why_unavailable()) is not None:
        parser.exit(2, f"there are no kernels to measure: {reason}\n")
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    os.environ["HAD_BACKEND"] = "cpu"

    torch.manual_seed(0)
    module = DistillationModule(HADModel(), TEACHER_WIDTH, ObjectiveConfig())
    batch, rule = make_batch(options.windows), transformers_rule()
    letters = options.windows * 6 * GROUPS

    def run(work: Callable[..., Tensor], plain: bool) -> tuple[float, Tensor]:
        if not plain:
            began = clock()
            result = work(module, batch)
            return clock() - began, result
        with plain_student(rule):
            began = clock()
            result = work(module, batch)
            return clock() - began, result

    machine = platform.processor() or platform.machine()
    print(
        f"{options.windows} windows of {6 * GROUPS:,} bp, float32, {machine}, "
        f"torch {torch.__version__}, {options.clock} time"
    )
    print(
        "\n| threads | pass | plain: s, bp/s | this project: s, bp/s | times plain | quartiles |\n"
        "|---|---|---|---|---|---|"
    )
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name, work in (("training step", train), ("inference", infer)):
            times: dict[bool, list[float]] = {True: [], False: []}
            for measured in range(-1, options.rounds):
                results = {plain: run(work, plain) for plain in (True, False)}
                difference = (results[True][1] - results[False][1]).abs().max() / results[True][1].abs().max()
                assert difference < 1e-4, f"the two forms differ by {difference}"
                if measured >= 0:
                    for plain, (elapsed, _) in results.items():
                        times[plain].append(elapsed)
            ratios = [plain / own for plain, own in zip(times[True], times[False], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            cells = [f"{statistics.median(t):.2f}, {letters / statistics.median(t):,.0f}" for t in times.values()]
            print(f"| {threads} | {name} | {' | '.join(cells)} | {middle:.2f} | {low:.2f} to {high:.2f} |", flush=True)


if __name__ == "__main__":
    main()
