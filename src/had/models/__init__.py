"""The networks: student and decoder, Nucleotide Transformer v2, teachers. Names are resolved on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from had.models.heads import HADForSequenceClassification
    from had.models.loading import load
    from had.models.ntv2_verification import TeacherReport, verify_teacher
    from had.models.nucleotide_transformer import NucleotideTransformer, NucleotideTransformerConfig
    from had.models.reconstruction import CrossAttentionDecoder, HADForMaskedLM
    from had.models.student import HADConfig, HADModel, HADOutput
    from had.models.teacher_loading import load_teacher
    from had.models.teachers import NTv2Teacher, Teacher, check_window, random_teacher

__all__ = [
    "CrossAttentionDecoder",
    "HADConfig",
    "HADForMaskedLM",
    "HADForSequenceClassification",
    "HADModel",
    "HADOutput",
    "NTv2Teacher",
    "NucleotideTransformer",
    "NucleotideTransformerConfig",
    "Teacher",
    "TeacherReport",
    "check_window",
    "load",
    "load_teacher",
    "random_teacher",
    "verify_teacher",
]

_HOMES = {
    "nucleotide_transformer": ("NucleotideTransformer", "NucleotideTransformerConfig"),
    "reconstruction": ("CrossAttentionDecoder", "HADForMaskedLM"),
    "heads": ("HADForSequenceClassification",),
    "ntv2_verification": ("TeacherReport", "verify_teacher"),
    "teacher_loading": ("load_teacher",),
    "teachers": ("NTv2Teacher", "Teacher", "check_window", "random_teacher"),
    "student": ("HADConfig", "HADModel", "HADOutput"),
    "loading": ("load",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
