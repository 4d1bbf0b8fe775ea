"""Networks as programs that run without medseg."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from medseg.errors import PlanError
from medseg.networks.build import HeadedNetwork, arrange
from medseg.types.tensors import NetworkOutput

FIELDS = ("heatmaps", "points", "distances")  # besides the finest logits; the others are there to learn with


@dataclass(frozen=True, eq=False)
class Exported:
    """A program from one image (b, c, *s) to a tuple of tensors called `outputs`; `batch` is null where b is free."""

    program: ExportedProgram
    outputs: tuple[str, ...]
    size: tuple[int, ...]
    batch: int | None


def _fuse(module: nn.Module) -> nn.Module:
    """A module in eval mode, its batch norms and RepVGG branches made part of its convolutions in place."""
    fuse = getattr(module, "fuse", None)
    if callable(fuse):
        result = fuse()
        assert isinstance(result, nn.Module)
        return result
    for name, child in list(module.named_children()):
        setattr(module, name, _fuse(child))
    return module


def exported(
    networks: Sequence[HeadedNetwork], *, channels: int, size: Sequence[int], batch: int | None = None
) -> Exported:
    """The members of an ensemble, on the CPU, as one program for images (b, channels, *size); it returns their mean.

    Without `batch` any number of images may be given at once. Raises PlanError where torch cannot export the network,
    and for several members that find landmarks, whose mean is not one of their numbers.
    """
    members = [_fuse(arrange(copy.deepcopy(network), channels_last=False).eval()) for network in networks]
    example = torch.zeros(batch or 2, channels, *size)
    with torch.no_grad():
        outputs = tuple(named(members[0](example)))
    if len(members) > 1 and outputs != ("logits",):
        raise PlanError(
            f"an ensemble of networks with {', '.join(outputs)} is no one program",
            where="network.heads",
            hint="export one fold of a model whose plan has one network per fold",
        )
    free = {"image": {0: Dim("batch")}} if batch is None else None
    try:
        with torch.no_grad():
            program = torch.export.export(_Mean(members), (example,), dynamic_shapes=free)
    except Exception as error:  # torch raises many kinds
        reason = str(error).strip().splitlines()[0]
        raise PlanError(
            f"torch cannot export this network ({reason})",
            where="network",
            hint="fix the number of images in a batch" if batch is None else "use another backbone",
        ) from error
    return Exported(program, outputs, tuple(size), batch)


def named(output: NetworkOutput) -> Mapping[str, Tensor]:
    """What is of use after training, by name: the finest logits, heat maps, points, distances."""
    found = {"logits": output.logits[0]} if output.logits else {}
    rest = {name: getattr(output, name) for name in FIELDS}
    return found | {name: value for name, value in rest.items() if value is not None}


class _Mean(nn.Module):
    """What the members return, averaged."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found = [tuple(named(member(image)).values()) for member in self.members]
        if len(found) == 1:
            return found[0]
        return tuple(torch.stack(parts).mean(0) for parts in zip(*found, strict=True))
