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
    1 along axes whose spacing there is more than twice the finest; its mask is F + E, logits of what the edge
    encloses. Since pool(F) >= F, E is never negative and the mask is pool(F) itself, F dilated by a voxel. So of the
    edge targets of the losses "gg_net" and "boundary", "inner" and "both" can be met together with the mask's; "outer"
    cannot: a voxel outside that is edge has a neighbour in the mask that is none, which puts it into the mask. Raises
    PlanError for a task without labels.
    """
    if outputs < 1:
        raise PlanError("there are no labels to bound", where="network.heads", hint="leave out the head boundary")
    ones = (1,) * topology.ndim
    spacings = topology.spacings()
    kernels = [window(3, spacings[min(k, len(spacings) - 1)]) for k in range(len(feature_channels))]
    head = BoundaryHead([conv(channels, outputs, ones) for channels in feature_channels], kernels)
    initialise(head)
    return head


class BoundaryHead(nn.Module):
    """One convolution and one pooling kernel per scale."""

    def __init__(self, convs: Sequence[nn.Module], kernels: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.kernels = tuple(kernels)

    def forward(self, features: tuple[Tensor, ...]) -> NetworkOutput:
        pairs = zip(features, self.convs, self.kernels, strict=False)
        return NetworkOutput(boundaries=tuple(detected(layer(x), kernel) for x, layer, kernel in pairs))


def detected(f: Tensor, kernel: Sequence[int]) -> Boundary:
    """Edge pool(f) - f and mask f + edge, which is pool(f), in float32."""
    pool = maximum(f.float(), kernel)
    return Boundary(pool - f.float(), pool)
