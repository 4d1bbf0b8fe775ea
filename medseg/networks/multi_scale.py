"""U-Net that sees the image again at every scale, 2D or 3D by topology (Fu 2018, Kim 2018)."""

from typing import Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from medseg.networks.blocks.conv import ActKind, ConvNormAct, NormKind, Style, initialise
from medseg.networks.blocks.norm_act import concatenate
from medseg.networks.blocks.options import BlockOptions
from medseg.networks.blocks.windows import pool_with_places
from medseg.networks.encoders import plain, stage_kind
from medseg.networks.unet import Sizes, UNet
from medseg.types.plan import Topology


def multi_scale_unet(
    topology: Topology,
    *,
    in_channels: int,
    encoder: str = "plain",
    decoder_blocks: int = 2,
    norm: NormKind = "instance",
    act: ActKind = "leaky_relu",
    attention: str = "none",
    dropout: float = 0.0,
    **blocks: Unpack[BlockOptions],
) -> nn.Module:
    """U-Net whose stages take the finer stage's maxima together with one convolution of the averaged image.

    Blocks of another `encoder` than "plain" follow one convolution in the first stage.

    Takes any image whose size is a multiple of `topology.divisor()`.
    """
    style, sizes = Style(norm, act, attention, dropout, blocks=blocks), Sizes(topology)
    network = MultiScaleUNet(in_channels, sizes, encoder, decoder_blocks, style)
    initialise(network)
    return network


class MultiScaleUNet(nn.Module):
    """Encoder stages with pooling between them, an image pyramid that joins before each, and a U-Net's decoder."""

    def __init__(self, in_channels: int, sizes: Sizes, encoder: str, decoder_blocks: int, style: Style) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        self.pyramid = nn.ModuleList()
        build = stage_kind(encoder, style.blocks)
        inputs = in_channels
        for k, (channels, stride, kernel, blocks) in enumerate(sizes.stages()):
            ones = (1,) * len(stride)
            if k:
                self.pyramid.append(ConvNormAct(in_channels, channels, kernel, ones, style))
                inputs += channels
            entry = [ConvNormAct(inputs, channels, kernel, ones, style)] if k == 0 and build is not plain else []
            stage = build(channels if entry else inputs, channels, kernel, ones, blocks, style)
            stages.append(nn.Sequential(*entry, stage) if entry else stage)
            inputs = channels
        self.unet = UNet(stages, sizes, decoder_blocks, style)
        self.feature_channels = self.unet.feature_channels

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        sizes = self.unet.sizes
        sizes.check(image.shape[2:])
        average = F.avg_pool2d if image.dim() == 4 else F.avg_pool3d
        x, skips = self.unet.encoder[0](image), []
        for k, convs in enumerate(self.pyramid, 1):
            skips.append(x)
            stride = tuple(sizes.strides[k])
            image = average(image, stride, stride)
            x = self.unet.encoder[k](concatenate(pool_with_places(x, stride)[0], convs(image)))
        return self.unet.decode([*skips, x])
