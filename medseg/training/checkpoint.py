"""Resume points and weights: tensors and plain values in one safetensors file, never pickled classes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from medseg.errors import TrainingError
from medseg.io.files import whole_file

_KEY = "medseg"
_NUMBERS = (bool, int, float)
_SWITCHES = frozenset({"capturable", "differentiable", "foreach", "fused", "maximize"})


def save(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any] | None = None) -> None:
    """Write tensors and JSON values as one file, whole or not at all; the same content gives the same bytes.

    Raises TrainingError if it cannot be written, e.g. on a full disk; the file that was there is then still whole.
    """
    flat = {name: tensors[name].detach().to("cpu").contiguous() for name in sorted(tensors)}
    metadata = None if values is None else {_KEY: json.dumps(values, sort_keys=True)}
    with whole_file(path) as temporary:
        try:
            save_file(flat, temporary, metadata=metadata)
        except SafetensorError as error:
            raise TrainingError(f"cannot be written ({error})", where=path, hint="make room and start again") from error


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors on the CPU and the values; raises TrainingError if the file is no checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads((file.metadata() or {})[_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, values
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise TrainingError(
            f"is no readable checkpoint ({error})", where=path, hint="delete it to train this fold from the start"
        ) from error


def pack(
    network: nn.Module, optimizer: Optimizer, average: Mapping[str, Tensor] | None, *, prefix: str = ""
) -> dict[str, Tensor]:
    """Every tensor and number that training goes on from, by name; `prefix` tells several networks apart.

    Of an optimiser these are its state per parameter and the numbers of its groups, but for switches of how it
    computes. Raises TrainingError for one that keeps something else, which could not be taken up again.
    """
    tensors = {f"network/{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"average/{name}": tensor for name, tensor in (average or {}).items()}
    tensors |= {**_states(optimizer), **_groups(optimizer)}
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _states(optimizer: Optimizer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    parameters = _parameters(optimizer)
    known = {id(parameter) for parameter in parameters}
    if any(id(key) not in known for key in optimizer.state):
        raise _unknown("a state that belongs to no parameter")
    for number, parameter in enumerate(parameters):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{number}/{key}"] = value
            elif isinstance(value, _NUMBERS):
                tensors[f"numbers/{number}/{key}"] = _boxed(value)
            elif value is not None:
                raise _unknown(f'"{key}" as {type(value).__name__}')
    return tensors


def _groups(optimizer: Optimizer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for number, group in enumerate(optimizer.param_groups):
        if any(isinstance(value, Tensor) for value in group.values()):
            raise _unknown("tensors in its groups")
        numbers = {key: value for key, value in group.items() if isinstance(value, _NUMBERS) and key not in _SWITCHES}
        tensors |= {f"groups/{number}/{key}": _boxed(value) for key, value in numbers.items()}
    return tensors


def _unknown(what: str) -> TrainingError:
    hint = "keep its state in tensors and numbers of each parameter, or use sgd or adamw"
    return TrainingError(f"the optimiser keeps {what}, which no checkpoint can hold", hint=hint)


def _boxed(value: float) -> Tensor:
    """A number, exactly, as a tensor that `Tensor.item` turns back into it."""
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def unpack(
    tensors: Mapping[str, Tensor],
    network: nn.Module,
    optimizer: Optimizer,
    average: Mapping[str, Tensor] | None,
    *,
    prefix: str = "",
) -> None:
    """Put what `pack` returned back in place, in the memory layout of the parameters; raises TrainingError."""
    mine = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    own = {name.removeprefix("network/"): t for name, t in mine.items() if name.startswith("network/")}
    try:
        network.load_state_dict(own)
        for name, tensor in (average or {}).items():
            tensor.copy_(mine[f"average/{name}"])
    except (RuntimeError, KeyError) as error:
        raise TrainingError(
            f"the checkpoint does not fit the plan ({str(error).splitlines()[0]})",
            hint="train into another output folder",
        ) from error
    parameters = _parameters(optimizer)
    for name, tensor in mine.items():
        if name.startswith("optimizer/"):
            _, number, key = name.split("/", 2)
            parameter = parameters[int(number)]
            optimizer.state[parameter][key] = _like(tensor, parameter)
        elif name.startswith("numbers/"):
            _, number, key = name.split("/", 2)
            optimizer.state[parameters[int(number)]][key] = tensor.item()
        elif name.startswith("groups/"):
            _, number, key = name.split("/", 2)
            optimizer.param_groups[int(number)][key] = tensor.item()


def _like(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    if tensor.shape != parameter.shape or tensor.ndim == 0:
        return tensor.clone()
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor).detach()


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
