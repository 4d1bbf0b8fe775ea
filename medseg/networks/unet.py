"""U-Net family, 2D or 3D by topology, and the encoder-decoder that most backbones share.

A backbone is a function `(topology, *, in_channels, **options) -> nn.Module`. The module maps an image
(b, c, *s) to a tuple of decoder features, finest first, and says how many channels each has in its attribute
`feature_channels`, a tuple of int. Nothing else is asked of it. A function that has the keyword `outputs` is told the
number of logits; a module that has logits of its own returns a `Decoded`; one whose scales do not count 1, 1/2, 1/4 ...
in losses has an attribute `scale_weights`, a number per feature.
"""

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.attention import after_stage, kinds, on_skip
from medseg.networks.blocks.conv import ActKind, ConvNormAct, NormKind, Style, initialise, up_conv
from medseg.networks.blocks.norm_act import concatenate
from medseg.networks.blocks.options import BlockOptions
from medseg.networks.encoders import BuildStage, plain, stage_kind
from medseg.types.plan import Topology


def unet(
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
    """Plain U-Net (Ronneberger 2015; Isensee 2021): `blocks` convolutions per stage, the first one strided.

    `encoder` names other blocks for the encoder (see `networks.encoders`); they follow one convolution in the first
    stage. `attention` may join several kinds, as "gate+se" (see `blocks.attention`); `blocks` are options of the blocks
    that are named, as `se_reduction` (see `blocks.options`). Takes any image whose size is a multiple of
    `topology.divisor()`.
    """
    style, sizes = Style(norm, act, attention, dropout, blocks=blocks), Sizes(topology)
    network = UNet(encoder_stages(sizes, in_channels, encoder, style), sizes, decoder_blocks, style)
    initialise(network)
    return network


def resenc_unet(
    topology: Topology,
    *,
    in_channels: int,
    decoder_blocks: int = 1,
    norm: NormKind = "instance",
    act: ActKind = "leaky_relu",
    attention: str = "none",
    dropout: float = 0.0,
    drop_path: float = 0.0,
    **blocks: Unpack[BlockOptions],
) -> nn.Module:
    """U-Net with a residual encoder (Isensee 2024): one convolution, then `blocks` residual blocks per stage.

    Takes any image whose size is a multiple of `topology.divisor()`.
    """
    style, sizes = Style(norm, act, attention, dropout, drop_path, blocks=blocks), Sizes(topology)
    network = UNet(encoder_stages(sizes, in_channels, "residual", style), sizes, decoder_blocks, style)
    initialise(network)
    return network


class Sizes:
    """A topology without the axis that a 2D network does not have; raises PlanError if its first stage is strided."""

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
        self.spacings = topology.spacings()

    def stages(self) -> list[tuple[int, tuple[int, ...], tuple[int, ...], int]]:
        """Channels, stride, kernel and blocks per stage, finest first."""
        return list(zip(self.channels, self.strides, self.kernels, self.blocks, strict=True))

    def check(self, size: Sequence[int]) -> None:
        """Raise PlanError for an image size (without batch and channels) the strides do not divide."""
        if len(size) != len(self.divisor) or any(n % d for n, d in zip(size, self.divisor, strict=True)):
            raise PlanError(
                f"an image of {tuple(size)} voxels is not a multiple of {self.divisor}",
                where="sampling.patch",
                hint="pad the image or change the strides",
            )


def encoder_stages(sizes: Sizes, in_channels: int, encoder: str, style: Style) -> list[nn.Module]:
    """One module per stage, finest first; raises PlanError for an unknown `encoder`."""
    return stages_of(stage_kind(encoder, style.blocks), sizes, in_channels, style)


def stages_of(build: BuildStage, sizes: Sizes, in_channels: int, style: Style) -> list[nn.Module]:
    """Stages by their builder; all but plain ones follow one convolution in the first stage."""
    stages: list[nn.Module] = []
    stem = build is not plain
    inputs = sizes.channels[0] if stem else in_channels
    for channels, stride, kernel, blocks in sizes.stages():
        stage = build(inputs, channels, kernel, stride, blocks, style)
        if stem and not stages:
            stage = nn.Sequential(ConvNormAct(in_channels, inputs, kernel, (1,) * len(stride), style), stage)
        stages.append(stage)
        inputs = channels
    return stages


def refuse_gates(style: Style) -> None:
    """Raise PlanError for attention on skips, for networks without skips."""
    gates = [name for name, kind in kinds(style.attention).items() if kind.place == "skip"]
    if gates:
        hint = "use none, or attention that is no gate"
        raise PlanError(f'"{gates[0]}" gates skips, there are none', where="network.options", hint=hint)


class UNet(nn.Module):
    """Encoder stages, and per skip a transposed convolution, concatenation and convolutions, with their attention.

    `decoder` makes what follows each concatenation.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        sizes: Sizes,
        decoder_blocks: int,
        style: Style,
        *,
        decoder: BuildStage = plain,
    ) -> None:
        super().__init__()
        if decoder_blocks < 1:
            raise PlanError("decoder_blocks is below 1", where="network.options", hint="use 1 or 2")
        self.sizes = sizes
        self.feature_channels = sizes.channels[: max(len(stages) - 1, 1)]
        self.encoder, self.gates = nn.ModuleList(), nn.ModuleList()
        self.ups, self.decoder = nn.ModuleList(), nn.ModuleList()
        last = len(stages) - 1
        for k, stage in enumerate(stages):
            more = after_stage(style, sizes.channels[k], sizes.spacings[k], coarsest=k == last)
            self.encoder.append(nn.Sequential(stage, *more) if more else stage)
        for k in range(last, 0, -1):
            fine, coarse = sizes.channels[k - 1], sizes.channels[k]
            kernel = sizes.kernels[k - 1]
            self.gates.append(on_skip(style.attention, fine, coarse, len(kernel)))
            self.ups.append(up_conv(coarse, fine, sizes.strides[k]))
            self.decoder.append(decoder(2 * fine, fine, kernel, (1,) * len(kernel), decoder_blocks, style))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.decode(self.encode(image))

    def encode(self, image: Tensor) -> list[Tensor]:
        """The result of every encoder stage, finest first."""
        self.sizes.check(image.shape[2:])
        x, skips = image, []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        return skips

    def decode(self, skips: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Decoder features, finest first, from what `encode` returns; without skips the single stage's."""
        x, features = skips[-1], []
        for gate, up, convs, skip in zip(self.gates, self.ups, self.decoder, reversed(skips[:-1]), strict=True):
            x = convs(concatenate(up(x), gate(skip, x)))
            features.append(x)
        return tuple(reversed(features)) or (x,)
