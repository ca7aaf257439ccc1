"""Finding a teacher by name: bundled, a folder, the Hub, random weights, or a class of the user's own."""

import inspect
import os
import re
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from had.console import some_of
from had.dna.alphabet import GROUP
from had.errors import UserError
from had.models.ntv2_published import BUNDLED
from had.models.nucleotide_transformer import NucleotideTransformer
from had.models.teachers import NTv2Teacher, Teacher, random_teacher

_TEXTS, _NUMBERS = ("name", "licence"), ("width", "max_groups")
_METHODS = ("digest", "features", "to")
_OWN_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def load_teacher(
    spec: str | os.PathLike[str],
    options: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Teacher:
    """Make the teacher that a recipe or a command line names.

    Parameters
    ----------
    spec
        One of: a folder with a Nucleotide Transformer checkpoint; ``bundled``; a published size (``50m``,
        ``100m``, ``250m``, ``500m``) or a Hub repository; ``random:50m`` or
        ``random:<hidden>x<layers>x<heads>x<ffn>``; ``module:Class``, a class of your own (see `Teacher`),
        looked for in the working directory, too.
    options
        Keyword arguments. Of a Nucleotide Transformer: ``precision`` (``float32`` or ``bf16``),
        ``tokens_at_once``, and ``revision`` of a Hub repository. Of a class of your own: those of its
        constructor.
    device
        Where the teacher computes.
    seed
        Of random weights; nothing else depends on it.

    Raises
    ------
    had.errors.UserError
        There is no such teacher, an option is unknown, or a class of your own is no `Teacher`.
    """
    options, text = dict(options or {}), os.fspath(spec)
    if Path(text).is_dir() or not (_OWN_CLASS.fullmatch(text) or text.startswith("random:")):
        revision = options.pop("revision", None)
        _check_options(text, options)
        return NTv2Teacher(NucleotideTransformer.from_pretrained(text, revision), text, **options).to(device)
    if text.startswith("random:"):
        _check_options(text, options)
        return random_teacher(text.removeprefix("random:"), seed, **options).to(device)
    teacher = _make_own(text, options)
    check_teacher(teacher, text)
    teacher = teacher.to(device)
    _try_out(teacher, text)
    return teacher


def check_stored_name(name: str, path: Path) -> None:
    """Refuse a teacher's name out of a file of a model's folder that could run code or use the network.

    Files are data, and may come from anybody: what is bundled, random or in a folder here is only read.

    Raises
    ------
    had.errors.UserError
        The name is one that a user must pass: ``module:Class``, a published size or a Hub repository.
    """
    if name == BUNDLED or name.startswith("random:") or os.path.isdir(name):
        return
    if _OWN_CLASS.fullmatch(name):
        raise UserError(
            f"{path} names the teacher {name!r}, a class; a file does not choose which code runs: pass --teacher "
            "module:Class if you trust it."
        )
    raise UserError(
        f"{path} names the teacher {name!r}, which is neither bundled nor a folder here; only what you name yourself "
        "is downloaded: pass --teacher NAME."
    )


def _check_options(spec: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a Nucleotide Transformer teacher does not have, and wrong values."""
    if unknown := sorted(options.keys() - {"precision", "tokens_at_once"}):
        of_hub = "" if spec.startswith("random:") else " and revision"
        raise UserError(
            f"the teacher {spec} has no option {some_of(unknown)}; it has precision, tokens_at_once{of_hub}."
        )
    if (precision := options.get("precision", "float32")) not in ("float32", "bf16"):
        raise UserError(f"the teacher's precision must be float32 or bf16; got {precision!r}.")
    tokens = options.get("tokens_at_once")
    if tokens is not None and (not isinstance(tokens, int) or tokens < 1):
        raise UserError(f"the teacher's tokens_at_once must be a positive whole number; got {tokens!r}.")


def _make_own(spec: str, options: Mapping[str, Any]) -> Any:
    """Import ``module:Class`` and construct it."""
    module_name, _, class_name = spec.partition(":")
    # Last, so that no file lying around can take the place of an installed module.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"the teacher {spec} could not be imported ({error}); start where {module_name} lies, or install it."
        ) from error
    make = getattr(module, class_name, None)
    if not inspect.isclass(make):
        raise UserError(f"the teacher {spec}: the module {module_name} has no class {class_name}.")
    # Constructing it runs its code: not before it is known to be a teacher.
    _check_methods(make, spec)
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise UserError(f"the teacher {spec} does not take the options given ({error}).") from error
    return make(**options)


def check_teacher(teacher: Any, spec: str) -> None:
    """Check that an object has what `Teacher` asks for.

    Raises
    ------
    had.errors.UserError
        An attribute or a method is missing or of the wrong type; the message names it.
    """
    for name in _TEXTS:
        if not isinstance(value := getattr(teacher, name, None), str):
            raise UserError(f"the teacher {spec} needs an attribute {name} that is a text; got {value!r}.")
    for name in _NUMBERS:
        value = getattr(teacher, name, None)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(
                f"the teacher {spec} needs an attribute {name} that is a positive whole number; got {value!r}."
            )
    _check_methods(teacher, spec)
    digest = teacher.digest()
    if not isinstance(digest, str) or not digest:
        raise UserError(f"the teacher {spec}: digest() must give a text that is not empty; got {digest!r}.")


def _check_methods(teacher: Any, spec: str) -> None:
    for name in _METHODS:
        if not callable(getattr(teacher, name, None)):
            raise UserError(f"the teacher {spec} needs a method {name}(); see had.models.teachers.Teacher.")


def _try_out(teacher: Teacher, spec: str) -> None:
    """Check the features of two windows: shape, dtype, values, and that hidden letters stay unseen."""
    if not callable(getattr(teacher, "features", None)):
        raise UserError(f"the teacher {spec}: to() must give the teacher itself; got {type(teacher).__name__}.")
    # Another number than the width, so that a transposed result does not pass.
    groups = min(4 + (teacher.width == 4), teacher.max_groups)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 4, (2, groups * GROUP), generator=generator, dtype=torch.uint8)
    hidden = torch.zeros(2, groups, dtype=torch.bool)
    hidden[:, -1] = True
    other = codes.clone()
    other[:, -GROUP:] = torch.where(codes[:, -1:] == 0, 3, 0)

    def call(codes: Tensor, hidden: Tensor | None) -> Tensor:
        features = teacher.features(codes, hidden)
        where = f"the teacher {spec}: features() of {tuple(codes.shape)} letters"
        if not isinstance(features, Tensor):
            raise UserError(f"{where} must give a torch tensor; got {type(features).__name__}.")
        if tuple(features.shape) != (2, groups, teacher.width):
            wanted = (2, groups, teacher.width)
            raise UserError(
                f"{where} must be of shape (windows, groups, width) = {wanted}; got {tuple(features.shape)}."
            )
        if features.dtype != torch.float32:
            raise UserError(f"{where} must be float32; got {features.dtype}.")
        if not features.isfinite().all():
            raise UserError(f"{where} must be finite; got NaN or infinity.")
        if features.requires_grad:
            raise UserError(f"{where} must carry no gradients; compute them under torch.no_grad().")
        return features

    call(codes, None)
    seen = call(codes, hidden)
    if not torch.allclose(seen, call(codes, hidden), rtol=1e-3, atol=1e-5):
        raise UserError(f"the teacher {spec} gives other features for the same windows; call eval() on its network.")
    if not torch.allclose(seen, call(other, hidden), rtol=1e-3, atol=1e-5):
        raise UserError(
            f"the teacher {spec} looks at hidden letters: its features change with them; replace the letters "
            "of hidden groups before they reach its network."
        )
