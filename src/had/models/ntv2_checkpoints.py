"""Reading and writing Nucleotide Transformer v2 checkpoints as the Hub has them: ``config.json`` and weights.

The Hub's names of tensors (those of an ESM masked-language model) are translated to this package's. What the
network would not compute as the publisher's code does is refused: an option in ``config.json`` that it does
not implement, a missing or unknown tensor, a wrong shape. Files are data only: safetensors, or a ``.bin``
read with ``weights_only=True``.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from had.console import some_of
from had.errors import RunFault, UserError
from had.files import atomic_write_text, fsync_file, fsync_folder, temporary_name
from had.models.ntv2_published import CONFIG_FILE, WEIGHTS_FILE
from had.models.saving import check_finite, read_object

Shape = tuple[int, ...]

_MODULES = {
    "embedding": "esm.embeddings.word_embeddings",
    "final_norm": "esm.encoder.emb_layer_norm_after",
    "head_dense": "lm_head.dense",
    "head_norm": "lm_head.layer_norm",
}
_LAYER_MODULES = {
    "attention_norm": "attention.LayerNorm",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "ffn_norm": "LayerNorm",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
}
_TENSORS = {"decoder.weight": "lm_head.decoder.weight", "decoder.bias": "lm_head.bias"}

_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_OPTIONS: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("rotary",),
    "token_dropout": (False, None),
    "emb_layer_norm_before": (False, None),
    "tie_word_embeddings": (False, None),
    "add_bias_fnn": (False, None),
    "hidden_act": ("silu", "swish", None),
    "is_folding_model": (False, None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pad_token_id": (1, None),
    "mask_token_id": (2, None),
}
"""Values that the forward pass implements; None stands for an absent key."""
_WRITTEN = {
    "add_bias_fnn": False,
    "architectures": ["EsmForMaskedLM"],
    "attention_probs_dropout_prob": 0.0,
    "emb_layer_norm_before": False,
    "esmfold_config": None,
    "hidden_dropout_prob": 0.0,
    "is_folding_model": False,
    "mask_token_id": 2,
    "pad_token_id": 1,
    "position_embedding_type": "rotary",
    "tie_word_embeddings": False,
    "token_dropout": False,
    "use_cache": False,
    "vocab_list": None,
}
_WRITTEN_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def hub_key(key: str) -> str:
    """Name in a checkpoint of a tensor of `NucleotideTransformer`, such as ``layers.0.query.bias``."""
    if key in _TENSORS:
        return _TENSORS[key]
    module, _, kind = key.rpartition(".")
    if module in _MODULES:
        return f"{_MODULES[module]}.{kind}"
    _, index, part = module.split(".")
    return f"esm.encoder.layer.{index}.{_LAYER_MODULES[part]}.{kind}"


def unused_shapes(sizes: Mapping[str, Any]) -> dict[str, Shape]:
    """Shapes of the tensors that the published checkpoints hold though no output depends on them.

    Parameters
    ----------
    sizes
        Fields of `NucleotideTransformerConfig`; without ``max_position_embeddings`` that of the published
        models.
    """
    width, heads, layers = sizes["hidden_size"], sizes["num_attention_heads"], sizes["num_hidden_layers"]
    shapes: dict[str, Shape] = {
        "esm.embeddings.position_embeddings.weight": (sizes.get("max_position_embeddings", 2050), width),
        "esm.contact_head.regression.weight": (1, layers * heads),
        "esm.contact_head.regression.bias": (1,),
    }
    for layer in range(layers):
        key = f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"
        shapes[key] = (width // heads // 2,)
    return shapes


def read_config(path: Path) -> dict[str, Any]:
    """Read ``config.json`` and check that the network implements what it describes.

    Raises
    ------
    had.errors.UserError
        The file is no JSON object, lacks a size, is of another kind of model, or asks for what is not
        implemented.
    """
    config = read_object(path)
    # The Hub's files have no model_type; a copy that transformers saved again says "esm".
    if (kind := config.get("model_type", "esm")) != "esm":
        raise UserError(f"{path} describes a model of type {kind!r}, not a Nucleotide Transformer v2.")
    if missing := [name for name in _REQUIRED if name not in config]:
        raise UserError(f"{path} lacks {', '.join(missing)}: it does not describe a Nucleotide Transformer v2.")
    for name, allowed in _OPTIONS.items():
        value = config.get(name)
        # 0 == False in Python: compare types, too.
        if not any(value == option and type(value) is type(option) for option in allowed):
            raise UserError(
                f"{path}: {name} is {json.dumps(value)}; Nucleotide Transformer v2 has "
                f"{json.dumps(allowed[0])}, and nothing else is implemented."
            )
    return config


def read_weights(
    path: Path, wanted: Mapping[str, Shape], sizes: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Read the weights of a checkpoint, all of them and nothing else.

    Parameters
    ----------
    path
        ``model.safetensors`` or ``pytorch_model.bin``.
    wanted
        Shapes of the network's tensors by its own names.
    sizes
        Fields of `NucleotideTransformerConfig`, for the tensors that are stored but unused.
    dtype
        Floating-point type to convert to.

    Returns
    -------
    dict
        The network's tensors, on the CPU, by its own names.

    Raises
    ------
    ValueError
        ``dtype`` is no floating-point type.
    had.errors.UserError
        The file is damaged, holds code, NaN or infinity, or keys or shapes differ; the message names the file
        and lists the keys.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type; got {dtype}")
    read = _read_torch_file if path.suffix == ".bin" else _read_safetensors
    found = read(path, {hub_key(key): key for key in wanted}, wanted, unused_shapes(sizes), dtype)
    check_finite(path, {hub_key(key): tensor for key, tensor in found.items()})
    return found


def _read_safetensors(
    path: Path,
    own_key: dict[str, str],
    wanted: Mapping[str, Shape],
    unused: dict[str, Shape],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            _compare(path, found, {hub: wanted[own] for hub, own in own_key.items()}, unused)
            # Copied, not mapped: the file may be replaced while the network is in use.
            return {own: _convert(path, hub, file.get_tensor(hub), dtype) for hub, own in own_key.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}); copy or download it again.") from error


def _read_torch_file(
    path: Path,
    own_key: dict[str, str],
    wanted: Mapping[str, Shape],
    unused: dict[str, Shape],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"{path} is damaged, or holds more than tensors and could run code on loading: it is refused; use "
            f"a {WEIGHTS_FILE}."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, LookupError) as error:
        raise UserError(f"{path} is damaged or no PyTorch file ({error}); copy or download it again.") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} does not hold tensors by name; it is no checkpoint of a whole network.")
    found = {str(key): tuple(value.shape) for key, value in state.items()}
    _compare(path, found, {hub: wanted[own] for hub, own in own_key.items()}, unused)
    return {own: _convert(path, hub, state[hub], dtype) for hub, own in own_key.items()}


def _convert(path: Path, key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        raise UserError(f"{path}: {key} holds {tensor.dtype}, not floating-point numbers.")
    return tensor.to(dtype, copy=True)


def _compare(path: Path, found: dict[str, Shape], wanted: dict[str, Shape], unused: dict[str, Shape]) -> None:
    known = {**wanted, **unused}
    shapes = [
        f"{key} {found[key]} instead of {known[key]}" for key in known if found.get(key, known[key]) != known[key]
    ]
    faults = {
        "missing": [key for key in wanted if key not in found],
        "unexpected": [key for key in found if key not in known],
        "of another shape": shapes,
    }
    texts = [f"{fault}: {some_of(keys)}" for fault, keys in faults.items() if keys]
    if texts:
        raise UserError(f"{path} does not fit its {CONFIG_FILE}; tensors {'; '.join(texts)}.")


def write_checkpoint(
    folder: str | os.PathLike[str],
    sizes: Mapping[str, Any],
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
    licence: str,
) -> None:
    """Write a network's weights and then its ``config.json``, each whole or not at all.

    Parameters
    ----------
    folder
        Made where it does not exist.
    sizes
        Fields of `NucleotideTransformerConfig`.
    state
        Tensors by the network's own names.
    dtype
        Of the stored weights: float32, float16 or bfloat16.
    licence
        Of the weights, for ``config.json``; empty where none is stated.

    Raises
    ------
    ValueError
        Another dtype, or a weight that float16 cannot hold.
    had.errors.UserError
        ``folder`` is a file.
    had.errors.RunFault
        The disk refused.
    """
    if dtype not in _WRITTEN_DTYPES:
        raise ValueError(f"weights are stored as float32, float16 or bfloat16; got {dtype}")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder to save the network in.")
    tensors = {hub_key(key): tensor.detach().to("cpu", dtype).contiguous() for key, tensor in state.items()}
    if dtype == torch.float16 and any(tensor.isinf().any() for tensor in tensors.values()):
        raise ValueError("a weight is too large for float16; save as bfloat16 or float32")
    target = folder / WEIGHTS_FILE
    aside = temporary_name(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, aside, metadata={"format": "pt"})
            fsync_file(aside)
            os.replace(aside, target)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        fsync_folder(folder)
    except (OSError, SafetensorError) as error:
        raise RunFault(f"{target}: could not be written ({error}).") from error
    config = {
        **_WRITTEN,
        **sizes,
        "torch_dtype": _WRITTEN_DTYPES[dtype],
        **({"licence": licence} if licence else {}),
    }
    atomic_write_text(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")
