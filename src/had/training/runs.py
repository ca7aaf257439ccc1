"""What `pretrain` and `teacher train` share: open the data, make or resume the run folder, train, draw the losses."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from had.console import say
from had.errors import RunFault, UserError
from had.files import atomic_write_text
from had.training.data import DataConfig, WindowData
from had.training.devices import choose_precision, keep_freed_memory, make_accelerator, memory_faults, set_threads
from had.training.held_out import BLOCK, as_lines, baseline_records, report
from had.training.loop import Objective, Trainer, TrainingConfig
from had.training.plots import plot_losses
from had.training.run_folder import RunFolder


@dataclass
class RunOptions:
    """How this invocation runs; nothing here changes what is learnt."""

    resume: str | None = None
    """auto, the path of a checkpoint, or None for a new run."""
    stop_after: int | None = None
    """Stop once this step is done; the schedule stays the recipe's."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    threads: int | None = None
    """CPU threads; None: the machine's default."""
    dry_run: bool = False
    """Only say what would be read, written and computed."""
    quiet: bool = False
    """No progress bar and no remarks."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning with a UserError."""
        if self.stop_after is not None and self.stop_after < 1:
            raise UserError(f"--stop-after must be at least 1; got {self.stop_after}")


class RunConfig(Protocol):
    """The parts of a recipe that every run has."""

    seed: int
    data: DataConfig
    training: TrainingConfig


def execute(
    config: Any,
    out: Path,
    options: RunOptions,
    make_objective: Callable[[WindowData, Any], Objective],
    digests: Mapping[str, str] | None = None,
) -> int:
    """Run a recipe from its start, or from a checkpoint, to its end; return the step reached.

    ``digests`` are checksums of what the run reads besides the genome: a resumed run must read the same.
    """
    keep_freed_memory()
    set_threads(options.threads)
    training: TrainingConfig = config.training
    data = WindowData.open(config.data, config.seed, progress=not options.quiet)
    accelerator = make_accelerator(training.precision, options.device, training.trackers, out)
    main = accelerator.is_main_process
    if main:
        for line in data.facts():
            say(line)
        say(_plan(config, accelerator, out))
    if options.dry_run:
        return 0
    with memory_faults("use smaller sizes (model.hidden_size) or a smaller teacher", UserError):
        objective = make_objective(data, accelerator)
    digests = {"genome": data.genome.digest, **objective.digests(), **(digests or {})}
    run = _open_run(config, out, options, digests, accelerator)
    try:
        # As `had evaluate`: blocks that span as much of the genome, however few of its tiles are validated on.
        block = -(-BLOCK // data.validation_spacing)
        return _train(objective, training, run, accelerator, config.seed, options, block)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        raise RunFault(f"{name}{error.strerror or error}. {run.saved_sentence()}") from error
    except RunFault as fault:
        # Files are also written by parts that know nothing of runs.
        sentence = run.saved_sentence()
        raise RunFault(str(fault) if sentence in str(fault) else f"{fault} {sentence}") from fault
    finally:
        run.close()


def _train(
    objective: Objective,
    training: TrainingConfig,
    run: RunFolder,
    accelerator: Any,
    seed: int,
    options: RunOptions,
    block: int,
) -> int:
    """Baselines, training, final report and picture."""
    main = accelerator.is_main_process
    if training.trackers:
        accelerator.init_trackers("had", config={})
    if main and run.resume_from is None:
        for record in baseline_records(objective.scores()):
            run.append_metrics(record)
    trainer = Trainer(objective, training, run, accelerator, seed=seed, quiet=options.quiet)
    step = trainer.run(resume_from=run.resume_from, stop_after=options.stop_after)
    if training.trackers:
        accelerator.end_training()
    if main:
        plot_losses(run.read_metrics(), run.path / "losses.png")
        if step == training.steps and (scores := objective.scores()):
            result = report(scores, block)
            atomic_write_text(run.path / "validation.json", json.dumps(result, indent=1) + "\n")
            for line in as_lines(result):
                say(line)
    return step


def _open_run(config: Any, out: Path, options: RunOptions, digests: Mapping[str, str], accelerator: Any) -> RunFolder:
    """The main process makes or opens the folder; the others wait and only learn where to go on from."""
    if accelerator.num_processes == 1 or accelerator.is_main_process:
        run = RunFolder.open(
            out,
            config,
            sys.argv,
            digests,
            resume=options.resume,
            seed=config.seed,
            threads=torch.get_num_threads(),
            processes=accelerator.num_processes,
            precision=choose_precision(config.training.precision, accelerator.device),
            # Checked by their content instead: files may move.
            may_differ={"genome", "cache", "verify_cache"},
        )
        for note in run.notes:
            say(note)
    else:
        run = RunFolder(out)
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        where = [run.resume_from]
        broadcast_object_list(where)
        run.resume_from = where[0]
    return run


def _plan(config: Any, accelerator: Any, out: Path) -> str:
    training = config.training
    bp = training.steps * training.global_batch * config.data.window
    processes, threads = accelerator.num_processes, torch.get_num_threads()
    precision = "bfloat16 autocast" if accelerator.mixed_precision == "bf16" else "float32"
    return (
        f"{training.steps:,} steps of {training.global_batch:,} windows of {config.data.window:,} bp: "
        f"{bp / 1e6:,.1f} Mbp, on {processes} process(es) of {threads} thread(s), device {accelerator.device.type}, "
        f"{precision}; into {out}."
    )
