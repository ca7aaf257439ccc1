"""`had finetune`: labelled sequences to a model that predicts, its scores and their pictures.

The test rows, where there are any, meet one model: the one that validation chose.
"""

import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from had.config import to_dict
from had.console import Progress, in_words, progress, say
from had.dna.bed import BED_SUFFIXES, is_bed
from had.dna.peaks import PeakSet
from had.errors import RunFault, UserError
from had.files import atomic_write_text, sha256_of_file
from had.models.heads import HADClassifierConfig, HADForSequenceClassification, SequenceClassifier
from had.models.prediction import TrainedOn
from had.models.saving import WEIGHTS_FILE, find_folder
from had.models.student import HADModel
from had.training.checkpoints import latest_valid
from had.training.devices import choose_device, choose_precision, keep_freed_memory, memory_faults, set_threads
from had.training.finetuning_batches import Part, collate
from had.training.finetuning_card import known_of_base
from had.training.finetuning_config import SCRATCH, FinetuneConfig
from had.training.finetuning_data import FinetuningData, load_data
from had.training.finetuning_evidence import windows_of
from had.training.finetuning_loop import Classifier, Fit, FitResult
from had.training.finetuning_peaks import PeaksConfig, load_peaks, write_regions
from had.training.finetuning_recipe import check_recipe, schedule_epochs
from had.training.finetuning_report import describe, draw_tables, json_ready, summary, write_card
from had.training.finetuning_scores import pooled_features, predict_logits, score_logits
from had.training.run_folder import RunFolder
from had.training.runs import RunOptions

_TIMED_LETTERS = 8192
_FORWARD = 0.35
"""Share of a training pass that is forward, about."""


def finetune(config: FinetuneConfig, out: Path, options: RunOptions | None = None) -> dict[str, Any]:
    """Fine-tune a student on labelled sequences.

    Parameters
    ----------
    config
        Data, model and recipe.
    out
        Run folder: ``model/`` with its card (loads with `had.load`, as the run folder does), ``metrics.json``,
        ``metrics.jsonl``, ``config.yaml``, ``run.json``, ``checkpoints/`` and pictures.
    options
        Device, threads, resume (``stop_after`` counts epochs), dry run.

    Returns
    -------
    dict
        The content of ``metrics.json``; empty for a dry run, and where ``stop_after`` ended the run before its end.

    Raises
    ------
    UserError
        If data, model or options are wrong; nothing was written then.
    RunFault
        If the loss is not finite, memory does not suffice or the disk is full.
    """
    options = options or RunOptions()
    keep_freed_memory()
    set_threads(options.threads)
    device = choose_device(options.device)
    if options.resume is None:
        # Before the data are read, which may take minutes, and in a dry run too.
        RunFolder.check_free(out, to_dict(config))
    data, peaks = read_data(config, progress=not options.quiet)
    # Loaded before the folder is made: a wrong name must leave nothing behind.
    model, digest = build_model(config, data, device, options.quiet)
    known = {} if config.model == SCRATCH else known_of_base(find_folder(config.model))
    for line in [*describe(config, data, model), *(peaks.notes if peaks else [])]:
        say(line)
    if options.dry_run:
        seconds = estimate_seconds(config, data, model)
        say(f"would write {out}/model, metrics.json and pictures in about {in_words(seconds)}; nothing was written")
        return {}
    run = RunFolder.open(
        out,
        to_dict(config),
        sys.argv,
        {**data.digests, **digest},
        resume=options.resume,
        seed=config.seed,
        threads=torch.get_num_threads(),
        precision=choose_precision(config.training.precision, device),
        # Checked by their content instead: files may move.
        may_differ={"data", "model", "genome"},
    )
    try:
        for note in run.notes:
            say(note)
        if peaks is not None:
            say(f"regions are in {' and '.join(map(str, write_regions(peaks, run.path)))}")
        base = {"name": config.model, "digest": digest.get("model"), **known}
        advice = "into another --out, show fewer letters at once (training.letters_per_pass=4096) or cut sequences "
        with memory_faults(f"{advice}(max_length=1000); or use --device cpu"):
            return _run(config, data, model, base, run, options)
    except OSError as error:
        raise RunFault(f"{error.filename or out}: {error.strerror or error}. {run.saved_sentence()}") from error
    finally:
        run.close()


def read_data(config: FinetuneConfig, progress: bool = True) -> tuple[FinetuningData, PeakSet | None]:
    """The configured data made ready, and the regions where they are peaks of a genome.

    Raises
    ------
    UserError
        If a file cannot be used, or peaks come without genome.
    """
    path = Path(config.data)
    if is_bed(path):
        if not config.genome:
            raise UserError(f"{path} holds intervals: pass their reference FASTA with --genome")
        if config.labels or config.split != "auto":
            option = "--labels" if config.labels else "--split"
            raise UserError(f"{option} goes with labelled sequences; {path} holds peaks, which are split by contig")
        if config.task not in ("auto", "binary"):
            raise UserError(f"peaks against background are a binary task; got --task {config.task}")
        return load_peaks(
            path,
            config.genome,
            config.peaks,
            valid_fraction=config.valid_fraction,
            test_fraction=0.1 if config.test_fraction is None else config.test_fraction,
            seed=config.seed,
            max_length=config.max_length,
            progress=progress,
        )
    if config.genome:
        raise UserError(f"--genome goes with peaks ({', '.join(BED_SUFFIXES)}); {path} is none of these")
    if config.peaks != PeaksConfig():
        changed = ", ".join(
            f"peaks.{name}" for name, value in to_dict(config.peaks).items() if value != to_dict(PeaksConfig())[name]
        )
        raise UserError(
            f"{changed} (--width, --negatives, --blacklist, --valid-contig, --test-contig) goes with peaks; "
            f"{path} holds labelled sequences, which are split by their column split or by locus"
        )
    data = load_data(
        path,
        task=config.task,
        label_columns=config.labels,
        split=config.split,
        valid_fraction=config.valid_fraction,
        test_fraction=config.test_fraction or 0.0,
        seed=config.seed,
        max_length=config.max_length,
    )
    return data, None


def build_model(
    config: FinetuneConfig, data: FinetuningData, device: torch.device, quiet: bool = True
) -> tuple[HADForSequenceClassification, dict[str, str]]:
    """A student with a fresh head for the data's task, on ``device``, and the checksum of its weights."""
    check_recipe(config.training, data.task.kind)
    torch.manual_seed(config.seed)
    digest = {}
    if config.model == SCRATCH:
        with memory_faults("use smaller sizes (student.hidden_size)", UserError):
            student = HADModel(config.student)
    else:
        folder = find_folder(config.model)
        student = HADModel.from_pretrained(folder)
        digest = {"model": sha256_of_file(folder / WEIGHTS_FILE)}
    parts = (data.train, data.valid, *([data.test] if data.test is not None else []))
    if (longest := max(int(part.lengths.max()) for part in parts)) > student.config.max_length:
        raise UserError(
            f"{config.data} has a sequence of {longest:,} bp, but the model reads up to {student.config.max_length:,}; "
            f"set max_length={student.config.max_length}, and longer ones are cut to their middle"
        )
    mean, scale = 0.0, 1.0
    if data.task.kind == "regression":
        mean, scale = float(data.train.targets.mean()), float(data.train.targets.std())
        # In floating point the deviation of equal values need not be 0, and that of tiny ones may be.
        if data.train.targets.min() == data.train.targets.max() or scale == 0:
            raise UserError(
                f"{config.data}: all training values are {data.train.targets[0]:g}, or too near to be told apart; use "
                "other units, or other rows"
            )
    windows = 0
    if not config.freeze:
        windows, data.positions = windows_of(data.task.kind, data.train, config.training.positions, quiet)
    lengths = data.train.lengths
    heads = HADClassifierConfig(
        data.task.kind,
        list(data.task.classes),
        config.training.dropout,
        False,
        mean,
        scale,
        student.config,
        windows,
        TrainedOn(int(lengths.min()), int(lengths.max()), config.peaks.width, data.anchor),
    )
    # The head's weights follow from the seed alone, not from how many numbers the student's took.
    torch.manual_seed(config.seed + 1)
    return HADForSequenceClassification(heads, student).to(device), digest


def estimate_seconds(config: FinetuneConfig, data: FinetuningData, model: SequenceClassifier) -> float:
    """About how long the run will take on this machine: a pass over some rows is timed, and the rest follows."""
    order = np.random.default_rng(0).permutation(len(data.train))
    chosen = order[: 1 + int(np.searchsorted(np.cumsum(data.train.lengths[order]), _TIMED_LETTERS))]
    ids, mask = collate([data.train.codes[i] for i in chosen])
    elapsed = 0.0
    for _ in range(2):
        # The second time counts: the first may compile.
        started = time.monotonic()
        with torch.set_grad_enabled(not config.freeze):
            total = model(ids, mask, conjoin=False).logits.float().sum()
            if not config.freeze:
                total.backward()
        total.item()
        elapsed = time.monotonic() - started
    model.zero_grad(set_to_none=True)
    each = elapsed / int(data.train.lengths[chosen].sum())
    train, valid = (int(part.lengths.sum()) for part in (data.train, data.valid))
    test = 0 if data.test is None else int(data.test.lengths.sum())
    if config.freeze:
        return 2 * each * (train + valid + test)
    epochs = schedule_epochs(config.training, len(data.train))
    return each * (epochs * train + _FORWARD * ((epochs + 3) * valid + 1.5 * test))


def fit_model(
    config: FinetuneConfig,
    data: FinetuningData,
    model: Classifier,
    advance: Progress | None = None,
    *,
    log: Callable[[dict[str, Any]], None] | None = None,
    states: Path | None = None,
    save_seconds: float = 0.0,
) -> tuple[FitResult[Classifier], dict[str, Any]]:
    """Fine-tune without a run folder, as a benchmark does: the result, and the scores of its one test (or {}).

    Parameters
    ----------
    config, data, model
        Recipe, rows, and the model to train.
    advance, log
        Are told the rows of every batch, and the scores of every epoch.
    states, save_seconds
        Folder that keeps the state after an epoch, not more often than this; what it holds is gone on from. It must be
        of nothing but this model, data and recipe.
    """
    resume_from = None if states is None else latest_valid(states)[0]
    result = _fit(config, data, model).run(
        log=log, advance=advance, checkpoints=states, resume_from=resume_from, save_seconds=save_seconds
    )
    if data.test is None:
        return result, {}
    return result, scores_of_test(result.model, data, data.test, logits_of(result.model, data.test, config.freeze))


def logits_of(
    model: SequenceClassifier, part: Part, freeze: bool, advance: Progress | None = None
) -> NDArray[np.float32]:
    """Logits (n, K) of all rows as a fine-tuned model's prediction gives them; ``advance`` is told the rows done."""
    if freeze and part.features is None:
        part.features = pooled_features(model, part, advance=advance)
    elif part.features is not None and advance is not None:
        advance(len(part))
    return predict_logits(model, part, model.config.conjoin, advance=advance)


def scores_of_test(
    model: SequenceClassifier, data: FinetuningData, test: Part, logits: NDArray[np.float32]
) -> dict[str, Any]:
    """Metrics of the test rows by their logits (n, K), of all of them and of those that do not stand in train."""
    scores: dict[str, Any] = {"test": score_logits(model, test.targets, logits)}
    new = ~data.test_in_train
    if data.test_in_train.any() and new.any():
        scores["test_not_in_train"] = score_logits(model, test.targets[new], logits[new])
    return scores


def _fit(config: FinetuneConfig, data: FinetuningData, model: Classifier, quiet: bool = True) -> Fit[Classifier]:
    bf16 = choose_precision(config.training.precision, model.device) == "bf16"
    return Fit(
        model, data.train, data.valid, config.training, seed=config.seed, freeze=config.freeze, bf16=bf16, quiet=quiet
    )


def _run(
    config: FinetuneConfig,
    data: FinetuningData,
    model: HADForSequenceClassification,
    base: dict[str, Any],
    run: RunFolder,
    options: RunOptions,
) -> dict[str, Any]:
    start = time.monotonic()
    fit = _fit(config, data, model, options.quiet)
    total = len(data.train) * fit.epochs
    with progress(total, "fine-tuning", "rows", quiet=options.quiet) as advance:
        result = fit.run(
            log=run.append_metrics,
            advance=advance,
            checkpoints=run.checkpoints,
            resume_from=run.resume_from,
            stop_after=options.stop_after,
        )
    if not result.finished:
        say(f"stopped after epoch {result.epochs_run}. {run.saved_sentence()}")
        return {}
    seconds = time.monotonic() - start + result.seconds_before
    shown, name = (data.valid, "validation") if data.test is None else (data.test, "test")
    with progress(len(shown), f"predicting the {name} rows", "rows", quiet=options.quiet) as advance:
        logits = logits_of(result.model, shown, config.freeze, advance)
    scores = {} if data.test is None else scores_of_test(result.model, data, data.test, logits)
    report: dict[str, Any] = {
        "task": data.task.kind,
        "classes": list(data.task.classes),
        "metric": result.metric,
        "best_epoch": result.epoch,
        "epochs_run": result.epochs_run,
        "epochs": fit.epochs,
        "validation_split": data.split,
        "validation": result.validation,
        **scores,
        "conjoin": result.model.config.conjoin,
        "conjoin_validation": result.conjoin_scores,
        "rc_augment": result.rc_augment,
        "windows": model.config.windows,
        "trained_on": asdict(model.config.trained_on) if model.config.trained_on else None,
        "position_evidence": None if data.positions is None else data.positions._asdict(),
        "strand_evidence": None if result.strands is None else result.strands._asdict(),
        "model": config.model,
        "frozen": config.freeze,
        "parameters": sum(p.numel() for p in result.model.parameters()),
        "parameters_trained": sum(p.numel() for p in fit.model.parameters() if p.requires_grad),
        "seed": config.seed,
        "seconds": round(seconds, 1),
        "machine": f"{result.model.device.type}, {torch.get_num_threads()} thread(s), {platform.machine()}",
        "data": data.facts,
        "data_sha256": data.digests,
    }
    report |= draw_tables(result.model, shown, logits, name, run.path, data)
    result.model.save_pretrained(run.path / "model")
    write_card(run.path / "model", config, report, base, sys.argv)
    text = json.dumps(json_ready(report), indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write_text(run.path / "metrics.json", text + "\n")
    for line in summary(report, run.path):
        say(line)
    return report
