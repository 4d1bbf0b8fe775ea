"""The head "boundary": edges of every class, and what they enclose, at every decoder scale (Xue 2021)."""

from collections.abc import Sequence

from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.conv import conv, initialise
from medseg.networks.blocks.extent import window
from medseg.networks.blocks.resample import maximum
from medseg.types.plan import Topology
from medseg.types.tensors import Boundary, NetworkOutput


def boundary(topology: Topology, feature_channels: tuple[int, ...], *, outputs: int) -> nn.Module:
    """Boundary detection modules of GG-Net (Xue 2021), one per decoder scale with a channel per logit.

    A module's 1x1 convolution gives F; its edge is E = pool(F) - F with a maximum over 3 voxels along every axis, over
    1 along axes whose spacing there (told by the sizes of the features) is more than twice the finest; its mask is
    F + E, logits of what the edge encloses. Since pool(F) >= F, E is never negative and the mask is pool(F) itself, F
    dilated by a voxel. So edges of the kinds "inner" and "both" of the losses "gg_net" and "boundary" can lie where the
    mask's do; those of "outer" cannot: a voxel outside that is edge has a neighbour in the mask that is none, which
    puts it into the mask. As in the paper E is taken of logits: an edge of exactly 1 asks for a step of 1 or 2 between
    inside and outside, and a sure mask for larger ones, so the two terms pull against each other. Raises PlanError for
    a task without labels.
    """
    if outputs < 1:
        raise PlanError("there are no labels to bound", where="network.heads", hint="leave out the head boundary")
    ones = (1,) * topology.ndim
    head = BoundaryHead([conv(channels, outputs, ones) for channels in feature_channels], topology.spacings()[0])
    initialise(head)
    return head


class BoundaryHead(nn.Module):
    """One convolution per scale, and a pooling kernel by the voxels there; `spacing` is that of the finest feature."""

    def __init__(self, convs: Sequence[nn.Module], spacing: Sequence[float]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.spacing = tuple(spacing)

    def forward(self, features: tuple[Tensor, ...]) -> NetworkOutput:
        finest = features[0].shape[2:]
        found = [
            detected(layer(x), self.kernel(finest, x.shape[2:])) for x, layer in zip(features, self.convs, strict=False)
        ]
        return NetworkOutput(boundaries=tuple(found))

    def kernel(self, finest: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
        """Voxels per axis over which a feature of `size` is pooled where the finest one has the size `finest`."""
        return window(3, [s * old / new for s, old, new in zip(self.spacing, finest, size, strict=True)])


def detected(f: Tensor, kernel: Sequence[int]) -> Boundary:
    """Edge pool(f) - f and mask f + edge, which is pool(f), in float32."""
    pool = maximum(f.float(), kernel)
    return Boundary(pool - f.float(), pool)
