"""Checkpoints that survive a kill, a full disk and a flipped bit.

A checkpoint is a folder ``step-NNNNNNNN`` with the tensors (safetensors), the rest of the state (JSON) and
a manifest of SHA-256 sums. It is written aside, fsynced and renamed, so a folder of that name is complete or
was damaged later; `verify_checkpoint` tells which. Nothing is pickled.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from had.errors import RunFault, UserError
from had.files import fsync_file, fsync_folder, sha256_of_file, temporary_name, write_durably

TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"
MANIFEST_FILE = "manifest.json"

_FORMAT = 1
_STEP_NAME = re.compile(r"step-(\d{8,})$")
_PREVIOUS_NAME = re.compile(r"\.(step-\d{8,})\..*\.previous$")
_ABANDONED = "abandoned-"
_log = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    keep: int | None = 2,
) -> Path:
    """Write one checkpoint, all of it or none, then drop the oldest ones.

    Parameters
    ----------
    folder
        The folder of checkpoints, usually ``RUN/checkpoints``; made where it is absent.
    step
        Optimizer steps done.
    tensors
        Tensors of any shape, dtype and device by name. Those that share memory are written once each.
    state
        Whatever else is needed to go on, as JSON values; floats come back bit for bit.
    keep
        How many checkpoints up to `step` stay, this one included; None keeps all. Older ones are removed only
        after this one is durable, together with what `set_aside_after` left.

    Returns
    -------
    Path
        ``folder/step-NNNNNNNN``.

    Raises
    ------
    had.errors.RunFault
        The system refused to write, for instance because the disk is full. The message names the last good
        checkpoint; nothing is left of the new one.
    """
    if keep is not None and keep < 1:
        raise UserError(f"the number of checkpoints to keep must be at least 1, or null for all; got {keep}.")
    state_bytes = json.dumps(dict(state)).encode()
    folder = Path(folder)
    target = folder / f"step-{step:08d}"
    aside = temporary_name(target)
    in_place = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(folder)
        try:
            aside.mkdir()
            _write_tensors(aside / TENSORS_FILE, tensors)
            write_durably(aside / STATE_FILE, state_bytes)
            write_durably(aside / MANIFEST_FILE, _manifest(aside, step))
            fsync_folder(aside)
            with _out_of_the_way(target):
                os.rename(aside, target)
            in_place = True
        finally:
            if not in_place:
                shutil.rmtree(aside, ignore_errors=True)
        fsync_folder(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunFault(f"{target}: could not be saved ({reason}). {_how_to_go_on(folder)}") from error
    _prune(folder, step, keep)
    return target


def verify_checkpoint(path: Path) -> str | None:
    """Say why a checkpoint cannot be used, in a sentence, or None where every byte is as it was written."""
    path = Path(path)
    if not path.is_dir():
        return f"{path} is not a folder." if path.exists() else f"{path} does not exist."
    try:
        raw = (path / MANIFEST_FILE).read_bytes()
        manifest = _read_manifest(raw)
        if manifest is None:
            return f"{path / MANIFEST_FILE} is damaged: it is not what was written."
        for name, written in manifest["files"].items():
            size = (path / name).stat().st_size
            if size != written["bytes"]:
                cut = "cut short" if size < written["bytes"] else "too long"
                return f"{path / name} is {cut}: {size} bytes where {written['bytes']} were written."
            if sha256_of_file(path / name) != written["sha256"]:
                return f"{path / name} is damaged: its SHA-256 is not the one that was written."
    except FileNotFoundError as error:
        return f"{error.filename} is missing."
    except OSError as error:
        return f"{error.filename or path} cannot be read ({error.strerror or error})."
    named = _STEP_NAME.match(path.name)
    if named and int(named[1]) != manifest["step"]:
        return f"{path} holds step {manifest['step']}: the folder was renamed."
    return None


def require_valid(path: Path) -> None:
    """Raise a UserError that says what is wrong with a checkpoint named by the user, unless it is valid."""
    path = Path(path)
    reason = verify_checkpoint(path)
    if reason is None:
        return
    inside = list_checkpoints(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    if inside:
        hint = f"name one of the checkpoints inside, such as {inside[-1][1]}"
    else:
        hint = "name another checkpoint, or use --resume auto"
    raise UserError(f"Not a usable checkpoint: {reason.rstrip('.')}; {hint}.")


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """List (step, path) of the checkpoints in a folder, valid or not, oldest first."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = ((_STEP_NAME.match(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def latest_valid(folder: Path) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint that can be used.

    Returns
    -------
    path
        The newest valid checkpoint, or None.
    skipped
        A sentence for each newer one that is damaged, newest first.
    """
    skipped = []
    if Path(folder).is_dir():
        try:
            _restore_previous(Path(folder))
        except OSError as error:
            skipped.append(f"{folder} cannot be put in order ({error.strerror or error}).")
    for _, path in reversed(list_checkpoints(folder)):
        reason = verify_checkpoint(path)
        if reason is None:
            return path, skipped
        skipped.append(reason)
    return None, skipped


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a checkpoint after checking every byte of it.

    Returns
    -------
    tensors
        On the CPU, with the names, shapes and dtypes that were saved.
    state
        The JSON values; tuples come back as lists.

    Raises
    ------
    had.errors.UserError
        The checkpoint is absent or damaged.
    """
    path = Path(path)
    require_valid(path)
    try:
        return load_file(path / TENSORS_FILE), json.loads((path / STATE_FILE).read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: the checkpoint cannot be read ({error}).") from error


def checkpoint_step(path: Path) -> int:
    """Give the number of optimizer steps a valid checkpoint holds."""
    manifest = _read_manifest((Path(path) / MANIFEST_FILE).read_bytes())
    if manifest is None:
        raise UserError(f"{path}: the checkpoint's manifest is damaged; name another checkpoint.")
    step: int = manifest["step"]
    return step


def set_aside_after(folder: Path, step: int) -> list[str]:
    """Rename checkpoints later than `step` to ``abandoned-step-…``, so that two histories cannot mix.

    A run that resumes from an earlier checkpoint, or past damaged ones, calls this; the next save that
    reaches their step removes them.

    Returns
    -------
    list of str
        A sentence for each.
    """
    sentences = []
    try:
        for later, path in list_checkpoints(folder):
            if later > step:
                abandoned = path.with_name(_ABANDONED + path.name)
                if abandoned.exists():
                    shutil.rmtree(abandoned)
                os.rename(path, abandoned)
                sentences.append(f"{path} is later than step {step}; it is now {abandoned.name}.")
        if sentences:
            fsync_folder(Path(folder))
    except OSError as error:
        reason = error.strerror or error
        raise RunFault(f"{folder}: later checkpoints could not be set aside ({reason}).") from error
    return sentences


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    ready, storages = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        # safetensors refuses tied weights and views of something larger.
        if storage.data_ptr() in storages or storage.nbytes() != tensor.numel() * tensor.element_size():
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        ready[name] = tensor
    try:
        save_file(ready, path, metadata={"format": "pt"})
    except SafetensorError as error:
        # The library's writer reports a full disk as its own kind of error, with the number only in the text.
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error
    fsync_file(path)


def _canonical(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _manifest(folder: Path, step: int) -> bytes:
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of_file(folder / name)}
        for name in (STATE_FILE, TENSORS_FILE)
    }
    content = {"format": _FORMAT, "step": step, "files": files}
    return _canonical({**content, "sha256": hashlib.sha256(_canonical(content)).hexdigest()})


def _read_manifest(raw: bytes) -> dict[str, Any] | None:
    """Parse a manifest; None unless it is, byte for byte, one that `_manifest` makes."""
    try:
        manifest = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT or _canonical(manifest) != raw:
        return None
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    if manifest.get("sha256") != hashlib.sha256(_canonical(content)).hexdigest():
        return None
    return content if set(content.get("files", ())) == {STATE_FILE, TENSORS_FILE} else None


@contextmanager
def _out_of_the_way(target: Path) -> Iterator[None]:
    """Keep an older checkpoint of the same step until the new one is in its place.

    Where the new one never gets there, `_restore_previous` puts the old one back.
    """
    if not target.exists():
        yield
        return
    previous = temporary_name(target).with_suffix(".previous")
    os.rename(target, previous)
    yield
    shutil.rmtree(previous, ignore_errors=True)


def _restore_previous(folder: Path) -> None:
    """Undo a replacement that was killed between its two renames."""
    for path in folder.glob(".step-*.previous"):
        match = _PREVIOUS_NAME.match(path.name)
        if match and not (folder / match[1]).exists():
            os.rename(path, folder / match[1])


def _clear_leftovers(folder: Path) -> None:
    """Remove what a killed process left half written."""
    _restore_previous(folder)
    for pattern in (".step-*.part", ".step-*.previous", ".step-*.pruned"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def _prune(folder: Path, step: int, keep: int | None) -> None:
    done = [path for number, path in list_checkpoints(folder) if number <= step]
    unwanted = [] if keep is None else done[:-keep]
    for path in folder.glob(f"{_ABANDONED}step-*"):
        match = _STEP_NAME.match(path.name.removeprefix(_ABANDONED))
        if match and int(match[1]) <= step:
            unwanted.append(path)
    for path in unwanted:
        # Renamed first: a removal cut short must not look like a damaged checkpoint.
        doomed = temporary_name(folder / path.name.removeprefix(_ABANDONED)).with_suffix(".pruned")
        try:
            os.rename(path, doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            _log.warning("%s, no longer needed, could not be removed (%s).", path, error.strerror or error)


def _how_to_go_on(folder: Path) -> str:
    last, _ = latest_valid(folder)
    if last is None:
        return "No checkpoint is saved yet; make room or mend the folder, then start it again with --resume auto."
    return f"The last good checkpoint is {last}; make room or mend the folder, then go on with --resume auto."
