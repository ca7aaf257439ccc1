"""Share of a training step that the data path takes: window gather, masks and tensors, against forward and backward.

python benchmarks/data_path.py --genome genome.fa.gz --threads 1
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from had.models.student import HADModel
from had.training.data import DataConfig, WindowData
from had.training.distillation import DistillationModule, ObjectiveConfig, windows_to_batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genome", type=Path, nargs="+", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = WindowData.open(DataConfig(genome=[str(path) for path in options.genome], validation_windows=1), seed=0)
    torch.manual_seed(0)
    module = DistillationModule(HADModel(), 256, ObjectiveConfig(align_head="concat"))
    shares, fetch_times, step_times = [], [], []
    for number in range(-2, options.rounds):
        indices = np.arange(options.batch) + options.batch * (number + 2)
        # Processor time: another process on the machine counts in neither.
        start = time.process_time()
        batch = windows_to_batch(*data.train(indices))
        fetched = time.process_time()
        sums = module({**batch, "target": torch.zeros(int(batch["aligned"].sum()), 256)})
        (sums["loss_align"] + sums["loss_rec"]).backward()
        module.zero_grad()
        done = time.process_time()
        if number >= 0:
            shares.append((fetched - start) / (done - start))
            fetch_times.append(fetched - start)
            step_times.append(done - start)
    print(
        f"{options.batch} windows of {data.config.window:,} bp, {options.threads} thread(s): "
        f"data path {1e3 * statistics.median(fetch_times):.2f} ms of {1e3 * statistics.median(step_times):,.0f} ms "
        f"processor time, {100 * statistics.median(shares):.2f} % of a step (without the teacher)"
    )


if __name__ == "__main__":
    main()
