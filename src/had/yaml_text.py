"""YAML as people expect it: the scalars of YAML 1.2, no key twice, errors that name the line."""

import re
import typing
from collections.abc import Hashable
from typing import Any

import yaml

from had.errors import UserError

INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)$")
FLOAT = re.compile(
    r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
)


MAX_DEPTH = 50
"""Sections and lists within one another."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: 1e-3 is a number; `no`, `on`, `1:30`, `010` and dates stay text; no key twice, no alias."""

    yaml_implicit_resolvers: typing.ClassVar[dict[str, Any]] = {}  # type: ignore[misc]
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            # A few of them, nested, stand for more values than memory holds.
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported; write the value", mark)
        if self.depth == MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_DEPTH} levels of nesting", mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} stands twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or `_Loader` would read as something else."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Unescaped, this line break of old terminals would be read back as a blank.
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if "\x85" in data else None)


_RESOLVERS: list[tuple[str, re.Pattern[str], list[str]]] = [
    ("tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:int", INT, list("-+0123456789")),
    ("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789")),
]
_Dumper.add_representer(str, _Dumper.represent_str)
for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


def parse_yaml(text: str, where: str) -> Any:
    """Read one YAML document.

    Parameters
    ----------
    text
        The document. ``1e-3`` and ``1_000`` are numbers; ``yes``, ``no``, ``on`` and ``off`` are text.
    where
        What the text is called in an error message, usually the file.

    Raises
    ------
    had.errors.UserError
        The text is not YAML, has a key twice, an alias or more than `MAX_DEPTH` levels; the message gives the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{where}{line}: not readable as YAML: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not readable as YAML: {error}.") from error
    except ValueError as error:
        raise UserError(f"{where}: a value is not readable: {error}.") from error


def format_yaml(value: object) -> str:
    """Write plain nested values, in their order, as YAML that `parse_yaml` reads back to equal values."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
