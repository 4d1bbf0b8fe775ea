"""Dropout of channels and of whole branches."""

import torch
from torch import Tensor, nn

from medseg.errors import PlanError


def channel_dropout(chance: float, ndim: int) -> nn.Module:
    """Drops whole channels of a sample in training and divides the others by the chance to stay (Tompson 2015).

    Raises PlanError unless 0 <= chance < 1.
    """
    check_chance(chance, "dropout")
    return nn.Dropout2d(chance) if ndim == 2 else nn.Dropout3d(chance)


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch per sample in training, else divides by the chance to stay.

    (Huang 2016.) Raises PlanError unless 0 <= chance < 1.
    """

    def __init__(self, chance: float) -> None:
        super().__init__()
        check_chance(chance, "drop_path")
        self.chance = chance

    def forward(self, x: Tensor) -> Tensor:
        if self.chance == 0 or not self.training:
            return x
        stay = 1 - self.chance
        kept = torch.empty(x.shape[0], *(1,) * (x.dim() - 1), dtype=x.dtype, device=x.device).bernoulli_(stay)
        return x * (kept / stay)


def check_chance(chance: float, name: str) -> None:
    """Raise PlanError unless 0 <= chance < 1."""
    if not 0 <= chance < 1:
        raise PlanError(f"{name} is {chance}", where="network.options", hint="use 0 or more and less than 1")
