"""Self-attention led by a guidance map (Xue 2021, GG-Net)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.conv import conv
from medseg.networks.blocks.gates import SqueezeExcite
from medseg.networks.blocks.resample import pooled
from medseg.networks.blocks.self_attention import TOKENS, attend, channel_products, grid, mix_channels, tokens

GuidanceMode = Literal["logit-sum", "released"]


class Guidance(nn.Module):
    """Attention over voxels, then over channels, of a feature (b, c, *s) led by a guide (b, g, *s) of its size.

    With "logit-sum" the weights of feature and guide are multiplied before they are normalised:
    softmax(Q K' / sqrt(d) + G H' / sqrt(d)), with queries and keys at an eighth of the channels. "released" is what
    the published code does, softmax(softmax(Q K') softmax(G H')) at full width and without a scale. The entries of
    the inner product lie between 0 and 1, so that it favours no voxel over another by more than e = 2.72, whatever it
    learns: it is close to adding the mean. Both start as the identity. Above 4096 voxels keys and values are averages
    of blocks of voxels; "released" still keeps voxels x 4096 numbers, three times.
    """

    def __init__(self, channels: int, guide_channels: int, ndim: int, *, mode: GuidanceMode = "logit-sum") -> None:
        super().__init__()
        if mode not in ("logit-sum", "released"):
            hint = "use logit-sum or released"
            raise PlanError(f'unknown guidance mode "{mode}"', where="network.options", hint=hint)
        self.position = GuidedPosition(channels, guide_channels, ndim, mode=mode)
        self.channel = GuidedChannel(channels, guide_channels, ndim, mode=mode)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        return self.channel(self.position(x, guide), guide)  # type: ignore[no-any-return]


class GuidedPosition(nn.Module):
    """x + gamma * W V, with W the weights of feature and guide together."""

    def __init__(self, channels: int, guide_channels: int, ndim: int, *, mode: GuidanceMode) -> None:
        super().__init__()
        ones = (1,) * ndim
        inner, lead = (channels, guide_channels) if mode == "released" else (max(channels // 8, 1),) * 2
        self.query, self.key = conv(channels, inner, ones), conv(channels, inner, ones, bias=False)
        self.lead_query = conv(guide_channels, lead, ones)
        self.lead_key = conv(guide_channels, lead, ones, bias=False)
        self.value = conv(channels, channels, ones)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.mode = mode

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        few, few_guide = pooled(x, TOKENS), pooled(guide, TOKENS)
        q, k, v = tokens(self.query(x)), tokens(self.key(few)), tokens(self.value(few))
        lead_k = tokens(self.lead_key(few_guide))
        if self.mode == "released":
            found = _released(q, k, tokens(self.lead_query(few_guide)), lead_k, v)
        else:
            both = torch.cat([q, tokens(self.lead_query(guide))], 2), torch.cat([k, lead_k], 2)
            found = attend(*both, v, scale=1 / math.sqrt(q.shape[2]))
        return x + self.gamma * grid(found, x)


class GuidedChannel(nn.Module):
    """x + gamma * softmax(max(E) - E) x, with E from the products of channels of feature and guide.

    The guide is brought to the feature's channels by a 1x1 convolution and passes squeeze and excitation.
    """

    def __init__(self, channels: int, guide_channels: int, ndim: int, *, mode: GuidanceMode) -> None:
        super().__init__()
        self.fit = nn.Identity() if guide_channels == channels else conv(guide_channels, channels, (1,) * ndim)
        self.excite = SqueezeExcite(channels, ndim)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.mode = mode

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        own, lead = channel_products(x), channel_products(self.excite(self.fit(guide)))
        with torch.autocast(x.device.type, enabled=False):
            if self.mode == "released":
                energy = own.softmax(-1) @ lead.softmax(-1)
            else:
                energy = (own + lead) / math.sqrt(x[0, 0].numel())
        return x + self.gamma * mix_channels(energy, x)


def _released(q: Tensor, k: Tensor, lead_q: Tensor, lead_k: Tensor, v: Tensor) -> Tensor:
    """softmax(softmax(Q K') softmax(G H')) V in float32, with one guide's query per key."""
    with torch.autocast(q.device.type, enabled=False):
        own, lead = (q.float() @ k.float().mT).softmax(-1), (lead_q.float() @ lead_k.float().mT).softmax(-1)
        return (own @ lead).softmax(-1) @ v.float()
