"""Benchmarks from the Hugging Face Hub: one commit, found once, then the cache.

The commit that a branch pointed to on first use is written down in the cache folder and used from then on, so that a
benchmark does not change under its scores; what has been fetched is used without asking the Hub again.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from had.dna.store import cache_folder
from had.errors import RunFault, UserError
from had.files import atomic_write_text
from had.hub import hub_errors, reason_of

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")


class HubFolder(NamedTuple):
    """A data set repository on this machine."""

    path: Path
    repository: str
    commit: str


def fetch(
    repository: str, revision: str, patterns: Sequence[str] | None, what: str, has: Callable[[Path], bool]
) -> HubFolder:
    """Get files of a data set repository, from the Hub's cache where they are there.

    Parameters
    ----------
    repository
        ``owner/name``.
    revision
        Branch, tag or commit. Of a branch or tag the commit that it was on first use.
    patterns
        Which files (``fnmatch``); None: all.
    what
        Name of this choice of files, such as the task: what was fetched once is not asked for again.
    has
        Whether they are in a folder. Without a network the Hub's library gives what it has, which may be less.

    Raises
    ------
    UserError
        If there is no such repository or choice of files, or it is neither cached nor to be reached.
    """
    from huggingface_hub import snapshot_download

    if not _REPOSITORY.fullmatch(repository):
        raise UserError(f"{repository!r} is no Hub repository; write hub:owner/name")
    place = cache_folder() / "benchmarks" / "commits.json"
    book = _read(place)
    key = f"{repository}@{revision}"
    entry: dict[str, Any] = book.get(key, {})
    commit = entry.get("commit") or revision
    wanted = None if patterns is None else list(patterns)

    def get(local: bool) -> Path:
        return Path(
            snapshot_download(
                repository, repo_type="dataset", revision=commit, allow_patterns=wanted, local_files_only=local
            )
        )

    folder = None
    try:
        if what in entry.get("fetched", []):
            try:
                folder = get(local=True)
            except hub_errors():
                # The Hub's cache was emptied: fetch the same commit again.
                folder = None
        if folder is None or not has(folder):
            folder = get(local=False)
    except hub_errors() as error:
        reason = reason_of(error)
        raise UserError(
            f"{repository} at {commit} is not in this machine's Hub cache and could not be downloaded ({reason}); run "
            f"`hf download --repo-type dataset {repository}` where there is a network, or name a folder by --data"
        ) from error
    if not _COMMIT.fullmatch(folder.name):
        raise UserError(f"{repository}: {folder} is no snapshot of one commit; empty the Hub's cache of it")
    found = has(folder)
    fetched = sorted({*entry.get("fetched", []), what} if found else {*entry.get("fetched", [])} - {what})
    if entry != (new := {"commit": folder.name, "fetched": fetched}):
        book[key] = new
        _write(place, book)
    if not found:
        raise UserError(
            f"{repository} at {folder.name} has no files of {what}, or there is no network and this machine's Hub "
            "cache lacks them; look at the repository's page, or run this again where there is a network"
        )
    return HubFolder(folder, repository, folder.name)


def _read(place: Path) -> dict[str, Any]:
    try:
        book = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return book if isinstance(book, dict) else {}


def _write(place: Path, book: dict[str, Any]) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(place, json.dumps(book, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise RunFault(f"{place}: could not be written ({error.strerror or error}); set HAD_CACHE") from error
