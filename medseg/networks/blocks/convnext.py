"""ConvNeXt blocks (Liu 2022)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.networks.blocks.conv import conv
from medseg.networks.blocks.down import down_conv
from medseg.networks.blocks.norm_act import compute_again
from medseg.networks.blocks.norms import ChannelLayerNorm


class ConvNextBlock(nn.Module):
    """Depthwise convolution, layer norm, 1x1 to four times the channels, GELU, 1x1 back, scaled and added to the input.

    The kernel is 7 along axes where `kernel` is above 1. The scale per channel starts at 1e-6, so that a new block is
    almost the identity; at 0 it is exactly that. Norm and activation are the paper's.
    """

    def __init__(self, channels: int, kernel: Sequence[int], *, expand: int = 4, scale: float = 1e-6) -> None:
        super().__init__()
        ones = (1,) * len(kernel)
        self.depthwise = conv(channels, channels, [1 if k == 1 else 7 for k in kernel], groups=channels)
        self.norm = ChannelLayerNorm(channels, eps=1e-6)
        self.widen = conv(channels, expand * channels, ones)
        self.narrow = conv(expand * channels, channels, ones)
        self.scale = nn.Parameter(torch.full((channels, *ones), scale))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.narrow(compute_again(F.gelu, self.widen(self.norm(self.depthwise(x)))))
        return x + self.scale * y


def patchify(inputs: int, outputs: int, stride: Sequence[int]) -> nn.Module:
    """Layer norm, then a convolution over blocks of `stride` voxels that do not overlap."""
    return nn.Sequential(ChannelLayerNorm(inputs, eps=1e-6), down_conv(inputs, outputs, stride))
