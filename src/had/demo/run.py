"""`had demo`: pre-train on a bundled slice of the human genome, probe what was learnt, draw it, and say it in words."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from had import __version__
from had.assets import DEMO_GENOME, DEMO_SPLIT, DEMO_TASK
from had.baselines.kmer_regression import KmerLogisticRegression
from had.config import apply_overrides, build, load_recipe
from had.console import say
from had.demo.folder import check_free, claim, write_summary
from had.demo.probing import KMER, LayerScore, as_csv, best_layer, difference, probe_kmers, probe_model
from had.demo.report import closing_table, console, layer_table, summary_text
from had.demo.verdict import Check, judge
from had.dna.labelled import LabelledSequences, read_splits
from had.errors import RunFault, UserError
from had.evaluation.features import student_layers, teacher_layers
from had.evaluation.pictures import Panel, plot_panels, tsne
from had.files import atomic_write_text
from had.models.student import HADModel
from had.models.teacher_loading import load_teacher
from had.models.teachers import NTv2Teacher
from had.training.devices import choose_device, set_threads
from had.training.plots import plot_losses
from had.training.pretraining import PretrainConfig, pretrain
from had.training.run_folder import RunFolder
from had.training.runs import RunOptions

PROBE_SEEDS = (0, 1, 2)
UNTRAINED, DISTILLED, TEACHER, KMERS = "untrained student", "distilled student", "teacher", "6-mer counts"
_PREDICTORS = {
    "mean_vector": "mean feature",
    "kmer_table": "mean of the same 6-mer",
    "frequency": "base frequencies",
    "two_sided": "order-5 Markov model",
}
_CLASS_NAMES = {"0": "other sequence", "1": "promoter"}


@dataclass
class DemoOptions:
    """How the demo runs."""

    steps: int | None = None
    """Optimizer steps; None: the recipe's, which are enough to show learning."""
    seed: int | None = None
    """Of weights, windows, strands and masks; None: the recipe's."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    threads: int | None = None
    """CPU threads; None: the machine's default."""
    dry_run: bool = False
    """Only say what would be done."""
    quiet: bool = False
    """No progress bar and no remarks; the results are still printed."""
    overrides: Sequence[str] = ()
    """Changes to the recipe ``demo``: dotted ``key=value``."""
    probe_rows: int | None = None
    """Probe on the first so many rows of each split instead of all: a quicker, blunter look."""


@dataclass
class DemoResult:
    """What came out."""

    checks: list[Check]
    scores: list[LayerScore]
    """Every layer of every model."""
    chosen: list[LayerScore]
    """The best layer of each model, by development rows."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds of each phase."""

    @property
    def passed(self) -> bool:
        """Whether learning was shown."""
        return all(check.passed for check in self.checks)


def demo(out: Path, options: DemoOptions | None = None) -> DemoResult | None:
    """Show on the bundled data that distillation learns, or fail.

    Parameters
    ----------
    out
        Folder of the results; an earlier demo in it is replaced.
    options
        Steps, seed, device and the like.

    Returns
    -------
    DemoResult, or None for a dry run.

    Raises
    ------
    had.errors.UserError
        An option cannot be used, or ``out`` holds something else than a demo; nothing was written.
    had.errors.RunFault
        Learning was not shown (everything is written and printed before), or a fault while working.
    """
    options = options or DemoOptions()
    config = demo_config(options)
    set_threads(options.threads)
    splits = {name: _first(rows, options.probe_rows) for name, rows in read_splits(DEMO_TASK).items()}
    earlier = check_free(out)
    device = choose_device(options.device)
    if options.dry_run:
        pretrain(config, out / "pretrain", _run_options(options))
        say(f"Then probes of {len(splits['test'])} promoter test rows and pictures. {_about(earlier, out)}")
        return None
    teacher = load_teacher(config.teacher.name, config.teacher.options, device, config.seed)
    if not isinstance(teacher, NTv2Teacher):
        raise UserError(f"the demo probes every layer of its teacher, and {teacher.name} is no Nucleotide Transformer")
    usual = options.steps is None and not options.overrides
    say(f"had demo: {'about seven minutes on two CPU cores. ' if usual else ''}{_about(earlier, out)}")
    lock = claim(out)
    try:
        with threadpool_limits(options.threads):
            result = _run(config, out, options, splits, teacher, device)
    finally:
        lock.release()
    if not result.passed:
        raise RunFault(
            f"the demo did not show learning: {'; '.join(c.sentence() for c in result.checks if not c.passed)}. "
            f"Everything is in {out}; more --steps learn more."
        )
    return result


def demo_config(options: DemoOptions) -> PretrainConfig:
    """The packaged recipe ``demo`` on the bundled genome, with the options laid over it."""
    values = apply_overrides(load_recipe("demo"), options.overrides)
    values["data"] = {**(values.get("data") or {}), "genome": [str(DEMO_GENOME)], "bed": str(DEMO_SPLIT)}
    if options.steps is not None:
        if options.steps < 1:
            raise UserError(f"--steps must be at least 1; got {options.steps}")
        values["training"] = {**(values.get("training") or {}), "steps": options.steps}
    if options.seed is not None:
        values["seed"] = options.seed
    config: PretrainConfig = build(PretrainConfig, values, "recipe demo")
    if not (config.objective.w_align and config.objective.w_rec):
        raise UserError("the demo judges both losses: objective.w_align and objective.w_rec must not be 0")
    return config


def _run(
    config: PretrainConfig,
    out: Path,
    options: DemoOptions,
    splits: dict[str, LabelledSequences],
    teacher: NTv2Teacher,
    device: torch.device,
) -> DemoResult:
    seconds: dict[str, float] = {}
    screen = console()
    with _phase("pre-training", "1/4", seconds):
        pretrain(config, out / "pretrain", _run_options(options))
        _draw_losses(out / "pretrain", out / "losses.png")
        checks = judge(json.loads((out / "pretrain" / "validation.json").read_text(encoding="utf-8")))

    with _phase("features", "2/4", seconds):
        untrained = untrained_student(config).to(device)
        distilled = HADModel.from_pretrained(out / "pretrain" / "model").to(device)
        makers: dict[str, Callable[[Sequence[str]], dict[str, np.ndarray]]] = {
            UNTRAINED: lambda sequences: student_layers(untrained, sequences),
            DISTILLED: lambda sequences: student_layers(distilled, sequences),
            TEACHER: lambda sequences: teacher_layers(teacher, sequences),
        }
        features = {
            model: {split: make(rows.sequences) for split, rows in splits.items()} for model, make in makers.items()
        }

    with _phase("probes", "3/4", seconds):
        labels = {split: rows.labels for split, rows in splits.items()}
        scores: list[LayerScore] = []
        for model, layers in features.items():
            scores += probe_model(model, layers, labels, PROBE_SEEDS)
        scores.append(probe_kmers(KMERS, splits, PROBE_SEEDS))
        chosen = [best_layer([s for s in scores if s.model == model]) for model in (*features, KMERS)]
        atomic_write_text(out / "probes.csv", as_csv(scores, chosen, len(splits["test"])))

    with _phase("t-SNE", "4/4", seconds):
        _draw_tsne(out / "tsne.png", features, chosen, splits["test"])

    result = DemoResult(checks, scores, chosen, seconds)
    by_model = {score.model: score for score in chosen}
    megabases = config.training.steps * config.training.global_batch * config.data.window / 1e6
    text = summary_text(
        checks,
        by_model[DISTILLED],
        by_model[UNTRAINED],
        megabases,
        len(splits["test"]),
        out,
        sum(seconds.values()),
    )
    atomic_write_text(out / "README.txt", text + "\n")
    write_summary(out, _facts(config, result, by_model, megabases))
    screen.print(layer_table(scores, chosen))
    screen.print(closing_table(chosen))
    screen.print()
    screen.print(text, markup=False, highlight=False, soft_wrap=True)
    return result


def untrained_student(config: PretrainConfig) -> HADModel:
    """The very weights that the run begins with: `pretrain` draws them first of all from its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return HADModel(config.model)


def _draw_losses(run: Path, path: Path) -> None:
    """The run's losses, the predictors beside them named in words."""
    metrics = RunFolder(run).read_metrics()
    for record in metrics:
        if record.get("name") in _PREDICTORS:
            record["name"] = _PREDICTORS[record["name"]]
    plot_losses(metrics, path)


def _draw_tsne(
    path: Path,
    features: dict[str, dict[str, dict[str, np.ndarray]]],
    chosen: Sequence[LayerScore],
    test: LabelledSequences,
) -> None:
    """Maps of the test rows: each model's chosen layer, standardised as for its probe, and 6-mer frequencies."""
    panels = []
    for score in chosen:
        if score.model in features:
            title = f"{score.model}, {score.layer}"
            values = features[score.model]["test"][score.layer]
            values = (values - values.mean(0)) / np.maximum(values.std(0), 1e-6)
        else:
            title = score.model
            values = KmerLogisticRegression(ks=(KMER,)).features(test.sequences).toarray()
        panels.append(Panel(title, f"probe's test MCC {score.test_mean:.2f}", tsne(values)))
    names = [_CLASS_NAMES.get(name, name) for name in test.classes]
    plot_panels(panels, test.labels, names, path, f"t-SNE of {len(test):,} human test sequences of 70 bp")


def _facts(
    config: PretrainConfig, result: DemoResult, by_model: dict[str, LayerScore], megabases: float
) -> dict[str, object]:
    gain = difference(by_model[DISTILLED], by_model[UNTRAINED])
    return {
        "finished": True,
        "passed": result.passed,
        "had": __version__,
        "seed": config.seed,
        "steps": config.training.steps,
        "megabases": megabases,
        "seconds": {name: round(value, 1) for name, value in result.seconds.items()},
        "checks": [
            {
                "loss": check.metric,
                "student": check.student,
                "baseline": check.reference,
                "baseline_loss": check.trivial,
                "difference": [check.difference, check.low, check.high],
                "windows": check.windows,
                "passed": check.passed,
            }
            for check in result.checks
        ],
        "probes": {
            model: {
                "layer": score.layer,
                "dev_mcc": score.dev_mean,
                "test_mcc": score.test_mean,
                "test_mcc_by_seed": list(score.test),
                "interval": list(score.interval),
            }
            for model, score in by_model.items()
        },
        "distilled_minus_untrained": list(gain),
    }


@contextmanager
def _phase(name: str, number: str, seconds: dict[str, float]) -> Iterator[None]:
    """Say what begins, and how long it took."""
    say(f"[{number}] {name} …")
    start = time.monotonic()
    yield
    seconds[name] = time.monotonic() - start
    say(f"[{number}] {name}: {seconds[name]:.0f} s")


def _first(rows: LabelledSequences, n: int | None) -> LabelledSequences:
    if n is None:
        return rows
    return replace(rows, sequences=rows.sequences[:n], labels=rows.labels[:n], ids=rows.ids[:n])


def _run_options(options: DemoOptions) -> RunOptions:
    return RunOptions(device=options.device, threads=options.threads, dry_run=options.dry_run, quiet=options.quiet)


def _about(earlier: bool, out: Path) -> str:
    return f"The earlier demo in {out} is replaced." if earlier else f"Results go to {out}."
