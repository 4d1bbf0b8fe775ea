"""U-Net family, 2D or 3D by topology.

A backbone is a function `(topology, *, in_channels, **options) -> nn.Module`. The module maps an image
(b, c, *s) to a tuple of decoder features, finest first, and says how many channels each has in its attribute
`feature_channels`, a tuple of int. Nothing else is asked of it.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.conv import ActKind, ConvNormAct, NormKind, Style, initialise, up_conv
from medseg.networks.blocks.norm_act import concatenate
from medseg.networks.blocks.residual import ResidualBlock
from medseg.types.plan import Topology


def unet(
    topology: Topology,
    *,
    in_channels: int,
    decoder_blocks: int = 2,
    norm: NormKind = "instance",
    act: ActKind = "leaky_relu",
) -> nn.Module:
    """Plain U-Net (Ronneberger 2015; Isensee 2021): `blocks` convolutions per stage, the first one strided.

    Takes any image whose size is a multiple of `topology.divisor()`.
    """
    style, sizes = Style(norm, act), _Sizes(topology)
    stages: list[nn.Module] = []
    inputs = in_channels
    for channels, stride, kernel, blocks in sizes.stages():
        stages.append(_convs(inputs, channels, kernel, stride, blocks, style))
        inputs = channels
    return _finish(UNet(stages, sizes, decoder_blocks, style))


def resenc_unet(
    topology: Topology,
    *,
    in_channels: int,
    decoder_blocks: int = 1,
    norm: NormKind = "instance",
    act: ActKind = "leaky_relu",
) -> nn.Module:
    """U-Net with a residual encoder (Isensee 2024): one convolution, then `blocks` residual blocks per stage.

    Takes any image whose size is a multiple of `topology.divisor()`.
    """
    style, sizes = Style(norm, act), _Sizes(topology)
    stages: list[nn.Module] = []
    inputs = topology.channels[0]
    for channels, stride, kernel, blocks in sizes.stages():
        steps = [stride] + [(1,) * len(stride)] * (blocks - 1)
        widths = [inputs] + [channels] * (blocks - 1)
        parts = [ResidualBlock(n, channels, kernel, step, style) for n, step in zip(widths, steps, strict=True)]
        if not stages:
            parts.insert(0, ConvNormAct(in_channels, inputs, kernel, (1,) * len(stride), style))  # type: ignore[arg-type]
        stages.append(nn.Sequential(*parts))
        inputs = channels
    return _finish(UNet(stages, sizes, decoder_blocks, style))


class _Sizes:
    """A topology without the axis that a 2D network does not have."""

    def __init__(self, topology: Topology) -> None:
        skip = 3 - topology.ndim
        if max(topology.strides[0]) > 1:
            raise PlanError(
                f"the first stride is {topology.strides[0]}", where="network.topology.strides", hint="use [1, 1, 1]"
            )
        self.channels = topology.channels
        self.strides = [row[skip:] for row in topology.strides]
        self.kernels = [row[skip:] for row in topology.kernels]
        self.blocks = topology.blocks
        self.divisor = topology.divisor()[skip:]

    def stages(self) -> list[tuple[int, tuple[int, ...], tuple[int, ...], int]]:
        """Channels, stride, kernel and blocks per stage, finest first."""
        return list(zip(self.channels, self.strides, self.kernels, self.blocks, strict=True))


class UNet(nn.Module):
    """Encoder stages, and per skip a transposed convolution, concatenation and convolutions."""

    def __init__(self, stages: Sequence[nn.Module], sizes: "_Sizes", decoder_blocks: int, style: Style) -> None:
        super().__init__()
        if decoder_blocks < 1:
            raise PlanError("decoder_blocks is below 1", where="network.options", hint="use 1 or 2")
        self.divisor = sizes.divisor
        self.feature_channels = sizes.channels[: max(len(stages) - 1, 1)]
        self.encoder = nn.ModuleList(stages)
        self.ups, self.decoder = nn.ModuleList(), nn.ModuleList()
        for k in range(len(stages) - 1, 0, -1):
            fine, coarse = sizes.channels[k - 1], sizes.channels[k]
            kernel = sizes.kernels[k - 1]
            self.ups.append(up_conv(coarse, fine, sizes.strides[k]))
            self.decoder.append(_convs(2 * fine, fine, kernel, (1,) * len(kernel), decoder_blocks, style))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        size = tuple(image.shape[2:])
        if len(size) != len(self.divisor) or any(n % d for n, d in zip(size, self.divisor, strict=True)):
            raise PlanError(
                f"an image of {size} voxels is not a multiple of {self.divisor}",
                where="sampling.patch",
                hint="pad the image or change the strides",
            )
        skips = []
        x = image
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        features = [x]
        for up, convs, skip in zip(self.ups, self.decoder, reversed(skips[:-1]), strict=True):
            x = convs(concatenate(up(x), skip))
            features.append(x)
        return tuple(reversed(features[1:] or features))


def _convs(
    inputs: int, channels: int, kernel: Sequence[int], stride: Sequence[int], blocks: int, style: Style
) -> nn.Sequential:
    ones = (1,) * len(kernel)
    first = ConvNormAct(inputs, channels, kernel, stride, style)
    return nn.Sequential(first, *(ConvNormAct(channels, channels, kernel, ones, style) for _ in range(blocks - 1)))


def _finish(network: nn.Module) -> nn.Module:
    initialise(network)
    return network
