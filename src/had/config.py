"""Recipes: YAML files and ``key=value`` overrides become checked dataclasses.

Each module owns its dataclass, with a docstring under each field; this module knows none of them. Neither
torch nor numpy is imported here, so ``had --help`` stays quick.
"""

import copy
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from had.errors import UserError
from had.schema import FieldDescription, build, describe, did_you_mean, name_value, to_dict
from had.yaml_text import format_yaml, parse_yaml

__all__ = [
    "FieldDescription",
    "apply_overrides",
    "build",
    "check_seed",
    "describe",
    "dump_yaml",
    "load_recipe",
    "packaged_recipes",
    "parse_yaml",
    "to_dict",
]

LARGEST_SEED = 2**53
"""Seeds that follow from one another stay below what PyTorch takes, and JSON readers keep them exactly."""


def packaged_recipes() -> list[str]:
    """List the names of the recipes that come with the package."""
    folder = resources.files("had").joinpath("recipes")
    if not folder.is_dir():
        return []
    names = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_recipe(name_or_path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a recipe.

    Parameters
    ----------
    name_or_path
        The name of a packaged recipe (`packaged_recipes`), or the path of a YAML file. A packaged name wins
        over a file of that name in the working directory; write ``./name`` for the file.

    Returns
    -------
    dict
        The recipe as nested plain values, not yet checked against any dataclass (see `build`).

    Raises
    ------
    had.errors.UserError
        There is no such recipe, or the file is unreadable, broken, empty, or not a mapping.
    """
    name = os.fspath(name_or_path)
    packaged = packaged_recipes()
    path = Path(name)
    if name in packaged:
        where = f"recipe {name}"
        text = resources.files("had").joinpath("recipes", f"{name}.yaml").read_text(encoding="utf-8")
    elif path.is_file():
        where = name
        try:
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise UserError(f"{name}: the recipe cannot be read ({error.strerror or error}).") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{name}: the recipe is not UTF-8 text (byte {error.start}).") from error
    else:
        kind = "is a folder, not a recipe" if path.is_dir() else "is neither a packaged recipe nor a file"
        near = did_you_mean(Path(name).name.removesuffix(".yaml").removesuffix(".yml"), packaged)
        have = ", ".join(packaged) or "none"
        raise UserError(f"{name!r} {kind}{near}; packaged recipes: {have}.")
    recipe = parse_yaml(text, where)
    if recipe is None:
        raise UserError(f"{where}: the recipe is empty; write at least one `key: value` line, or `{{}}`.")
    if not isinstance(recipe, dict):
        raise UserError(f"{where}: a recipe is a mapping of `key: value` lines, not {name_value(recipe)}.")
    return recipe


def apply_overrides(recipe: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set dotted keys of a recipe.

    Parameters
    ----------
    recipe
        Nested plain values; left as it is.
    overrides
        Such as ``"training.learning_rate=1e-3"``. The value is read as YAML, so ``[a, b]`` is a list,
        ``null`` or nothing is None, and quotes keep a text a text. The last one wins.

    Returns
    -------
    dict
        A new recipe.

    Raises
    ------
    had.errors.UserError
        An override is not ``key=value``, its value is broken YAML, or it reaches into what is no section.
    """
    result: dict[str, Any] = copy.deepcopy(dict(recipe))
    for override in overrides:
        where = f"override {override if len(override) <= 80 else override[:77] + '...'!r}"
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(part and not re.search(r"\s", part) for part in parts):
            raise UserError(f"{where}: expected key=value, such as seed=1 or section.key=1.")
        value = parse_yaml(text, where)
        section = result
        for depth, part in enumerate(parts[:-1], start=1):
            if section.get(part) is None:
                section[part] = {}
            section = section[part]
            if not isinstance(section, dict):
                raise UserError(
                    f"{where}: {'.'.join(parts[:depth])} is {name_value(section)}, not a section with keys."
                )
        section[parts[-1]] = value
    return result


def check_seed(seed: int) -> None:
    """Refuse a seed that generators do not take, with a UserError."""
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"a seed is a whole number from 0 to {LARGEST_SEED}; got {seed}")


def dump_yaml(config: object) -> str:
    """Write a dataclass or a plain mapping as YAML, in field order; `parse_yaml` gives equal values back."""
    return format_yaml(to_dict(config))
