"""The settings that a search compares: a YAML file becomes named recipes."""

import hashlib
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from had.config import build, load_recipe
from had.errors import UserError
from had.training.finetuning_recipe import FitConfig

DEFAULT = "default"
_SECTIONS = ("common", "settings", "one_at_a_time", "grid")
_LONGEST = 160
"""Bytes of a folder's name; file systems take 255."""


def read_settings(path: str | Path) -> dict[str, FitConfig]:
    """Settings to compare, by name; the first is ``default``.

    Parameters
    ----------
    path
        YAML. ``common``: changes to the recipe of `had finetune` that all settings share. ``settings``: changes by
        name. ``one_at_a_time``: values by key, each a setting of its own. ``grid``: values by key, every combination a
        setting. What equals an earlier setting is left out.

    Raises
    ------
    UserError
        If the file cannot be read, or a key or value has no meaning.
    """
    content = load_recipe(Path(path))
    if unknown := sorted(content.keys() - set(_SECTIONS)):
        raise UserError(f"{path}: {unknown[0]!r} is no section of settings; they are {', '.join(_SECTIONS)}")
    sections = {name: content.get(name) or {} for name in _SECTIONS}
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            raise UserError(f"{path}: {name} is no mapping of keys")
    wanted: list[tuple[str, Mapping[str, Any]]] = [(DEFAULT, {}), *sections["settings"].items()]
    for key, values in sections["one_at_a_time"].items():
        wanted += [(_name({key: value}), {key: value}) for value in _listed(path, key, values)]
    keys = list(sections["grid"])
    for values in itertools.product(*(_listed(path, key, sections["grid"][key]) for key in keys)) if keys else ():
        combination = dict(zip(keys, values, strict=True))
        wanted.append((_name(combination), combination))
    made: dict[str, FitConfig] = {}
    for name, changes in wanted:
        if not isinstance(changes, Mapping):
            raise UserError(f"{path}: the setting {name} is no mapping of keys")
        config = build(FitConfig, {**sections["common"], **changes}, f"{path}, setting {name}")
        if config in made.values():
            continue
        if any(slug(name) == slug(other) for other in made):
            raise UserError(f"{path}: two settings are named {name}")
        made[str(name)] = config
    return made


def _listed(path: str | Path, key: str, values: Any) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{path}: {key} needs a list of values such as [1, 2]")
    return values


def _name(changes: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {str(value).lower() if isinstance(value, bool) else value}" for key, value in changes.items()
    )


def slug(name: str) -> str:
    """Name of a setting's folder."""
    text = re.sub(r"[^\w.+\-]+", "_", str(name))
    # "." and ".." are other folders.
    text = f"_{text}" if text.startswith(".") else text
    if len(raw := text.encode()) <= _LONGEST:
        return text
    return f"{raw[:_LONGEST].decode(errors='ignore')}-{hashlib.sha256(raw).hexdigest()[:12]}"
