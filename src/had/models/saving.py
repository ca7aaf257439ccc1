"""Models as folders: ``config.json`` and safetensors, found by path, by bundled name or on the Hub."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from had.console import some_of
from had.errors import RunFault, UserError
from had.files import atomic_write_bytes, atomic_write_text
from had.hub import hub_errors, reason_of

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
DECODER_FILE = "decoder.safetensors"
STUDENT_TYPE = "had"
CLASSIFIER_TYPE = "had-sequence-classification"
"""``model_type`` of a fine-tuned student."""
CARD_FILE = "README.md"
FACTS_FILE, TUNING_FILE = "training.json", "finetuning.json"
"""What is known of a pre-training and of a fine-tuning, beside the weights."""
BUNDLED_FOLDER = Path(__file__).resolve().parent.parent / "assets"
DEFAULT_MODEL = "student"
"""Name of the bundled model that ``had.load()`` gives."""

_HUB_FILES = [CONFIG_FILE, "*.safetensors", CARD_FILE, FACTS_FILE, TUNING_FILE]
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")


def bundled_models() -> list[str]:
    """Names of the students that came with the package (its teacher is no student)."""
    configs = BUNDLED_FOLDER.glob(f"*/{CONFIG_FILE}")
    return sorted(path.parent.name for path in configs if _model_type(path) == "had")


def _model_type(config: Path) -> object:
    return json.loads(config.read_text(encoding="utf-8")).get("model_type")


def find_folder(name: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Find the folder of a saved model; the network is used for nothing but a Hub name.

    Parameters
    ----------
    name
        An existing folder (of a model, or of the run that made it), the name of a bundled model, or a Hub
        repository ``owner/name``, looked for in this order.
    revision
        Branch, tag or commit of the Hub repository.

    Raises
    ------
    had.errors.UserError
        There is nothing of that name, or the Hub cannot be reached or refuses.
    """
    path = Path(name)
    if path.is_dir():
        inner = path / "model"
        is_run = not (path / CONFIG_FILE).is_file() and (inner / CONFIG_FILE).is_file()
        return inner if is_run else path
    if (BUNDLED_FOLDER / path / CONFIG_FILE).is_file() and len(path.parts) == 1:
        return BUNDLED_FOLDER / path
    if path.is_file():
        raise UserError(f"{path} is a file; name the model's folder, the one that holds {CONFIG_FILE}.")
    bundled = ", ".join(bundled_models()) or "none"
    if str(name) == DEFAULT_MODEL:
        raise UserError(
            f"the trained model {DEFAULT_MODEL!r} is not part of this installation (bundled: {bundled}); "
            "name a folder written by `had pretrain`, or a Hub repository."
        )
    # A mistyped `runs/model` looks like a Hub name; where `runs` is a folder here, nobody meant the Hub.
    if not _HUB_NAME.fullmatch(str(name)) or path.parent.is_dir():
        raise UserError(f"{name}: no folder here and no bundled model has this name (bundled: {bundled}).")
    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=_HUB_FILES))
    except hub_errors() as error:
        raise UserError(f"{name}: no folder here, and the Hub did not give it ({reason_of(error)}).") from error


def model_type_of(folder: Path) -> object:
    """``model_type`` of a saved model; None where the folder's ``config.json`` has none.

    Raises
    ------
    had.errors.UserError
        As `read_config`.
    """
    return _read_config(folder).get("model_type")


def read_config(folder: Path, model_type: str) -> dict[str, Any]:
    """Read ``config.json`` and check its ``model_type``.

    Raises
    ------
    had.errors.UserError
        The file is absent, is not a JSON object, or belongs to another kind of model.
    """
    config = _read_config(folder)
    if (found := config.pop("model_type", None)) != model_type:
        if model_type == CLASSIFIER_TYPE and found == STUDENT_TYPE:
            raise UserError(
                f"{folder} holds a pre-trained student, which predicts nothing of yours yet: fine-tune it by "
                "had finetune DATA --model, and name the run folder of that"
            )
        raise UserError(
            f"{folder / CONFIG_FILE} describes a model of type {found!r}; this loader reads {model_type!r}."
        )
    return config


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.exists():
        raise UserError(f"{folder} holds no {CONFIG_FILE}: it is not the folder of a saved model.")
    return read_object(path)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object of a model's folder.

    Raises
    ------
    had.errors.UserError
        The file is absent, cannot be read, or does not hold a JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); copy or download it again.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} does not hold a JSON object; copy or download it again.")
    return found


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not numbers: whatever a model computes of them is NaN.

    Raises
    ------
    had.errors.UserError
        A tensor holds NaN or infinity; the message names the file and the tensors.
    """
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise UserError(
            f"{path} holds NaN or infinity in {some_of(broken)}: the file is damaged, or its training diverged; use "
            "another copy, or a model of an earlier checkpoint."
        )


def load_weights(module: nn.Module, path: Path, prefix: str = "") -> None:
    """Copy the tensors of a safetensors file into a module, all of them (whose names begin so) and nothing else.

    Raises
    ------
    had.errors.UserError
        The file is absent or damaged, holds NaN or infinity, or names or shapes differ from the module's; the message
        lists them.
    """
    try:
        found = load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} holds no {path.name}: the model's weights are missing.") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}); copy or download it again.") from error
    found = {key.removeprefix(prefix): tensor for key, tensor in found.items() if key.startswith(prefix)}
    wanted = module.state_dict()
    faults = []
    if missing := [key for key in wanted if key not in found]:
        faults.append(f"missing: {some_of(missing)}")
    if unexpected := [key for key in found if key not in wanted]:
        faults.append(f"unexpected: {some_of(unexpected)}")
    shapes = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in found and found[key].shape != tensor.shape
    ]
    if shapes:
        faults.append(f"of another shape: {some_of(shapes)}")
    if faults:
        raise UserError(f"{path} does not fit its {CONFIG_FILE}: {'; '.join(faults)}.")
    module.load_state_dict(found)
    check_finite(path, {prefix + key: tensor for key, tensor in module.state_dict().items()})


def write_folder(
    folder: str | os.PathLike[str],
    model_type: str,
    config: Mapping[str, Any],
    weights: Mapping[str, nn.Module | None],
) -> Path:
    """Write a model's folder, each file whole or not at all, ``config.json`` last.

    Parameters
    ----------
    folder
        Made where it does not exist.
    model_type, config
        Content of ``config.json``.
    weights
        File name to module; a file whose module is None is removed, so that no decoder of an earlier save
        stays.

    Raises
    ------
    had.errors.UserError
        ``folder`` is a file.
    had.errors.RunFault
        The disk refused.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder to save the model in.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, module in weights.items():
            if module is None:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise RunFault(f"{folder}: could not be written ({error.strerror or error}).") from error
    for name, module in weights.items():
        if module is not None:
            atomic_write_bytes(folder / name, save(_plain(module.state_dict()), metadata={"format": "pt"}))
    text = json.dumps({"model_type": model_type, **config}, indent=2, ensure_ascii=False)
    atomic_write_text(folder / CONFIG_FILE, text + "\n")
    return folder


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors wants them: on the CPU, contiguous, sharing no memory."""
    return {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in state.items()}


def upload_folder(folder: str | os.PathLike[str], repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Upload a saved model to the Hugging Face Hub and give the address of the commit.

    Raises
    ------
    had.errors.UserError
        The Hub cannot be reached or refuses (no login, no right to write).
    """
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=Path(folder), commit_message="Upload model")
        return str(commit)
    except hub_errors() as error:
        raise UserError(f"{repo_id}: the Hub did not take the model ({reason_of(error)}).") from error
