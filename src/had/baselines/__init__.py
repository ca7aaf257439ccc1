"""What has to be beaten: Markov chains, means of 6-mers, k-mer logistic regression, letters at their places.

Names are resolved when first used: training needs the first two and should not wait for scikit-learn to load.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "AlignmentBaseline": "alignment",
    "HiddenGroupBaselines": "markov",
    "KmerLogisticRegression": "kmer_regression",
    "KmerTable": "alignment",
    "LogisticFit": "logistic",
    "MarkovModel": "markov",
    "MeanVector": "alignment",
    "PlacesBoosting": "places",
    "PlacesLogisticRegression": "places",
    "Scores": "markov",
    "fit_logistic": "logistic",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
