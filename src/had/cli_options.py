"""Options that several commands share, and how they are laid over a recipe."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from had.errors import UserError

Recipe = Annotated[str, typer.Argument(help="A packaged recipe's name, or the path of a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes to the recipe: key=value, dotted.")]
Genome = Annotated[list[Path] | None, typer.Option("--genome", help="FASTA file(s), plain, gzip or bgzip.")]
Bed = Annotated[Path | None, typer.Option(help="BED of the intervals to use; column 4 may name the split.")]
Out = Annotated[Path, typer.Option(help="Run folder; new or empty, unless a run is resumed.")]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps of the whole schedule.")]
StopAfter = Annotated[int | None, typer.Option(help="Stop once this step is done; the schedule stays the recipe's.")]
Resume = Annotated[str | None, typer.Option(help="auto: the newest valid checkpoint of --out; or a checkpoint.")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, windows, strands and masks.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: the machine's.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be read, written and computed; do nothing.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar, no remarks.")]


_HOME = re.compile(r"([\w.-]+=)?(~[^/]*/.*)", re.DOTALL)


def checked_word(word: str) -> str:
    """Give a word of the command line with ``~/`` expanded, also behind ``--option=`` or ``key=``, as no shell does.

    Raises
    ------
    had.errors.UserError
        The word is not UTF-8, in which all files of a run are written, or the home folder is unknown.
    """
    try:
        word.encode()
    except UnicodeEncodeError:
        raise UserError(f"{word!r} is not UTF-8 text; rename the file or folder") from None
    match = _HOME.fullmatch(word)
    if not match:
        return word
    path = os.path.expanduser(match[2])
    if path == match[2]:
        raise UserError(f"{match[2]}: the home folder {path.partition('/')[0]} is unknown; write the whole path")
    return (match[1] or "") + path


def files_and_overrides(genome: list[Path] | None, words: list[str] | None) -> tuple[list[str], list[str]]:
    """Sort words after --genome FASTA into further FASTA files and key=value overrides."""
    files, overrides = [str(path) for path in genome or []], []
    for word in words or []:
        if "=" in word and not os.path.exists(word):
            overrides.append(word)
        elif files:
            files.append(word)
        else:
            raise UserError(f"{word!r} is neither key=value nor a file after --genome")
    return files, overrides


def lay_over(values: dict[str, Any], section: str, changes: dict[str, Any]) -> None:
    """Set keys of a section of a recipe, in place; a UserError where a value stands in the section's place."""
    there = values.get(section) or {}
    if not isinstance(there, dict):
        raise UserError(f"{section} is a section of the recipe, not {there!r}: write {section}.KEY=VALUE")
    values[section] = {**there, **changes}


def resolve_recipe(
    recipe: str, overrides: list[str], data: dict[str, Any], top: dict[str, Any], steps: int | None
) -> dict[str, Any]:
    """The recipe with the command line's options and overrides laid over it; options win over the file."""
    from had.config import apply_overrides, load_recipe

    values = apply_overrides(load_recipe(recipe), overrides)
    for section, changes in (("data", data), ("training", {"steps": steps})):
        changes = {k: v for k, v in changes.items() if v not in (None, [])}
        if changes:
            lay_over(values, section, changes)
    return {**values, **{k: v for k, v in top.items() if v is not None}}
