"""Speed of the gated delta rule's backends against the chunk rule of transformers, as a Markdown table.

    OMP_NUM_THREADS=2 python benchmarks/gated_delta_rule.py --threads 1 2

Every round runs the baseline and each backend once, one after another, so that a busy machine slows all of them; the
table shows medians over the rounds and the median of the rounds' own ratios. Inputs are random; and those which the
bundled student's last recurrent block sees on human DNA, B / 2 windows in both directions. Needs transformers
(``had[hf]``).
"""

import argparse
import platform
import statistics
import time

import torch
from torch import Tensor

from had.ops.cpu import prepare, why_unavailable
from rules import Rule, make_inputs, student_inputs, transformers_rule, with_backend

STUDENT_BLOCK = 3
"""Block of the bundled student whose inputs are taken: the last with a gated delta rule."""


def seconds(rule: Rule, inputs: list[Tensor], do: Tensor, train: bool) -> float:
    leaves = [x.detach().requires_grad_(train) for x in inputs]
    began = time.perf_counter()
    o, _ = rule(*leaves, use_qk_l2norm_in_kernel=True)
    if train:
        o.backward(do)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--shape", type=int, nargs=5, default=[8, 1024, 2, 32, 64], metavar=("B", "L", "H", "K", "V"))
    options = parser.parse_args()

    rules = {"transformers": transformers_rule()}
    if why_unavailable() is None:
        print(f"CPU kernels ready in {prepare():.1f} s (compiled, or loaded from the cache)\n")
        rules["cpu"] = with_backend("cpu")
    rules["chunked"] = with_backend("chunked")
    B, L = options.shape[:2]
    kinds = {"random": make_inputs(*options.shape), "student": student_inputs(-(-B // 2), L, block=STUDENT_BLOCK)}
    machine = platform.processor() or platform.machine()
    for kind, ((q, _, v, *_), _) in kinds.items():
        print(f"{kind}: B, L, H, K, V = {[*q.shape, v.shape[-1]]}, float32, {machine}, torch {torch.__version__}")
    print(
        "\n| inputs | threads | pass | backend | ms | times transformers | quartiles |\n|---|---|---|---|---|---|---|"
    )
    for kind, (inputs, do) in kinds.items():
        for threads in options.threads:
            torch.set_num_threads(threads)
            for train in (False, True):
                times: dict[str, list[float]] = {name: [] for name in rules}
                for measured in range(-2, options.rounds):
                    for name, rule in rules.items():
                        elapsed = seconds(rule, inputs, do, train)
                        if measured >= 0:
                            times[name].append(elapsed)
                for name, values in times.items():
                    ratios = [base / value for base, value in zip(times["transformers"], values, strict=True)]
                    low, middle, high = statistics.quantiles(ratios, n=4)
                    print(
                        f"| {kind} | {threads} | {'forward + backward' if train else 'forward'} | {name} "
                        f"| {1e3 * statistics.median(values):.1f} | {middle:.2f} | {low:.2f} to {high:.2f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
