"""V-Net, 2D or 3D by topology (Milletari 2016)."""

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.activations import ActKind, acted, activation, pieces
from medseg.networks.blocks.attention import after_stage, on_skip
from medseg.networks.blocks.conv import ConvNormAct, Style, conv, initialise, up_conv
from medseg.networks.blocks.down import down_conv
from medseg.networks.blocks.norm_act import concatenate
from medseg.networks.blocks.norms import NormKind
from medseg.networks.blocks.options import BlockOptions
from medseg.networks.unet import Sizes
from medseg.types.plan import Topology


def vnet(
    topology: Topology,
    *,
    in_channels: int,
    kernel_size: int = 5,
    decoder_blocks: int | None = None,
    norm: NormKind = "instance",
    act: ActKind = "prelu",
    attention: str = "none",
    dropout: float = 0.0,
    **blocks: Unpack[BlockOptions],
) -> nn.Module:
    """V-Net: every stage adds its input to what its convolutions make of it.

    Kernels are `kernel_size` along axes where the topology's are above 1. A stage has `blocks` convolutions, in the
    decoder `decoder_blocks` or, without a number, those of the encoder stage of its size; the paper has no norm.
    Takes any image whose size is a multiple of `topology.divisor()`.
    """
    if kernel_size % 2 == 0 or (decoder_blocks is not None and decoder_blocks < 1):
        given = f"kernel_size is {kernel_size}, decoder_blocks {decoder_blocks}"
        raise PlanError(given, where="network.options", hint="use an odd kernel and 1 or more blocks")
    style, sizes = Style(norm, act, attention, dropout, blocks=blocks), Sizes(topology)
    sizes.kernels = [tuple(1 if k == 1 else kernel_size for k in kernel) for kernel in sizes.kernels]
    network = VNet(in_channels, sizes, decoder_blocks, style)
    initialise(network)
    return network


class VNet(nn.Module):
    """Encoder stages, and per skip a transposed convolution, concatenation and a stage that keeps all channels.

    Decoder features have twice the channels of the encoder's at their size.
    """

    def __init__(self, in_channels: int, sizes: Sizes, decoder_blocks: int | None, style: Style) -> None:
        super().__init__()
        self.sizes = sizes
        self.encoder, self.gates = nn.ModuleList(), nn.ModuleList()
        self.ups, self.decoder = nn.ModuleList(), nn.ModuleList()
        last, inputs = len(sizes.channels) - 1, in_channels
        for k, (channels, stride, kernel, blocks) in enumerate(sizes.stages()):
            entry: nn.Module = _down(inputs, channels, stride, style) if k else nn.Identity()
            stage = ResidualStage(channels if k else inputs, channels, kernel, blocks, style)
            more = after_stage(style, channels, sizes.spacings[k], coarsest=k == last)
            self.encoder.append(nn.Sequential(entry, stage, *more))
            inputs = channels
        for k in range(last, 0, -1):
            fine, coarse, kernel = sizes.channels[k - 1], inputs, sizes.kernels[k - 1]
            self.gates.append(on_skip(style.attention, fine, coarse, len(kernel)))
            self.ups.append(_up(coarse, fine, sizes.strides[k], style))
            blocks = decoder_blocks or sizes.blocks[k - 1]
            self.decoder.append(ResidualStage(2 * fine, 2 * fine, kernel, blocks, style))
            inputs = 2 * fine
        self.feature_channels = tuple(2 * n for n in sizes.channels[:last]) or sizes.channels

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        self.sizes.check(image.shape[2:])
        x, skips = image, []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        features = []
        for gate, up, stage, skip in zip(self.gates, self.ups, self.decoder, reversed(skips[:-1]), strict=True):
            x = stage(concatenate(up(x), gate(skip, x)))
            features.append(x)
        return tuple(reversed(features)) or (x,)


class ResidualStage(nn.Module):
    """`blocks` convolutions, plus the input, then the activation.

    An input of one channel is added to all of them; one of another number than `outputs` through a 1x1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], blocks: int, style: Style) -> None:
        super().__init__()
        ones = (1,) * len(kernel)
        widths = [inputs] + [outputs] * (blocks - 1)
        self.layers = nn.Sequential(
            *(ConvNormAct(width, outputs, kernel, ones, style, act=n + 1 < blocks) for n, width in enumerate(widths))
        )
        self.project = nn.Identity() if inputs in (1, outputs) else conv(inputs, outputs, ones, bias=False)
        self.act = activation(style.act, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return acted(self.act, self.layers(x) + self.project(x))


def _down(inputs: int, outputs: int, stride: Sequence[int], style: Style) -> nn.Module:
    """Convolution, norm and activation whose kernel is its stride."""
    ones = (1,) * len(stride)
    layer = ConvNormAct(inputs, outputs, ones, ones, style)
    layer.conv = down_conv(inputs, outputs * pieces(style.act), stride)
    return layer


def _up(inputs: int, outputs: int, stride: Sequence[int], style: Style) -> nn.Module:
    ones = (1,) * len(stride)
    layer = ConvNormAct(inputs, outputs, ones, ones, style)
    layer.conv = up_conv(inputs, outputs * pieces(style.act), stride)
    return layer
