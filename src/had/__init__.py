"""Distil a large DNA model into a 1.1 M-parameter one, and use it: embed, fine-tune, predict, score variants.

Names are resolved on first use: importing this package imports neither torch nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from had.models.heads import HADForSequenceClassification
    from had.models.loading import load
    from had.models.reconstruction import HADForMaskedLM
    from had.models.student import HADConfig, HADModel

__version__ = "0.1.0"

__all__ = ["HADConfig", "HADForMaskedLM", "HADForSequenceClassification", "HADModel", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name.startswith("__") or name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("had.models"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
