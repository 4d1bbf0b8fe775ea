"""U-Net whose decoder puts values back where max pooling took them from (Noh 2015, Badrinarayanan 2017)."""

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.activations import ActKind
from medseg.networks.blocks.attention import after_stage, on_skip
from medseg.networks.blocks.conv import ConvNormAct, Style, initialise
from medseg.networks.blocks.norm_act import concatenate
from medseg.networks.blocks.norms import NormKind
from medseg.networks.blocks.options import BlockOptions
from medseg.networks.blocks.windows import pool_with_places, unpool
from medseg.networks.encoders import plain
from medseg.networks.unet import Sizes, encoder_stages, refuse_gates
from medseg.types.plan import Topology


def unpool_unet(
    topology: Topology,
    *,
    in_channels: int,
    encoder: str = "plain",
    decoder_blocks: int = 2,
    skips: bool = True,
    norm: NormKind = "instance",
    act: ActKind = "leaky_relu",
    attention: str = "none",
    dropout: float = 0.0,
    **blocks: Unpack[BlockOptions],
) -> nn.Module:
    """U-Net with max pooling between stages and, in the decoder, unpooling to the places of the maxima.

    Without `skips` these places are all that the decoder gets from finer stages, as in DeconvNet (Noh 2015); there
    attention that gates skips is an error. Takes any image whose size is a multiple of `topology.divisor()`.
    """
    style, sizes = Style(norm, act, attention, dropout, blocks=blocks), Sizes(topology)
    inside = Sizes(topology)
    inside.strides = [(1,) * topology.ndim for _ in inside.strides]
    stages = encoder_stages(inside, in_channels, encoder, style)
    network = UnpoolUNet(stages, sizes, decoder_blocks, style, skips=skips)
    initialise(network)
    return network


class UnpoolUNet(nn.Module):
    """Encoder stages with pooling between them, and per pooling a convolution, unpooling and convolutions."""

    def __init__(
        self, stages: Sequence[nn.Module], sizes: Sizes, decoder_blocks: int, style: Style, *, skips: bool
    ) -> None:
        super().__init__()
        if decoder_blocks < 1:
            raise PlanError("decoder_blocks is below 1", where="network.options", hint="use 1 or 2")
        if not skips:
            refuse_gates(style)
        self.sizes, self.skips = sizes, skips
        last = len(stages) - 1
        self.feature_channels = sizes.channels[: max(last, 1)]
        self.encoder, self.gates = nn.ModuleList(), nn.ModuleList()
        self.narrow, self.decoder = nn.ModuleList(), nn.ModuleList()
        for k, stage in enumerate(stages):
            more = after_stage(style, sizes.channels[k], sizes.spacings[k], coarsest=k == last)
            self.encoder.append(nn.Sequential(stage, *more))
        for k in range(last, 0, -1):
            fine, coarse, kernel = sizes.channels[k - 1], sizes.channels[k], sizes.kernels[k - 1]
            ones = (1,) * len(kernel)
            self.gates.append(on_skip(style.attention, fine, coarse, len(kernel)))
            self.narrow.append(ConvNormAct(coarse, fine, sizes.kernels[k], ones, style))
            self.decoder.append(plain(2 * fine if skips else fine, fine, kernel, ones, decoder_blocks, style))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        self.sizes.check(image.shape[2:])
        x, kept, places = image, list[Tensor](), list[Tensor]()
        for stage, stride in zip(self.encoder, self.sizes.strides, strict=True):
            if kept:
                x, place = pool_with_places(x, stride)
                places.append(place)
            x = stage(x)
            kept.append(x)
        features = []
        for k in range(len(places), 0, -1):
            row = len(places) - k
            skip = self.gates[row](kept[k - 1], x) if self.skips else None
            x = unpool(self.narrow[row](x), places[k - 1], self.sizes.strides[k])
            x = self.decoder[row](x if skip is None else concatenate(x, skip))
            features.append(x)
        return tuple(reversed(features)) or (x,)
