"""One training loop for everything: steps, accumulation, precision, many processes, resume, progress, logs.

What is trained is an `Objective`; the loop knows nothing of DNA. Window k of step s is window ``s · global_batch + k``
of a stateless sampler, so nothing but weights, optimizer and step number has to be saved, and the result does not
depend on the number of processes: losses are sums divided by counts that are summed over all of them.
"""

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from had.errors import RunFault, UserError
from had.files import atomic_write_text
from had.training.devices import to_device
from had.training.held_out import Scores
from had.training.optimizers import OptimizerConfig, build_optimizers, learning_rate, set_learning_rate
from had.training.run_folder import RunFolder
from had.training.state import load_training_state, save_training_state

Batch = Mapping[str, Tensor]


@dataclass
class TrainingConfig:
    """How long and in what portions to train."""

    steps: int = 1000
    """Optimizer steps of the whole schedule."""
    global_batch: int = 32
    """Windows per step, over all processes."""
    micro_batch: int = 32
    """Most windows in one forward pass of one process; accumulation follows from it."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """bf16 autocast or float32; auto takes bf16 where the device computes it natively."""
    validate_every: int = 250
    """Steps between validations (there is always one at the end); 0: only at the end."""
    checkpoint_every: int = 250
    """Steps between checkpoints (there is always one at the end)."""
    keep_checkpoints: int = 2
    """Checkpoints kept, the newest included."""
    log_every: int = 10
    """Steps between flushes of the metrics log; every step has its own line."""
    log_windows: bool = False
    """Write the (step, contig, start, strand) of every window to windows-rank<r>.tsv."""
    trackers: list[str] = field(default_factory=list)
    """Experiment trackers of accelerate: tensorboard, wandb, trackio, …"""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and learning-rate schedule."""


class Objective(Protocol):
    """What is trained: a module whose forward gives sums, and the windows it eats."""

    @property
    def module(self) -> nn.Module:
        """All trained parameters. ``module(batch)`` → dict of scalar sums (losses and other totals)."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each loss term in the total; the terms are keys of the module's output."""

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Windows of these global indices (n,) as CPU tensors."""

    def prepare(self, batch: Batch) -> Batch:
        """Add what needs no gradient (teacher features), on the training device."""

    def counts(self, batch: Batch) -> dict[str, float]:
        """Denominator of each of the module's sums, for this batch."""

    def validate(self) -> dict[str, float]:
        """Held-out metrics; empty where nothing is held out. Called on the main process only."""

    def scores(self, quiet: bool = True) -> dict[str, Scores]:
        """Held-out sums per window of model and baselines; empty where nothing is held out. Main process only.

        ``quiet``: show no progress bar.
        """

    def digests(self) -> Mapping[str, str]:
        """Checksum by name of what is read besides the windows: a resumed run must read the same."""

    def describe_windows(self, indices: np.ndarray) -> list[tuple[str, int, str]]:
        """(contig, start, strand) of each window."""

    def export(self, folder: Path) -> None:
        """Write the trained model as users load it."""

    def window_bp(self) -> int:
        """Letters of one window."""


def split_batch(global_batch: int, micro_batch: int, rank: int, world: int) -> list[np.ndarray]:
    """Offsets k within the global batch of each micro-batch of one process.

    Raises
    ------
    UserError
        If the global batch does not divide by the number of processes.
    """
    if global_batch % world:
        raise UserError(
            f"training.global_batch {global_batch} does not divide by the {world} processes; "
            f"choose a multiple of {world}, for example {world * math.ceil(global_batch / world)}"
        )
    mine = np.arange(rank * global_batch // world, (rank + 1) * global_batch // world)
    return np.array_split(mine, math.ceil(len(mine) / micro_batch))


def _like(divisor: float | Tensor, value: Tensor) -> float | Tensor:
    """Keep the precision of ``value`` in a division by it, as a plain number does."""
    return divisor.to(value.dtype) if isinstance(divisor, Tensor) else divisor


class Trainer:
    """Runs an objective through its schedule; see `run`."""

    def __init__(
        self, objective: Objective, config: TrainingConfig, run: RunFolder, accelerator: Any, *, seed: int, quiet: bool
    ) -> None:
        self.objective, self.config, self.run_folder, self.accelerator = objective, config, run, accelerator
        self.seed, self.quiet = seed, quiet
        self.portions = split_batch(
            config.global_batch, config.micro_batch, accelerator.process_index, accelerator.num_processes
        )
        # The bare module keeps the names; the prepared one may be wrapped for several processes.
        self.bare = objective.module
        self.bare.to(accelerator.device)
        self.optimizers = build_optimizers(self.bare, config.optimizer)
        self.module = accelerator.prepare(self.bare)
        self.pending: list[tuple[dict[str, Any], Tensor, list[str]]] = []
        self.step = 0

    def run(self, *, resume_from: Path | None = None, stop_after: int | None = None) -> int:
        """Train to the end of the schedule, or until step ``stop_after``; return the step reached.

        Raises
        ------
        RunFault
            On a loss that is not finite or a disk that is full; the last good checkpoint stays.
        """
        from had.console import progress

        config, main = self.config, self.accelerator.is_main_process
        if resume_from is not None:
            self.step = load_training_state(resume_from, self.bare, self.optimizers)
        self._cut_window_log()
        last = config.steps if stop_after is None else min(stop_after, config.steps)
        step_bp = config.global_batch * self.objective.window_bp()
        self._clock = time.monotonic()
        bar = progress(last * step_bp, "training", "bp", quiet=self.quiet or not main)
        with bar as advance:
            advance.skip(self.step * step_bp)
            if self.step == 0 and config.validate_every:
                self._validate()
            while self.step < last:
                self._one_step()
                advance(step_bp)
                done = self.step == last
                if done or self.step % config.log_every == 0:
                    self._flush()
                if (config.validate_every and self.step % config.validate_every == 0) or self.step == config.steps:
                    self._flush()
                    self._validate()
                if done or self.step % config.checkpoint_every == 0:
                    self._flush()
                    self._save()
        if main and self.step == config.steps:
            self.objective.export(self.run_folder.path / "model")
        self.accelerator.wait_for_everyone()
        return self.step

    def _local_batches(self) -> list[dict[str, Tensor]]:
        first = self.step * self.config.global_batch
        batches = []
        for portion in self.portions:
            if self.config.log_windows:
                self._log_windows(first + portion)
            batches.append(self.objective.batch(first + portion))
        return batches

    def _one_step(self) -> None:
        """Sums over the whole global batch, divided by counts of the whole global batch."""
        accelerator, objective = self.accelerator, self.objective
        self.module.train()
        batches = self._local_batches()
        names = sorted(objective.counts(batches[0]))
        counts = torch.tensor(
            [sum(objective.counts(batch)[name] for batch in batches) for name in names], dtype=torch.float64
        )
        divisor = self._divisors(names, counts)
        totals: list[Tensor] = []
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=False)
        for i, batch in enumerate(batches):
            prepared = objective.prepare(to_device(batch, accelerator.device))
            last = i + 1 == len(batches)
            with nullcontext() if last else accelerator.no_sync(self.module), accelerator.autocast():
                sums = self.module(prepared)
            # Data-parallel gradients are averaged over processes; the product with their number makes that a sum.
            loss = (
                sum(w * sums[k] / _like(divisor[k], sums[k]) for k, w in objective.weights.items() if w)
                * accelerator.num_processes
            )
            with nullcontext() if last else accelerator.no_sync(self.module):
                accelerator.backward(loss)
            part = [sums[name].detach().double() for name in names]
            totals = [total + more for total, more in zip(totals, part, strict=True)] if totals else part
        norm = nn.utils.clip_grad_norm_(self.bare.parameters(), self.config.optimizer.clip or math.inf)
        rate = learning_rate(self.step, self.config.steps, self.config.optimizer)
        set_learning_rate(self.optimizers, rate)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        means = [total / divisor[name] for name, total in zip(names, totals, strict=True)]
        record = {
            "split": "train",
            "step": self.step,
            "bp": self.step * self.config.global_batch * objective.window_bp(),
            "lr": rate,
        }
        self.pending.append((record, torch.stack([*means, norm.detach().double()]), names))

    def _divisors(self, names: list[str], counts: Tensor) -> dict[str, float | Tensor]:
        """Counts over all processes, at least 1 each: numbers of one process, of several tensors on the device.

        Nothing is read back from a device here: the CPU prepares the next step while a GPU computes this one.
        """
        if self.accelerator.num_processes == 1:
            return dict(zip(names, counts.clamp(min=1).tolist(), strict=True))
        on_device = to_device({"counts": counts}, self.accelerator.device)["counts"]
        summed = self.accelerator.reduce(on_device, reduction="sum").clamp(min=1)
        return dict(zip(names, summed.unbind(), strict=True))

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return values
        return self.accelerator.reduce(values.to(self.accelerator.device), reduction="sum").to(values.device)

    def _flush(self) -> None:
        """Write the lines of the steps since the last flush; a loss that is not finite ends the run here."""
        if not self.pending:
            return
        seconds = time.monotonic() - self._clock
        self._clock = time.monotonic()
        values = torch.stack([v for _, v, _ in self.pending])
        means, norms = values[:, :-1], values[:, -1]
        means = self._sum_over_processes(means.cpu()).cpu()
        for (record, _, names), row, norm in zip(self.pending, means.tolist(), norms.tolist(), strict=True):
            terms = dict(zip(names, row, strict=True))
            loss = sum(w * terms[k] for k, w in self.objective.weights.items() if w)
            line = {**record, "loss": loss, **terms, "gradient_norm": norm, "seconds": seconds / len(self.pending)}
            if self.accelerator.is_main_process:
                self.run_folder.append_metrics(line)
            if self.config.trackers:
                self.accelerator.log({k: v for k, v in line.items() if k != "split"}, step=int(record["step"]))
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise RunFault(
                    f"the loss or its gradient is not finite at step {record['step']} (loss {loss}); "
                    f"{self.run_folder.saved_sentence()} Lower training.optimizer.lr and start into a new --out."
                )
        self.pending.clear()

    def _validate(self) -> None:
        if not self.accelerator.is_main_process:
            return
        start = time.monotonic()
        self.bare.eval()
        # In float32, as the final report and `had evaluate`: one model has one loss.
        with torch.no_grad():
            metrics = self.objective.validate()
        seconds = time.monotonic() - start
        if metrics:
            bp = self.step * self.config.global_batch * self.objective.window_bp()
            self.run_folder.append_metrics(
                {"split": "validation", "step": self.step, "bp": bp, **metrics, "seconds": seconds}
            )
        self._clock += seconds

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            # No checkpoint may outlive the lines that led to it.
            self.run_folder.sync_metrics()
            extra = {
                "seed": self.seed,
                "processes": self.accelerator.num_processes,
                "threads": torch.get_num_threads(),
            }
            save_training_state(
                self.run_folder.checkpoints, self.step, self.bare, self.optimizers, extra, self.config.keep_checkpoints
            )
        self.accelerator.wait_for_everyone()

    @property
    def _window_log(self) -> Path:
        return self.run_folder.path / f"windows-rank{self.accelerator.process_index}.tsv"

    def _cut_window_log(self) -> None:
        """Drop the windows of steps that will be done again."""
        if self._window_log.exists():
            lines = self._window_log.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if int(line.split("\t", 1)[0]) < self.step]
            atomic_write_text(self._window_log, "".join(kept))

    def _log_windows(self, indices: np.ndarray) -> None:
        with self._window_log.open("a", encoding="utf-8") as file:
            for contig, start, strand in self.objective.describe_windows(indices):
                file.write(f"{self.step}\t{contig}\t{start}\t{strand}\n")
