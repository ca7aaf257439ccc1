"""`had benchmark`: models on the tasks of a published suite, each (task, model, seed) once, and their report."""

import dataclasses
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from had.config import check_seed
from had.console import in_words, progress, say
from had.errors import Interrupted, RunFault, UserError
from had.evaluation.benchmark_folder import BenchmarkFolder
from had.evaluation.contestants import Contestant, check_settings, fit_configs, parse_models
from had.evaluation.costs import Costs
from had.evaluation.hub_data import fetch
from had.evaluation.layouts import HUB_PATTERNS, SHARED_PATTERNS, need_task, tasks_here
from had.evaluation.protocols import BenchmarkTask, Suite, chosen_tasks, find_suite, smallest_first
from had.evaluation.report import write_report
from had.evaluation.schedule import Planned, run_in_parallel, run_serially
from had.evaluation.suite_data import TaskData
from had.evaluation.unit_files import Unit
from had.evaluation.units import Job, Shelf, TaskSpec, settings_of, stands_for_every_seed
from had.models.saving import DEFAULT_MODEL
from had.training.devices import choose_device, keep_freed_memory, set_threads
from had.training.finetuning_recipe import FitConfig, schedule_epochs

HUB = "hub"
DEFAULT_MODELS = ("had", "scratch", "probe", "kmer", "places", "places-boosted", "cnn")


@dataclass
class BenchmarkOptions:
    """What is compared on what, and how it is run."""

    data: str
    """Folder of the suite; ``hub`` for its repository on the Hugging Face Hub, ``hub:owner/name`` for another."""
    tasks: Sequence[str] = ()
    """Names of tasks; none: all that are in the folder, smallest first."""
    models: Sequence[str] = DEFAULT_MODELS
    """Rows, see `had.evaluation.contestants`."""
    seeds: int | None = None
    """How many; None: as many as the suite's protocol."""
    first_seed: int = 0
    """They are this one and those after it; with the first one the learning rate is chosen."""
    model: str = DEFAULT_MODEL
    """The student of had and probe, and the sizes of scratch."""
    teacher: str = "bundled"
    """The teacher of teacher and teacher-probe."""
    revision: str = "main"
    """Branch, tag or commit on the Hub."""
    recipe: str = "protocol"
    """protocol or finetune, see `had.evaluation.contestants.fit_configs`."""
    split: str = "protocol"
    """Validation rows where the suite has none: protocol (row by row) or locus."""
    max_train_rows: int | None = None
    """Cap on training rows, for a quick look; the scores then compare with nothing published."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the recipes by section: training, teacher, cnn."""
    device: str = "auto"
    threads: int | None = None
    """CPU threads of each process; None: the machine's, shared among ``jobs``."""
    jobs: int = 1
    """Units that are computed at the same time, each in a process of its own."""
    dry_run: bool = False
    quiet: bool = False


def benchmark(suite_name: str, out: Path, options: BenchmarkOptions) -> dict[str, Any]:
    """Run what is not there yet and write the report.

    Parameters
    ----------
    suite_name
        ``gue``, ``genomic-benchmarks`` or ``nucleotide-transformer``.
    out
        Folder of the results; scores that are there are kept and never computed again.
    options
        What is compared on what.

    Returns
    -------
    dict
        ``done`` (units computed now), ``there`` (found before) and ``report`` (paths).

    Raises
    ------
    UserError
        If an option, a model or data are wrong, or the folder holds other scores; nothing was written then.
    RunFault
        If a unit failed (the others are done), a worker was killed, or the disk refused.
    """
    keep_freed_memory()
    suite = find_suite(suite_name)
    seeds = _seeds(suite, options)
    threads = _threads(options)
    set_threads(threads)
    device = choose_device(options.device)
    contestants = parse_models(options.models, options.model, options.teacher)
    notes = check_settings(options.recipe, options.changes, contestants)
    specs, origin, left_out = _specs(suite, options)
    shelf = Shelf()
    look = BenchmarkFolder.look(out, suite.name)
    look.check_whole()
    planned, there = _plan(look, specs, contestants, seeds, options, shelf, device)
    for line in _describe(suite, specs, contestants, seeds, planned, there, origin, options, shelf):
        say(line)
    for note in notes:
        say(note)
    for name, reason in left_out.items():
        say(f"  {name} is left out: {reason}")
    if options.dry_run:
        say(f"would write {out}/scores.csv, predictions and the report; nothing was written")
        return {"done": 0, "there": there, "report": []}
    facts = {"threads": torch.get_num_threads(), "jobs": options.jobs, "device": device.type, "source": origin}
    facts |= {"machine": platform.machine(), "recipe": options.recipe, "split": options.split, "left_out": left_out}
    folder = BenchmarkFolder.open(out, suite.name, facts)
    try:
        wanted = [Unit(spec.task.name, who.name, seed) for spec in specs for who in contestants for seed in seeds]
        folder.adopt(wanted)
        done, failed = _run(folder, planned, shelf, options, threads)
        by_name = {spec.task.name: spec for spec in specs}

        def load(name: str) -> TaskData | None:
            return shelf.get(by_name[name]) if name in by_name else None

        paths = write_report(folder, suite, load, failed, options.quiet)
    except KeyboardInterrupt as stop:
        raise Interrupted(
            f"interrupted; the {len(folder.rows)} finished units are in {out}, and the same command goes on from there"
        ) from stop
    finally:
        folder.close()
    for path in paths:
        say(f"wrote {path}")
    if failed:
        _raise(failed, done, out)
    return {"done": done, "there": there, "report": paths}


def _raise(failed: Mapping[Unit, Exception], done: int, out: Path) -> None:
    unit, reason = next(iter(failed.items()))
    others = f"the others are in {out}, and " if done else ""
    raise RunFault(
        f"{len(failed)} of {done + len(failed)} units failed, first {unit.task}, {unit.model}, seed {unit.seed} "
        f"({reason}); {others}the same command tries these again"
    )


def _seeds(suite: Suite, options: BenchmarkOptions) -> tuple[int, ...]:
    count = suite.seeds if options.seeds is None else options.seeds
    if count < 1:
        raise UserError(f"--seeds must be at least 1; got {count}")
    check_seed(options.first_seed)
    return tuple(range(options.first_seed, options.first_seed + count))


def _threads(options: BenchmarkOptions) -> int | None:
    if options.jobs < 1:
        raise UserError(f"--jobs must be at least 1; got {options.jobs}")
    if options.threads is None and options.jobs > 1:
        return max(1, (os.cpu_count() or 1) // options.jobs)
    return options.threads


def _specs(suite: Suite, options: BenchmarkOptions) -> tuple[list[TaskSpec], str, dict[str, str]]:
    """The tasks with their files, where these are from in words, and why others that nobody named cannot be run."""

    def spec(folder: Path, task: BenchmarkTask, is_its_own: bool = False) -> TaskSpec:
        files = need_task(folder, suite, task, is_its_own=is_its_own)
        return TaskSpec(suite, task, files, options.split, options.max_train_rows)

    if options.data != HUB and not options.data.startswith(f"{HUB}:"):
        folder = Path(options.data)
        if options.tasks:
            return [spec(folder, task) for task in chosen_tasks(suite, options.tasks)], str(folder.resolve()), {}
        usable, left_out = [], {}
        for task in tasks_here(folder, suite):
            try:
                usable.append(spec(folder, task))
            except UserError as error:
                left_out[task.name] = str(error)
        if not usable:
            raise UserError(next(iter(left_out.values())))
        return usable, str(folder.resolve()), left_out
    named = options.data.partition(":")[2] or suite.hub
    tasks = chosen_tasks(suite, options.tasks) if options.tasks else smallest_first(suite.tasks)
    specs, commits = [], {}
    for task in tasks:
        own = "{task}" in named
        repository = named.replace("{task}", task.name)
        patterns = [pattern.format(place=place) for pattern in HUB_PATTERNS for place in task.places]
        has = partial(_has, suite, task, own)
        found = fetch(repository, options.revision, None if own else [*patterns, *SHARED_PATTERNS], task.name, has)
        commits[repository] = found.commit
        specs.append(spec(found.path, task, own))
    return specs, "Hugging Face Hub, " + ", ".join(f"{name} at {commit}" for name, commit in commits.items()), {}


def _has(suite: Suite, task: BenchmarkTask, is_its_own: bool, folder: Path) -> bool:
    """Whether a task is there with all it needs: a download that was cut off leaves some of its files."""
    try:
        need_task(folder, suite, task, is_its_own=is_its_own)
    except UserError:
        return False
    return True


def _plan(
    folder: BenchmarkFolder,
    specs: Sequence[TaskSpec],
    contestants: Sequence[Contestant],
    seeds: Sequence[int],
    options: BenchmarkOptions,
    shelf: Shelf,
    device: torch.device,
) -> tuple[list[Planned], int]:
    """Jobs for the units that are not there; and how many are."""
    costs = Costs(device, options.model)
    planned: list[Planned] = []
    there = 0
    for spec in specs:
        data = shelf.get(spec)
        digest = data.train_digest()
        for contestant in contestants:
            configs: tuple[FitConfig, ...] = ()
            if contestant.is_fitted:
                configs = tuple(fit_configs(spec.suite, spec.task, contestant, options.recipe, options.changes))
            settings = settings_of(spec, contestant, configs, digest)
            job = Job(spec, contestant, tuple(seeds), configs, settings, folder.path, options.model, options.device)
            folder.check(spec.task.name, contestant.name, settings)
            pending = tuple(seed for seed in seeds if not folder.is_done(job.unit(seed)))
            there += len(seeds) - len(pending)
            if pending:
                folder.check_predictions(spec.task.name, contestant.name)
                job = dataclasses.replace(job, seeds=pending, configs=_decided(folder, job))
                n_train = len(data.rows) - data.n_dev
                rows = n_train * schedule_epochs(configs[0], n_train) if configs else 0
                seconds = costs.seconds(contestant, data, job.configs[:1])
                planned.append(Planned(job, seconds, rows, stands_for_every_seed(contestant, data)))
        folder.check_test(spec.task.name, partial(spec.files.digest, "test"))
        if planned and planned[-1].job.spec is spec:
            spec.files.check("test")
    return planned, there


def _decided(folder: BenchmarkFolder, job: Job) -> tuple[FitConfig, ...]:
    """The recipe that an earlier seed chose; else all of them."""
    if len(job.configs) > 1:
        for record in folder.records_of(job.spec.task.name, job.contestant.name):
            if chosen := tuple(config for config in job.configs if config.lr == record.facts.get("lr")):
                return chosen
    return job.configs


def _describe(
    suite: Suite,
    specs: Sequence[TaskSpec],
    contestants: Sequence[Contestant],
    seeds: Sequence[int],
    planned: Sequence[Planned],
    there: int,
    origin: str,
    options: BenchmarkOptions,
    shelf: Shelf,
) -> list[str]:
    units = sum(len(item.job.seeds) for item in planned)
    total = sum(item.cost for item in planned)
    lines = [
        f"{suite.title}: {len(specs)} task(s), {len(contestants)} model(s), {len(seeds)} seed(s): {units:,} unit(s) to "
        f"compute, about {in_words(total / options.jobs)}; {there:,} there already",
        f"data: {origin}",
    ]
    if len(seeds) < 3:
        lines.append("fewer than 3 seeds: the report marks every number")
    for spec in specs:
        data = shelf.get(spec)
        of_task = [item for item in planned if item.job.spec.task == spec.task]
        cost = ", ".join(f"{item.job.contestant.name} {in_words(item.cost)}" for item in of_task) or "nothing to do"
        sizes = f"{len(data.rows) - data.n_dev:,} training rows" + (f", {data.n_dev:,} dev" if data.n_dev else "")
        lines.append(f"  {spec.task.name}: {sizes}; {cost}" + "".join(f"; {note}" for note in data.notes))
    return lines


def _run(
    folder: BenchmarkFolder, planned: Sequence[Planned], shelf: Shelf, options: BenchmarkOptions, threads: int | None
) -> tuple[int, dict[Unit, Exception]]:
    """Compute all jobs; the number of units done, and why others failed."""
    total = sum(item.cost for item in planned)
    n_units = sum(len(item.job.seeds) for item in planned)
    failed: dict[Unit, Exception] = {}
    done, spent, started = 0, 0.0, time.monotonic()
    if not planned:
        return 0, {}
    with progress(max(1, round(total)), "benchmark", "s of estimated work", quiet=options.quiet) as bar:
        if options.jobs == 1:
            events = run_serially(planned, shelf, bar)
        else:
            events = run_in_parallel(planned, options.jobs, threads or 1, bar)
        for event in events:
            spent += event.cost
            for unit in event.failed:
                if event.reason is not None:
                    failed[unit] = event.reason
                say(f"{unit.task}, {unit.model}, seed {unit.seed} failed: {event.reason}")
            if event.record is None:
                continue
            folder.add(event.record)
            done += 1
            left = (time.monotonic() - started) * max(0.0, total - spent) / max(spent, 1e-9)
            row = event.record.row
            say(
                f"{row['task']}, {row['model']}, seed {row['seed']}: {row['metric']} {float(row['value']):.4f} in "
                f"{in_words(float(row['seconds']))}; {done} of {n_units}, about {in_words(left)} left"
            )
    return done, failed
