"""The three published benchmarks as data: tasks, metrics, official sizes, seeds, epochs, where they are.

Sources: GUE is Zhou et al. (DNABERT-2, arXiv 2306.15006); Genomic Benchmarks Grešová et al. (BMC Genomic Data 2023),
the way it is run that of Caduceus (Schiff et al., arXiv 2403.03234, Table 1); the Nucleotide Transformer tasks
Dalla-Torre et al. (2023, the original set of 18), run as in Table 2 of Caduceus. What the sources leave open and this
project decided is marked [ours].
"""

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from had.errors import UserError


@dataclass(frozen=True)
class BenchmarkTask:
    """One data set of a suite."""

    name: str
    """As in the published tables, such as ``prom/prom_300_tata``."""
    group: str
    """Tasks whose mean is reported."""
    metric: str
    """mcc, accuracy or macro_f1."""
    n_train: int | None = None
    """Rows of the official training file; None: not on record."""
    n_test: int | None = None
    """Rows of the official test file; None: not on record."""
    folders: tuple[str, ...] = ()
    """Other names of its folder in copies of the suite."""
    official: bool = True
    """Whether it is a task of the published suite, and not one that the user's folder has beside them."""
    artefact: str = ""
    """How the data set gives labels away without any knowledge of DNA; such a task is left out of means."""

    @property
    def places(self) -> tuple[str, ...]:
        """Folders it may be in, below the data folder."""
        return (self.name, *self.folders)


@dataclass(frozen=True)
class Suite:
    """A published benchmark and how it is run."""

    name: str
    title: str
    tasks: tuple[BenchmarkTask, ...]
    metric: str
    """Of tasks that are not in the published tables."""
    seeds: int
    """Seeds of the published protocol."""
    epochs: int
    batch_size: int
    rates: tuple[float, ...]
    """Peak learning rates tried with the first seed; validation decides."""
    hub: str
    """Data set repository on the Hugging Face Hub; ``{task}`` where each task has its own."""
    inner: tuple[str, ...]
    """Folders that copies of the suite put around the tasks."""
    dev_is_given: bool
    """Whether there are official validation rows; else each seed redraws 90/10 of the training rows."""
    weight_decay: float = 0.1
    warmup: float = 0.01

    def task(self, name: str) -> BenchmarkTask:
        """Find a task by its name, or by the unique end of it (``prom_300_tata``); a task of the user's own is made.

        A name that the suite does not have is taken for a folder of the same layout below the data folder.
        """
        for task in self.tasks:
            if name in task.places:
                return task
        ends = [task for task in self.tasks if PurePosixPath(task.name).name == name]
        if len(ends) == 1:
            return ends[0]
        return BenchmarkTask(name, "of your own", self.metric, official=False)

    def nearest(self, name: str) -> list[str]:
        """Names of tasks that look like a mistyped one."""
        return difflib.get_close_matches(name, [task.name for task in self.tasks], n=3)


# The EMP sizes of GUE: training 80 %, dev and test 10 % each of the Nucleotide Transformer's ten histone marks.
_HISTONES = {
    "H3": (11971, 1497),
    "H3K14ac": (26438, 3305),
    "H3K36me3": (27904, 3488),
    "H3K4me1": (25341, 3168),
    "H3K4me2": (24545, 3069),
    "H3K4me3": (29439, 3680),
    "H3K79me3": (23069, 2884),
    "H3K9ac": (22224, 2779),
    "H4": (11679, 1461),
    "H4ac": (27275, 3410),
}
_MOUSE = ((6478, 810), (53952, 6745), (2620, 328), (1904, 239), (15064, 1883))
_TF = ((32378, 1000), (30672, 1000), (19000, 1000), (27294, 1000), (19000, 1000))
_STAMPED = (
    "its negatives carry a TATA box stamped at one position, its positives at any of four: letters at their places are "
    "enough, and the score does not measure what a model knows of DNA"
)
_PROMOTERS = {"all": (47356, 5920), "notata": (42452, 5307), "tata": (4904, 613)}


def _gue() -> tuple[BenchmarkTask, ...]:
    tasks = [
        BenchmarkTask(f"EMP/{name}", "yeast histone marks", "mcc", *sizes, (f"emp_{name}", name))
        for name, sizes in _HISTONES.items()
    ]
    tasks += [
        BenchmarkTask(f"mouse/{i}", "mouse TF sites", "mcc", *sizes, (f"mouse_{i}", f"mouse{i}"))
        for i, sizes in enumerate(_MOUSE)
    ]
    for kind, group in (("300", "promoters, 300 bp"), ("core", "core promoters, 70 bp")):
        tasks += [
            BenchmarkTask(
                f"prom/prom_{kind}_{name}",
                group,
                "mcc",
                *sizes,
                (f"prom_{kind}_{name}",),
                artefact=_STAMPED if name == "tata" else "",
            )
            for name, sizes in _PROMOTERS.items()
        ]
    splice = ("splice_reconstructed", "reconstructed")
    tasks.append(BenchmarkTask("splice/reconstructed", "splice sites", "mcc", 36496, 4562, splice))
    tasks += [
        BenchmarkTask(f"tf/{i}", "human TF sites", "mcc", *sizes, (f"human_tf_{i}", f"tf_{i}", f"tf{i}"))
        for i, sizes in enumerate(_TF)
    ]
    tasks.append(BenchmarkTask("virus/covid", "covid variants", "macro_f1", None, None, ("virus_covid", "covid")))
    return tuple(tasks)


def _genomic_benchmarks() -> tuple[BenchmarkTask, ...]:
    sizes = {
        "dummy_mouse_enhancers_ensembl": ("mouse and worm", 968, 242),
        "demo_coding_vs_intergenomic_seqs": ("human", 75000, 25000),
        "demo_human_or_worm": ("mouse and worm", 75000, 25000),
        "human_enhancers_cohn": ("human", 20843, 6948),
        "human_enhancers_ensembl": ("human", 123872, 30970),
        "human_ensembl_regulatory": ("human", 231348, 57713),
        "human_nontata_promoters": ("human", 27097, 9034),
        "human_ocr_ensembl": ("human", 139804, 34952),
    }
    return tuple(
        BenchmarkTask(name, group, "accuracy", n_train, n_test, (f"Genomic_Benchmarks_{name}",))
        for name, (group, n_train, n_test) in sizes.items()
    )


def _nucleotide_transformer() -> tuple[BenchmarkTask, ...]:
    # Their training rows are GUE's training and dev rows together.
    tasks = [
        BenchmarkTask(name, "yeast histone marks", "mcc", n_train + n_test, n_test)
        for name, (n_train, n_test) in _HISTONES.items()
    ]
    others = {
        "enhancers": ("enhancers", "mcc", 14968, 400),
        "enhancers_types": ("enhancers", "mcc", 14968, 400),
        "promoter_all": ("promoters", "macro_f1", 53276, 5920),
        "promoter_no_tata": ("promoters", "macro_f1", 47767, 5299),
        "promoter_tata": ("promoters", "macro_f1", 5509, 621),
        "splice_sites_acceptors": ("splice sites", "macro_f1", 19961, 2218),
        "splice_sites_all": ("splice sites", "accuracy", 27000, 3000),
        "splice_sites_donors": ("splice sites", "macro_f1", 19775, 2198),
    }
    return (*tasks, *(BenchmarkTask(name, *facts) for name, facts in others.items()))


SUITES = {
    suite.name: suite
    for suite in (
        # [ours]: epochs, batch and learning rates, after the other two suites; the sources fine-tune each model anew.
        Suite(
            "gue",
            "GUE (Genome Understanding Evaluation)",
            _gue(),
            "mcc",
            seeds=3,
            epochs=10,
            batch_size=128,
            rates=(1e-3, 2e-3),
            hub="leannmlindsey/GUE",
            inner=("", "GUE", "gue"),
            dev_is_given=True,
        ),
        # [ours]: batch 128 of the 128 or 256 of the sources; the learning rate with the first seed only.
        Suite(
            "genomic-benchmarks",
            "Genomic Benchmarks",
            _genomic_benchmarks(),
            "accuracy",
            seeds=5,
            epochs=10,
            batch_size=128,
            rates=(1e-3, 2e-3),
            hub="katarinagresova/Genomic_Benchmarks_{task}",
            inner=("", "genomic_benchmarks"),
            dev_is_given=False,
        ),
        # [ours]: batch 128 of the 128 or 512 of the sources; the learning rate with the first seed only.
        Suite(
            "nucleotide-transformer",
            "Nucleotide Transformer tasks (the original 18)",
            _nucleotide_transformer(),
            "mcc",
            seeds=10,
            epochs=20,
            batch_size=128,
            rates=(1e-3, 2e-3),
            hub="InstaDeepAI/nucleotide_transformer_downstream_tasks",
            inner=("", "nucleotide_transformer", "nucleotide_transformer_downstream_tasks"),
            dev_is_given=False,
        ),
    )
}


def find_suite(name: str) -> Suite:
    """The suite of this name.

    Raises
    ------
    UserError
        If there is none.
    """
    if name not in SUITES:
        raise UserError(f"the benchmark is one of {', '.join(SUITES)}; got {name!r}")
    return SUITES[name]


def smallest_first(tasks: Iterable[BenchmarkTask]) -> list[BenchmarkTask]:
    """Tasks by the official number of training rows; those of which it is not on record come last."""
    return sorted(tasks, key=lambda task: math.inf if task.n_train is None else task.n_train)


def chosen_tasks(suite: Suite, names: Sequence[str]) -> list[BenchmarkTask]:
    """Tasks by name, each once, in the order given.

    Raises
    ------
    UserError
        If one name stands twice, or leads out of the data folder.
    """
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or name == ".":
            raise UserError(f"--tasks: {name!r} is no folder below --data; name tasks such as {suite.tasks[0].name}")
    tasks = [suite.task(str(PurePosixPath(name))) for name in names]
    for i, task in enumerate(tasks):
        if task in tasks[:i]:
            raise UserError(f"--tasks names {task.name} twice")
    return tasks
