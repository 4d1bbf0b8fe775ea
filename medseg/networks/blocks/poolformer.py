"""PoolFormer blocks (Yu 2022)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.networks.blocks.conv import conv
from medseg.networks.blocks.norm_act import compute_again
from medseg.networks.blocks.resample import around


class PoolMixer(nn.Module):
    """The mean of a voxel's neighbours, itself among them, minus the voxel; 0 where the image is constant.

    Averages over 3 voxels along axes where `kernel` is above 1; at borders only over those that exist.
    """

    def __init__(self, kernel: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(1 if k == 1 else 3 for k in kernel)

    def forward(self, x: Tensor) -> Tensor:
        return around(x, self.size) - x


class PoolFormerBlock(nn.Module):
    """Pool mixer and a two-layer 1x1 network, each after a norm over all channels, scaled, and added to its input.

    The scales per channel start at 1e-5. Norm and activation (GELU) are the paper's.
    """

    def __init__(self, channels: int, kernel: Sequence[int], *, expand: int = 4, scale: float = 1e-5) -> None:
        super().__init__()
        ones = (1,) * len(kernel)
        self.mixer = PoolMixer(kernel)
        self.norms = nn.ModuleList([nn.GroupNorm(1, channels) for _ in range(2)])
        self.scales = nn.ParameterList([nn.Parameter(torch.full((channels, *ones), scale)) for _ in range(2)])
        self.widen = conv(channels, expand * channels, ones)
        self.narrow = conv(expand * channels, channels, ones)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scales[0] * self.mixer(self.norms[0](x))
        y: Tensor = self.scales[1] * self.narrow(compute_again(F.gelu, self.widen(self.norms[1](x))))
        return x + y
