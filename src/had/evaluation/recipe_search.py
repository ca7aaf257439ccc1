"""Searching fine-tuning's default recipe: settings × tasks × seeds, judged by validation rows alone.

The test files have no part in it: they are taken out of what is known of a task before its rows are read.

::

    RUN/trials/<task>/<setting>/seed-<n>.json   one trial each: done once, kept
    RUN/trials.csv, RUN/settings.csv            the same as a table; means and paired differences by setting and task
    RUN/table.md                                the same for people
"""

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from had.console import in_words, progress, say
from had.errors import Interrupted, RunFault, UserError
from had.evaluation.contestants import Contestant, parse_models
from had.evaluation.costs import Costs
from had.evaluation.layouts import find_task
from had.evaluation.protocols import chosen_tasks, find_suite
from had.evaluation.recipe_settings import slug
from had.evaluation.recipe_tables import write_tables
from had.evaluation.selection import as_finetuning, build_classifier, finetune_config
from had.evaluation.units import Shelf, TaskSpec
from had.evaluation.workers import worker_pool
from had.files import atomic_write_text
from had.models.saving import DEFAULT_MODEL
from had.training.devices import choose_device, keep_freed_memory, set_threads
from had.training.finetuning import fit_model
from had.training.finetuning_config import SCRATCH
from had.training.finetuning_recipe import FitConfig
from had.training.finetuning_scores import Diverged
from had.training.locking import FolderLock
from had.training.provenance import differences, with_later_keys

TRIALS = "trials"
_TABLE_SECONDS = 60.0
_MADE_OF = ("config", "data", "model", "max_train_rows", "max_dev_rows")
"""What a trial's score depends on besides task and seed."""
_TOLD = ("metric", "dev", "one_strand", "both_strands", "scores", "curve", "seconds", "note", "n_train", "n_dev")
"""What the tables need of a trial."""


@dataclass
class SearchOptions:
    """What is searched on what."""

    data: str
    """Folder of the suite."""
    tasks: Sequence[str]
    suite: str = "gue"
    model: str = DEFAULT_MODEL
    """A pre-trained student, or scratch."""
    seeds: int = 1
    first_seed: int = 0
    max_train_rows: int | None = None
    """Training rows of a task at most, the same for every setting and seed."""
    max_dev_rows: int | None = None
    """Validation rows of a task at most, likewise."""
    jobs: int = 1
    """Trials computed at the same time, each in a process of its own."""
    threads: int = 1
    """CPU threads of each."""
    device: str = "cpu"
    dry_run: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Trial:
    """One setting on one task with one seed."""

    spec: TaskSpec
    setting: str
    config: FitConfig
    seed: int
    contestant: Contestant
    max_dev_rows: int | None
    device: str
    out: Path

    @property
    def place(self) -> Path:
        """Its file."""
        name = self.spec.task.name.replace("/", "__")
        return self.out / TRIALS / name / slug(self.setting) / f"seed-{self.seed}.json"


def search(settings: Mapping[str, FitConfig], out: Path, options: SearchOptions) -> list[dict[str, Any]]:
    """Run the trials that are not there yet, and write the tables.

    Parameters
    ----------
    settings
        As `had.evaluation.recipe_settings.read_settings` gives them.
    out
        Folder of the results; trials that are there are kept and never computed again.
    options
        What is searched on what.

    Returns
    -------
    The trials, as their files hold them.

    Raises
    ------
    UserError
        If an option or data are wrong, or ``out`` holds trials made otherwise; nothing was written then.
    RunFault
        If a worker was killed, or the disk refused; finished trials are saved.
    """
    keep_freed_memory()
    set_threads(options.threads)
    trials = _trials(settings, out, options)
    shelf = Shelf()
    done, left = _sorted_out(trials, shelf)
    rows = sum(len(shelf.get(spec).rows) for spec in {trial.spec.task.name: trial.spec for trial in trials}.values())
    say(
        f"{len(settings)} settings, {len(options.tasks)} tasks ({rows:,} training and validation rows), "
        f"{options.seeds} seeds: {len(left)} trials to compute{_how_long(left, options, shelf)}, "
        f"{len(done)} there already"
    )
    if options.dry_run or not trials:
        return done
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made a folder ({error.strerror or error}); use another --out") from error
    lock = FolderLock(out / ".lock")
    if not lock.acquire():
        raise UserError(f"{out}: another search is running in this folder; wait for it, or use another --out")
    written = time.monotonic()
    try:
        with progress(len(left), "searching", "trials", quiet=options.quiet) as advance:
            for trial, result in _results(left, options, shelf):
                write_trial(trial, result)
                done.append(result)
                advance()
                say(f"{result['task']}, {result['setting']}, seed {result['seed']}: {_said(result)}")
                if time.monotonic() - written > _TABLE_SECONDS:
                    write_tables(out, list(settings), done)
                    written = time.monotonic()
        write_tables(out, list(settings), done)
    except KeyboardInterrupt as stop:
        raise Interrupted(
            f"interrupted; {len(done)} trials are in {out}, the same command goes on from there"
        ) from stop
    finally:
        lock.release()
    say(f"wrote {out / 'table.md'}, settings.csv and trials.csv")
    return done


def run_trial(trial: Trial, shelf: Shelf) -> dict[str, Any]:
    """Fit one model on the training rows and score it on the validation rows."""
    data = shelf.get(trial.spec)
    started = time.perf_counter()
    fold = data.fold(trial.seed)
    valid = fold.valid
    if trial.max_dev_rows is not None and trial.max_dev_rows < len(valid):
        valid = np.sort(np.random.default_rng(0).choice(valid, trial.max_dev_rows, replace=False))
    rows = as_finetuning(data, data.part(fold.train), data.part(valid), fold.how)
    metric = trial.spec.task.metric if trial.config.metric == "auto" else trial.config.metric
    config = dataclasses.replace(trial.config, metric=metric)
    setting = finetune_config(trial.contestant, data, config, trial.seed, DEFAULT_MODEL)
    curve: list[float] = []
    found: dict[str, Any] = {"dev": None, "one_strand": None, "both_strands": None, "scores": {}, "note": ""}
    try:
        model = build_classifier(trial.contestant, setting, rows, choose_device(trial.device))

        def log(line: dict[str, Any]) -> None:
            if line["split"] == "validation":
                curve.append(line[metric])

        result, _ = fit_model(setting, rows, model, log=log)
        found |= {
            "dev": _finite(result.validation[metric]),
            "one_strand": _finite(result.conjoin_scores.get("off", math.nan)),
            "both_strands": _finite(result.conjoin_scores.get("on", math.nan)),
            "epoch": result.epoch,
            "scores": {name: _finite(value) for name, value in result.validation.items()},
        }
    except Diverged as fault:
        found["note"] = str(fault)
    return {
        "task": trial.spec.task.name,
        "setting": trial.setting,
        "seed": trial.seed,
        "metric": metric,
        **found,
        "curve": [_finite(value) for value in curve],
        "seconds": round(time.perf_counter() - started, 2),
        "n_train": len(fold.train),
        "n_dev": len(valid),
        "validation": "; ".join([fold.how, *data.notes]),
        **_made_of(trial, data.train_digest()),
    }


def write_trial(trial: Trial, result: Mapping[str, Any]) -> None:
    """Write a trial's file; RunFault where the disk refuses."""
    try:
        trial.place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFault(f"{trial.place.parent}: cannot be made ({error.strerror or error})") from error
    atomic_write_text(trial.place, json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _trials(settings: Mapping[str, FitConfig], out: Path, options: SearchOptions) -> list[Trial]:
    if options.seeds < 1 or options.first_seed < 0:
        raise UserError(
            f"--seeds must be at least 1 and --seed not negative; got {options.seeds}, {options.first_seed}"
        )
    if options.jobs < 1:
        raise UserError(f"--jobs must be at least 1; got {options.jobs}")
    if not options.tasks:
        raise UserError("--tasks names nothing; name tasks of the suite, comma-separated")
    if options.max_dev_rows is not None and options.max_dev_rows < 2:
        raise UserError(f"--max-dev-rows must be at least 2; got {options.max_dev_rows}")
    suite = find_suite(options.suite)
    kind = "scratch" if options.model == SCRATCH else "had"
    (contestant,) = parse_models([kind], DEFAULT_MODEL if kind == "scratch" else options.model, "bundled")
    specs = []
    for task in chosen_tasks(suite, options.tasks):
        files = find_task(Path(options.data), suite, task)
        if files is None or not {"train", "dev"} & files.splits.keys():
            raise UserError(f"{options.data} has neither a train nor a dev file of {task.name}")
        # Whoever asks these files for test rows gets an error.
        known = dataclasses.replace(files, splits={k: v for k, v in files.splits.items() if k != "test"})
        specs.append(TaskSpec(suite, task, known, "protocol", options.max_train_rows))
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    # A search that is cut short has compared all settings on what it has.
    return [
        Trial(spec, name, config, seed, contestant, options.max_dev_rows, options.device, out)
        for seed in seeds
        for name, config in settings.items()
        for spec in specs
    ]


def _sorted_out(trials: Sequence[Trial], shelf: Shelf) -> tuple[list[dict[str, Any]], list[Trial]]:
    """Results of trials that are there, and trials that are not."""
    done, left = [], []
    for trial in trials:
        if not trial.place.is_file():
            left.append(trial)
            continue
        try:
            result = json.loads(trial.place.read_text(encoding="utf-8"))
            then = {key: result[key] for key in _MADE_OF}
            if absent := [key for key in _TOLD if key not in result]:
                raise ValueError(f"no {absent[0]}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{trial.place}: is no readable trial ({error}); remove it to compute it again") from error
        then["config"] = with_later_keys(then["config"], trial.config)
        now = json.loads(json.dumps(_made_of(trial, shelf.get(trial.spec).train_digest())))
        if found := differences(then, now):
            name, (was, here) = next(iter(found.items()))
            raise UserError(
                f"{trial.out}: {trial.spec.task.name}, {trial.setting}, seed {trial.seed} was made with another {name} "
                f"({str(was)[:24]}, now {str(here)[:24]}); use another --out, or another name for the setting"
            )
        # A setting may bear another name now that leads to the same file.
        done.append({**result, "task": trial.spec.task.name, "setting": trial.setting, "seed": trial.seed})
    return done, left


def _how_long(trials: Sequence[Trial], options: SearchOptions, shelf: Shelf) -> str:
    """The estimate in words: a pass of the network is timed once."""
    if not trials:
        return ""
    costs = Costs(choose_device(options.device), DEFAULT_MODEL)
    known: dict[tuple[str, int | None], float] = {}
    for trial in trials:
        if (key := (trial.spec.task.name, trial.config.epochs)) not in known:
            known[key] = costs.seconds(trial.contestant, shelf.get(trial.spec), [trial.config])
    seconds = sum(known[trial.spec.task.name, trial.config.epochs] for trial in trials)
    return f" (about {in_words(seconds / options.jobs)})"


def _made_of(trial: Trial, digest: str) -> dict[str, Any]:
    values = (
        dataclasses.asdict(trial.config),
        digest,
        trial.contestant.digest,
        trial.spec.max_train_rows,
        trial.max_dev_rows,
    )
    return dict(zip(_MADE_OF, values, strict=True))


def _results(trials: Sequence[Trial], options: SearchOptions, shelf: Shelf) -> Iterator[tuple[Trial, dict[str, Any]]]:
    if options.jobs == 1:
        for trial in trials:
            yield trial, run_trial(trial, shelf)
        return
    with worker_pool(options.jobs, options.threads, "finished trials are saved") as pool:
        waiting = {pool.submit(_work, trial): trial for trial in trials}
        for future in as_completed(waiting):
            yield waiting[future], future.result()


_worker_shelf = Shelf()


def _work(trial: Trial) -> dict[str, Any]:
    return run_trial(trial, _worker_shelf)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _said(result: Mapping[str, Any]) -> str:
    if result["dev"] is None:
        return result["note"] or "no score"
    return f"{result['metric']} {result['dev']:.4f} in {result['seconds']:.0f} s"
