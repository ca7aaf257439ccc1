"""Dataclasses as the schema of a recipe: plain values in, checked values out, every key described."""

import ast
import dataclasses
import difflib
import inspect
import itertools
import os
import sys
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from had.console import some_of
from had.errors import UserError
from had.yaml_text import FLOAT, INT, parse_yaml

T = TypeVar("T")

LARGEST = 10**18
"""Whole numbers stay below it: NumPy and PyTorch take 64 bits."""

_TRUE = {"true", "yes", "on"}
_FALSE = {"false", "no", "off"}


def build(cls: type[T], mapping: Mapping[str, Any], where: str = "recipe") -> T:
    """Make a dataclass, and those nested in it, from plain values.

    Parameters
    ----------
    cls
        The dataclass. Fields may be int, float, bool, str, Path, Literal, Optional and other unions, list,
        tuple, Sequence, dict and dataclasses. Fields that are absent keep their defaults.
    mapping
        The values. A whole number is accepted for a float, 1e4 for an int, a whole number for a str (a contig
        named 21), ``yes``, ``no``, ``on``, ``off`` for a bool; a bool is never taken for a number.
    where
        What the values are called in an error message, such as the recipe's file.

    Raises
    ------
    had.errors.UserError
        A key is unknown, a required one is absent, or a value is of the wrong type or not allowed; the
        message gives the dotted key and what is allowed. A ValueError of ``__post_init__`` becomes one, too.
    """
    return _Builder(cls, where).dataclass(cls, mapping, "")


class _Mismatch(Exception):
    """A value that does not fit one annotation; the message says what would."""


class _Builder:
    def __init__(self, root: type, where: str):
        self.root = root
        self.where = where

    def error(self, message: str) -> UserError:
        return UserError(f"{self.where}: {message}" + ("" if message.endswith("?") else "."))

    def dataclass(self, cls: type[T], mapping: object, prefix: str) -> T:
        label = prefix.rstrip(".") or "the top level"
        if not isinstance(mapping, Mapping):
            raise _wrong(self.error, label, "a section with keys", mapping)
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
        hints = typing.get_type_hints(cls)
        for key in mapping:
            if key not in fields:
                raise self.error(f"unknown key `{prefix}{key}`{self.suggest(str(key), prefix, list(fields))}")
        values = {}
        for name, field in fields.items():
            if name in mapping:
                values[name] = self.field(hints[name], mapping[name], prefix + name)
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise self.error(f"`{prefix}{name}` is required ({type_name(hints[name])})")
        try:
            return cls(**values)
        except ValueError as error:
            raise self.error(f"{label}: {str(error).rstrip('.')}") from error

    def suggest(self, key: str, prefix: str, siblings: list[str]) -> str:
        near = difflib.get_close_matches(key, siblings, n=1, cutoff=0.6)
        if near:
            return f"; did you mean `{prefix}{near[0]}`?"
        elsewhere = {row.key.rpartition(".")[2]: row.key for row in describe(self.root)}
        near = difflib.get_close_matches(key, list(elsewhere), n=1, cutoff=0.75)
        if near:
            return f"; did you mean `{elsewhere[near[0]]}`?"
        return f"; known here: {', '.join(siblings) or 'no keys'}"

    def field(self, hint: Any, value: Any, key: str) -> Any:
        try:
            return self.convert(hint, value, key)
        except _Mismatch as mismatch:
            raise _wrong(self.error, key, str(mismatch), value) from None

    def convert(self, hint: Any, value: Any, key: str) -> Any:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return value
        if origin in (typing.Union, types.UnionType):
            return self.union(hint, arguments, value, key)
        if origin is Literal:
            return _literal(arguments, value)
        if origin in (typing.Annotated, typing.Final, typing.Required):
            return self.convert(arguments[0], value, key)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return value if isinstance(value, hint) else self.dataclass(hint, value, key + ".")
        container = origin or hint
        if isinstance(container, type) and issubclass(container, Mapping):
            return self.mapping(arguments, value, key)
        if isinstance(container, type) and container is not str and issubclass(container, Sequence):
            return self.sequence(container, arguments, value, key)
        return _scalar(hint, value)

    def union(self, hint: Any, members: tuple[Any, ...], value: Any, key: str) -> Any:
        if value is None and type(None) in members:
            return None
        exact = [member for member in members if type(value) is member]
        for member in exact or members:
            try:
                return self.convert(member, value, key)
            except _Mismatch:
                continue
            except UserError:
                # Inside a nested section the innermost message says more than "not one of these types".
                if dataclasses.is_dataclass(member) and not isinstance(value, Mapping):
                    continue
                raise
        near = ""
        choices = [choice for member in members for choice in typing.get_args(member)]
        if isinstance(value, str):
            near = did_you_mean(value, [choice for choice in choices if isinstance(choice, str)])
        raise _Mismatch(type_name(hint) + near)

    def sequence(self, container: type, arguments: tuple[Any, ...], value: Any, key: str) -> Any:
        if not isinstance(value, list | tuple):
            example = "[a, b]" if arguments[:1] == (str,) else "[1, 2]"
            raise _Mismatch(f"a list such as {example}")
        is_tuple = issubclass(container, tuple)
        if is_tuple and arguments and arguments[-1] is not Ellipsis:
            if len(value) != len(arguments):
                raise _Mismatch(f"a list of exactly {len(arguments)} values")
            hints: Sequence[Any] = arguments
        else:
            hints = [arguments[0] if arguments else Any] * len(value)
        pairs = zip(hints, value, strict=True)
        items = [self.field(hint, item, f"{key}[{i}]") for i, (hint, item) in enumerate(pairs)]
        return tuple(items) if is_tuple else items

    def mapping(self, arguments: tuple[Any, ...], value: Any, key: str) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise _Mismatch("a section with keys")
        key_hint, value_hint = arguments or (Any, Any)
        return {
            self.field(key_hint, name, f"{key}.{name}"): self.field(value_hint, item, f"{key}.{name}")
            for name, item in value.items()
        }


def _wrong(error: Any, key: str, expected: str, value: object) -> UserError:
    made: UserError = error(f"`{key}`: expected {expected}; got {name_value(value)}")
    return made


def _literal(choices: tuple[Any, ...], value: Any) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    near = did_you_mean(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
    raise _Mismatch("one of " + ", ".join(str(choice) for choice in choices) + near)


def _scalar(hint: Any, value: Any) -> Any:
    if hint is None or hint is type(None):
        if value is None:
            return None
        raise _Mismatch("null")
    if hint is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
            return value.lower() in _TRUE
        raise _Mismatch("true or false")
    if hint is int:
        if _is_number(value):
            value = parse_yaml(value, value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            if abs(value) >= LARGEST:
                raise _Mismatch("a whole number of at most 18 digits")
            return value
        raise _Mismatch("a whole number")
    if hint is float:
        if _is_number(value):
            value = parse_yaml(value, value)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
            return float(value)
        raise _Mismatch("a finite number")
    if hint is str:
        if isinstance(value, str):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        raise _Mismatch("text (in quotes, if it reads like something else)")
    if hint is Path:
        if isinstance(value, str | Path):
            return Path(value)
        raise _Mismatch("a path")
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    raise _Mismatch(type_name(hint))


def _is_number(value: Any) -> bool:
    # Python refuses to read a number of thousands of digits.
    return isinstance(value, str) and len(value) < 400 and bool(INT.match(value) or FLOAT.match(value))


def did_you_mean(value: str, choices: Sequence[str]) -> str:
    """Give `` (did you mean x?)`` for the nearest choice, or nothing where none is near."""
    near = difflib.get_close_matches(value, choices, n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def name_value(value: object) -> str:
    """Say a value and what it is, for an error message."""
    kinds = {bool: "the value", int: "the number", float: "the number", str: "the text", list: "the list"}
    if value is None:
        return "nothing (null)"
    if isinstance(value, Mapping):
        return f"a section with the keys {some_of(value) or '(none)'}"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{kinds.get(type(value), type(value).__name__)} {text if len(text) <= 60 else text[:57] + '...'}"


def type_name(hint: Any) -> str:
    """Say an annotation in a user's words, such as ``whole number``, ``one of a, b`` or ``list of text``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    names = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path"}
    if isinstance(hint, type) and hint in names:
        return names[hint]
    if hint is None or hint is type(None):
        return "null"
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        ordered = [a for a in arguments if a is not type(None)] + [a for a in arguments if a is type(None)]
        return " or ".join(type_name(argument) for argument in ordered)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "section"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if issubclass(origin, tuple) and Ellipsis not in arguments:
            return "[" + ", ".join(type_name(argument) for argument in arguments) + "]"
        return f"list of {type_name(arguments[0])}"
    return getattr(hint, "__name__", str(hint))


def to_dict(config: object) -> Any:
    """Turn a dataclass (or mapping) into nested dicts, lists and scalars that JSON and YAML can hold."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(value) for value in config]
    if isinstance(config, os.PathLike):
        return os.fspath(config)
    return config


class FieldDescription(typing.NamedTuple):
    """One key of a recipe, for help texts and docs."""

    key: str
    """Dotted key."""
    type: str
    """The annotation in words (`type_name`)."""
    default: Any
    """The default value as a plain value; ``dataclasses.MISSING`` where the key is required."""
    doc: str
    """The docstring under the field, on one line."""


def describe(cls: type, prefix: str = "") -> list[FieldDescription]:
    """List every key of a dataclass and of those nested in it, with type, default and docstring."""
    return _describe(cls, prefix, dataclasses.MISSING)


def _describe(cls: type, prefix: str, defaults: Any) -> list[FieldDescription]:
    rows = []
    hints, docs = typing.get_type_hints(cls), field_docstrings(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        if defaults is not dataclasses.MISSING:
            default = getattr(defaults, field.name)
        else:
            factory: Any = field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
        hint = hints[field.name]
        candidates = (hint, *typing.get_args(hint))
        nested = [a for a in candidates if isinstance(a, type) and dataclasses.is_dataclass(a)]
        if nested and typing.get_origin(hint) in (None, typing.Union, types.UnionType):
            inner = default if dataclasses.is_dataclass(default) else dataclasses.MISSING
            rows += _describe(nested[0], f"{prefix}{field.name}.", inner)
        else:
            doc = docs.get(field.name, "")
            rows.append(FieldDescription(prefix + field.name, type_name(hint), to_dict(default), doc))
    return rows


def field_docstrings(cls: type) -> dict[str, str]:
    """Read the string literals under a class's annotated fields, base classes included, from the source."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue  # no source at hand, as in an interactive session
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                value = text.value if isinstance(text, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    docs[field.target.id] = " ".join(value.value.split())
    return docs
