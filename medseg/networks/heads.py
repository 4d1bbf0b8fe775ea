"""What sits on the decoder features.

A head is a function `(topology, feature_channels, *, outputs, **options) -> nn.Module`; the module maps the
features, finest first, to a tuple of logits, one tensor per feature, or to a `NetworkOutput` with the fields that
are its own. It may be given fewer features than it was built for: outside training only the finest.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.conv import conv, initialise
from medseg.types.plan import Topology


def segmentation(topology: Topology, feature_channels: tuple[int, ...], *, outputs: int) -> nn.Module:
    """A 1x1 convolution per decoder scale, each at its own resolution (deep supervision: Lee 2015)."""
    if outputs < 1:
        raise PlanError("there are no labels to segment", where="network.heads", hint="leave out the head segmentation")
    head = SegmentationHead([conv(channels, outputs, (1,) * topology.ndim) for channels in feature_channels])
    initialise(head)
    return head


class SegmentationHead(nn.Module):
    """One convolution per scale."""

    def __init__(self, convs: Sequence[nn.Module]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(conv(feature) for conv, feature in zip(self.convs, features, strict=False))
