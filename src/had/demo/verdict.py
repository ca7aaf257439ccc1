"""Did it learn? Held-out losses against what needs no network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from had.errors import RunFault


@dataclass(frozen=True)
class Check:
    """One held-out loss beside its trivial predictor's; the interval is a 95 % bootstrap over blocks of windows."""

    metric: str
    """Key in the run's ``validation.json``."""
    reference: str
    """The trivial predictor there."""
    words: str
    """What the loss measures."""
    reference_words: str
    student: float
    trivial: float
    difference: float
    """student - trivial, of the same windows: negative where the student is better."""
    low: float
    high: float
    windows: int

    @property
    def passed(self) -> bool:
        """Whether the whole interval of the difference lies below 0."""
        return self.high < 0

    def sentence(self) -> str:
        """The result in words."""
        judged = "learnt" if self.passed else "NOT SHOWN"
        return (
            f"{self.words}: {self.student:.4f} for the student, {self.trivial:.4f} for {self.reference_words}; "
            f"difference {self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}] over {self.windows} held-out "
            f"windows: {judged}"
        )


_ASKED = (
    (
        "loss_align",
        "mean_vector",
        "Imitating the teacher (mean squared error of its features)",
        "always answering the mean feature",
    ),
    ("loss_rec", "frequency", "Filling in hidden letters (nats per letter)", "base frequencies"),
)


def judge(validation: Mapping[str, Any]) -> list[Check]:
    """Compare the held-out losses of a run's ``validation.json`` with the mean vector and with base frequencies.

    Raises
    ------
    had.errors.RunFault
        If the run did not measure one of them, or on one window only.
    """
    checks = []
    for metric, reference, words, reference_words in _ASKED:
        entry = validation.get(metric) or {}
        if reference not in entry.get("difference", {}):
            raise RunFault(f"the run did not compare {metric} with {reference}: nothing can be said of learning")
        difference, low, high = entry["difference"][reference]
        if low is None:
            raise RunFault(f"{metric} was measured on one held-out window, which gives no interval; validate on more")
        checks.append(
            Check(
                metric,
                reference,
                words,
                reference_words,
                student=entry["model"][0],
                trivial=entry["baselines"][reference][0],
                difference=difference,
                low=low,
                high=high,
                windows=entry["windows"],
            )
        )
    return checks
