"""An optimizer's state as named tensors and JSON, so that it can be saved without pickle."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from had.errors import UserError

# How a step is computed, not what it computes: these follow the machine, not the checkpoint.
_IMPLEMENTATION = frozenset({"fused", "foreach", "capturable", "differentiable"})


def optimizer_tensors(
    optimizer: Optimizer, names: Iterable[tuple[str, nn.Parameter]], prefix: str = "optimizer"
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Take an optimizer's state apart.

    Parameters
    ----------
    optimizer
        Any optimizer whose state per parameter is tensors and JSON scalars (AdamW, fused or not, Muon, SGD);
        accelerate's wrapper is looked through.
    names
        ``model.named_parameters()`` of everything the optimizer trains.
    prefix
        Start of the tensors' names, to keep several optimizers, and the weights, apart.

    Returns
    -------
    tensors
        By name ``prefix/key/parameter name``, for instance ``optimizer/exp_avg/embedding.weight``. They are
        the optimizer's own, not copies.
    state
        Hyperparameters, parameter names per group, and scalars, as JSON values.
    """
    optimizer = _unwrapped(optimizer)
    name_of = _name_of(optimizer, names)
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for parameter, values in optimizer.state.items():
        name = name_of[parameter]
        scalars[name] = {}
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{prefix}/{key}/{name}"] = value
            else:
                scalars[name][key] = value
    groups = []
    for group in optimizer.param_groups:
        settings = {key: _plain(value) for key, value in group.items() if key != "params"}
        groups.append({"params": [name_of[p] for p in group["params"]], "settings": settings})
    return tensors, {"optimizer": type(optimizer).__name__, "groups": groups, "scalars": scalars}


def restore_optimizer(
    optimizer: Optimizer,
    names: Iterable[tuple[str, nn.Parameter]],
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    prefix: str = "optimizer",
) -> None:
    """Put back what `optimizer_tensors` took apart, bit for bit, on the devices of the parameters.

    Parameters
    ----------
    optimizer
        A new optimizer of the same class over the same parameters in the same groups.
    names
        As in `optimizer_tensors`.
    tensors
        At least those with `prefix`; others, such as the weights, are ignored. They are copied.
    state
        The JSON values of `optimizer_tensors`.
    prefix
        As in `optimizer_tensors`.

    Raises
    ------
    had.errors.UserError
        The checkpoint belongs to another optimizer or to other parameters.
    """
    optimizer = _unwrapped(optimizer)
    name_of = _name_of(optimizer, names)
    parameters = {name: parameter for parameter, name in name_of.items()}
    _check_same(optimizer, name_of, state)
    by_parameter: dict[torch.Tensor, dict[str, Any]] = {
        parameters[name]: dict(scalars) for name, scalars in state["scalars"].items()
    }
    group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
    for full_name, tensor in tensors.items():
        if not full_name.startswith(prefix + "/"):
            continue
        key, _, name = full_name.removeprefix(prefix + "/").partition("/")
        if name not in parameters:
            raise UserError(f"the checkpoint has optimizer state of {name!r}, which this run does not train.")
        parameter = parameters[name]
        group = group_of[parameter]
        # PyTorch counts steps on the CPU unless the optimizer is fused or capturable.
        on_cpu = key == "step" and not (group.get("fused") or group.get("capturable"))
        device = torch.device("cpu") if on_cpu else parameter.device
        by_parameter[parameter][key] = tensor.to(device=device, copy=True)
    optimizer.state.clear()
    optimizer.state.update(by_parameter)
    for group, saved in zip(optimizer.param_groups, state["groups"], strict=True):
        for key, value in saved["settings"].items():
            if key in _IMPLEMENTATION:
                continue
            if isinstance(group.get(key), torch.Tensor):
                group[key].fill_(value)
            else:
                group[key] = tuple(value) if isinstance(value, list) else value


def _unwrapped(optimizer: Optimizer) -> Optimizer:
    inner = getattr(optimizer, "optimizer", optimizer)
    return inner if isinstance(inner, Optimizer) else optimizer


def _name_of(optimizer: Optimizer, names: Iterable[tuple[str, nn.Parameter]]) -> dict[torch.Tensor, str]:
    known = {parameter: name for name, parameter in names}
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    unnamed = [tuple(parameter.shape) for parameter in trained if parameter not in known]
    if unnamed:
        raise ValueError(f"the optimizer trains parameters that have no name here, of shapes {unnamed}")
    return {parameter: known[parameter] for parameter in trained}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.item()
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _check_same(optimizer: Optimizer, name_of: Mapping[torch.Tensor, str], state: Mapping[str, Any]) -> None:
    if state["optimizer"] != type(optimizer).__name__:
        raise UserError(
            f"the checkpoint was made with {state['optimizer']}, this run uses {type(optimizer).__name__}; "
            "set the recipe's optimizer back, or start a new run."
        )
    saved = [group["params"] for group in state["groups"]]
    here = [[name_of[p] for p in group["params"]] for group in optimizer.param_groups]
    if saved != here:
        differing = {n for names in saved for n in names} ^ {n for names in here for n in names}
        detail = f"such as {min(differing)!r}" if differing else "the groups differ"
        raise UserError(f"the checkpoint's optimizer trains other parameters than this run ({detail}).")
