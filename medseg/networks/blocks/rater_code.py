"""Who annotated: a learnt code per rater, added to the coarsest features."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import PlanError


class RaterCode(nn.Module):
    """Features x and a, a linear map of the rater's code that is the same at every voxel (Li 2021).

    The result is x + act(x + a) - act(x), (b, c, *s) to (b, c, *s): under an activation, because what is added to all
    voxels alike would be lost to the next instance norm.

    `raters` says whose annotation each image is to get (b,), -1 for nobody's; without it, for -1, and for raters whose
    code was not `taught`, the mean of the taught codes is taken, a consensus. The map starts at zero, where the block
    does nothing.

    >>> block = RaterCode(4, raters=2, size=3)
    >>> torch.equal(block(torch.ones(1, 4, 2, 2)), torch.ones(1, 4, 2, 2))
    True
    """

    raters: Tensor | None
    share: Tensor

    def __init__(self, channels: int, *, raters: int, size: int) -> None:
        super().__init__()
        if raters < 1 or size < 1:
            what = f"codes of {size} numbers for {raters} raters"
            raise PlanError(what, where="network.options", hint="give both as 1 or more")
        seeded = torch.Generator().manual_seed(torch.initial_seed())  # all else starts as it would without codes
        self.codes = nn.Parameter(torch.randn(raters, size, generator=seeded))
        self.register_buffer("share", torch.full((raters, 1), 1 / raters))
        self.spread_weight = nn.Parameter(torch.zeros(channels, size))  # a Linear would draw numbers, too
        self.raters = None

    def forward(self, x: Tensor) -> Tensor:
        mean = (self.share * self.codes).sum(0, keepdim=True)
        own = torch.where(self.share > 0, self.codes, mean)
        codes = mean if self.raters is None else torch.cat([own, mean])[self.raters]
        added = F.linear(codes, self.spread_weight)
        if len(added) > 1:  # a network that looks at every image in several parts has them in a row
            added = added[:, None].expand(-1, len(x) // len(added), -1).flatten(0, 1)
        shifted = x + added.reshape(*added.shape, *(1,) * (x.dim() - 2)).to(x.dtype)
        return x + (F.leaky_relu(shifted, 0.01) - F.leaky_relu(x, 0.01))

    def taught(self, raters: Sequence[int]) -> None:
        """Say whose annotations the network learns from; of nobody's, all codes count alike."""
        if raters:
            self.share.zero_()
            self.share[list(raters)] = 1 / len(raters)
