"""The published Nucleotide Transformer v2 models: names, pinned commits, licence, checksums, places.

Sizes and commits are those of the Hub repositories ``InstaDeepAI/nucleotide-transformer-v2-…-multi-species``.
"""

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from had.dna.store import cache_folder
from had.errors import RunFault, UserError
from had.files import atomic_write_text, sha256_of_file
from had.hub import hub_errors, reason_of

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TORCH_WEIGHTS_FILE = "pytorch_model.bin"
"""Read only where there is no safetensors file, and only with ``weights_only=True``."""
LICENCE = "CC BY-NC-SA 4.0"
"""Of InstaDeepAI's weights."""
BUNDLED = "bundled"
BUNDLED_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "teacher"

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
_SHORT_NAME = re.compile(r"(?:nt-?v2-)?(\d+m)", re.IGNORECASE)
_COMMIT = re.compile(r"[0-9a-f]{40}")

_logger = logging.getLogger("had")
_notices_shown: set[str] = set()


@dataclass(frozen=True)
class PublishedModel:
    """One size of the published models."""

    size: str
    revision: str
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    n_parameters: int
    """Of the checkpoint, with the two tensors that it stores and the network does not use."""
    num_attention_heads: int = 16

    @property
    def repository(self) -> str:
        """Name on the Hub."""
        return f"InstaDeepAI/nucleotide-transformer-v2-{self.size}-multi-species"

    def sizes(self) -> dict[str, int]:
        """Arguments of `NucleotideTransformerConfig`."""
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        return {name: getattr(self, name) for name in names}


PUBLISHED = {
    model.size: model
    for model in (
        PublishedModel("50m", "81b29e5786726d891dbf929404ef20adca5b36f1", 512, 12, 2048, 55_904_972),
        PublishedModel("100m", "f34324c6fde36a4f635f0f1f06cac5d25acd6798", 512, 22, 2048, 97_889_132),
        # Its main branch holds a pickle only; this commit, the Hub's conversion to safetensors, is refs/pr/3.
        PublishedModel("250m", "8040e28eedfb7a9d769de536b61b265c18585f17", 768, 24, 3072, 235_120_780),
        PublishedModel("500m", "06615c1660c892fc199840c18123f8385b3542a8", 1024, 29, 4096, 498_345_436),
    )
}


@dataclass(frozen=True)
class CheckpointFiles:
    """Where a checkpoint lies on this machine."""

    config: Path
    weights: Path
    repository: str = ""
    """Hub repository it came from; empty for a folder."""
    revision: str = ""
    """Branch, tag or commit of the repository."""


def published_model(name: str) -> PublishedModel | None:
    """Find the published model of a short name (``50m``, ``ntv2-50m``) or a Hub repository; None for other names."""
    if short := _SHORT_NAME.fullmatch(name):
        return PUBLISHED.get(short[1].lower())
    return next((model for model in PUBLISHED.values() if model.repository == name), None)


def model_of_sizes(config: Mapping[str, Any]) -> PublishedModel | None:
    """Find the published model that has the sizes of this ``config.json``; None where none has."""
    for model in PUBLISHED.values():
        if model.sizes().items() <= config.items():
            return model
    return None


@cache
def oracles() -> dict[str, Any]:
    """Read the recorded outputs and checksums of the published models (``assets/ntv2_oracles.json``)."""
    text = resources.files("had").joinpath("assets", "ntv2_oracles.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def published_sha256(model: PublishedModel, file: str, revision: str = "") -> str | None:
    """SHA-256 on record for a file of a published model (at this commit), None where there is none."""
    record = oracles()["models"].get(model.size, {})
    if revision not in ("", model.revision, record.get("revision")):
        return None
    value = record.get("sha256", {}).get(file)
    return None if value is None else str(value)


def find_checkpoint(name: str | os.PathLike[str], revision: str | None = None) -> CheckpointFiles:
    """Find ``config.json`` and the weights of a folder, of the bundled teacher, or on the Hub (cached first).

    Parameters
    ----------
    name
        An existing folder, ``bundled``, a size of the published models or a Hub repository, looked for in
        this order.
    revision
        Of a Hub repository; default: the pinned commit of a published model, else its main branch.

    Raises
    ------
    had.errors.UserError
        There is nothing of that name, a file is missing, or the Hub cannot be reached or refuses.
    """
    path, text = Path(name), os.fspath(name)
    if path.is_dir():
        return _in_folder(path)
    if text == BUNDLED:
        if not (BUNDLED_FOLDER / CONFIG_FILE).is_file():
            raise UserError(
                "the bundled teacher is not part of this installation; name a folder written by "
                f"`had teacher train`, or a published model ({', '.join(PUBLISHED)})."
            )
        return _in_folder(BUNDLED_FOLDER)
    model = published_model(text)
    # A mistyped `runs/model` looks like a Hub name; where `runs` is a folder here, nobody meant the Hub.
    if model is None and (not _HUB_NAME.fullmatch(text) or path.exists() or path.parent.is_dir()):
        kind = "is a file; name the checkpoint's folder" if path.is_file() else "is no folder here"
        raise UserError(f"{text} {kind}, and no published model has this name ({', '.join(PUBLISHED)}).")
    repository = model.repository if model else text
    return _on_hub(repository, revision or (model.revision if model else "main"))


def _in_folder(folder: Path) -> CheckpointFiles:
    if not (folder / CONFIG_FILE).is_file():
        inner = folder / "model"
        hint = f"; did you mean {inner}?" if (inner / CONFIG_FILE).is_file() else "."
        raise UserError(f"{folder} holds no {CONFIG_FILE}: it is not the folder of a checkpoint{hint}")
    for file in (WEIGHTS_FILE, TORCH_WEIGHTS_FILE):
        if (folder / file).is_file():
            return CheckpointFiles(folder / CONFIG_FILE, folder / file)
    raise UserError(f"{folder} holds neither {WEIGHTS_FILE} nor {TORCH_WEIGHTS_FILE}: the weights are missing.")


def _on_hub(repository: str, revision: str) -> CheckpointFiles:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def fetch(file: str, cached_only: bool = False) -> Path | None:
        """Path of a file in the Hub's cache; None where the repository has no such file."""
        try:
            return Path(hf_hub_download(repository, file, revision=revision, local_files_only=cached_only))
        except LocalEntryNotFoundError:
            if cached_only:
                return None
            raise
        except EntryNotFoundError:
            return None

    weights_files = (WEIGHTS_FILE, TORCH_WEIGHTS_FILE)
    try:
        config = fetch(CONFIG_FILE)
        # What a commit holds never changes: look for both files here before asking the Hub for either.
        modes = (True, False) if _COMMIT.fullmatch(revision) else (False,)
        weights = None
        if config is not None:
            found = (fetch(file, mode) for mode in modes for file in weights_files)
            weights = next((path for path in found if path is not None), None)
    except hub_errors() as error:
        reason = reason_of(error)
        raise UserError(
            f"{repository} at {revision} is not in this machine's Hub cache and could not be downloaded "
            f"({reason}); run `hf download {repository} --revision {revision}` where there is a network, or "
            "copy its folder here and name the folder."
        ) from error
    if config is None or weights is None:
        missing = CONFIG_FILE if config is None else " or ".join(weights_files)
        raise UserError(f"the Hub repository {repository} at {revision} holds no {missing}.")
    return CheckpointFiles(config, weights, repository, revision)


def stated_licence(files: CheckpointFiles, config: Mapping[str, Any]) -> str:
    """Licence of a checkpoint's weights, empty where none is stated; InstaDeepAI's is announced once.

    A folder says its licence in ``config.json`` (`NucleotideTransformer.save_pretrained` writes it). A copy
    of InstaDeepAI's folders does not; it is known by the sizes and the remote code its configuration refers
    to.
    """
    licence = str(config.get("licence") or "")
    is_copy = "modeling_esm" in str(config.get("auto_map")) and model_of_sizes(config) is not None
    if not licence and (files.repository.startswith("InstaDeepAI/") or is_copy):
        licence = LICENCE
    if licence == LICENCE and LICENCE not in _notices_shown:
        _notices_shown.add(LICENCE)
        _logger.warning(
            "these Nucleotide Transformer weights are InstaDeepAI's, licence %s: no commercial use, name the "
            "source, share what you make of them alike",
            LICENCE,
        )
    return licence


def check_fingerprint(files: CheckpointFiles) -> str | None:
    """Compare the weights of a published model with the checksum on record, and warn where they differ.

    Where none was published, the first one seen is recorded in the cache folder and compared with later.

    Returns
    -------
    str or None
        SHA-256 of the weights; None for other checkpoints, which are not looked at.
    """
    model = published_model(files.repository)
    if model is None:
        return None
    place = cache_folder() / "teachers" / "sha256.json"
    key = f"{files.repository}@{files.revision}/{files.weights.name}"
    book = _read_book(place)
    status = files.weights.stat()
    seen = book.get(key, {})
    entry = {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}
    # Size and time stamp spare a second reading of gigabytes, as for genomes.
    unchanged = all(seen.get(name) == value for name, value in entry.items())
    found = str(seen["sha256"]) if unchanged and "sha256" in seen else sha256_of_file(files.weights)
    expected = published_sha256(model, files.weights.name, files.revision) or seen.get("first_sha256")
    if expected is None:
        _logger.info("%s: no published checksum; recorded sha256 %s", key, found)
    elif found != expected:
        text = "%s: the weights are not those on record in %s (sha256 %s, expected %s)"
        _logger.warning(text, key, place, found, expected)
    if not unchanged:
        book[key] = {**entry, "sha256": found, "first_sha256": expected or found}
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(place, json.dumps(book, indent=2) + "\n")
        except (OSError, RunFault) as error:
            _logger.warning("the checksum of %s could not be recorded (%s)", key, error)
    return found


def _read_book(place: Path) -> dict[str, Any]:
    try:
        book = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return book if isinstance(book, dict) else {}
