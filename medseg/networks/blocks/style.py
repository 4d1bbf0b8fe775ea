"""The style of features, their mean and deviation per channel, and features given another (Huang 2017)."""

import torch
from torch import Tensor, nn

_REMEMBERED = 100  # batches


class AdaptiveInstanceNorm(nn.Module):
    """In training the features as they are; in eval with the style that features had in training (Huang 2017).

    That style, mean and variance over the voxels of a sample, is averaged over samples, for the last 100 batches or so.
    A scan of another contrast then looks to all further layers like one of those learnt from. Where there was no
    training yet, or a channel has one voxel, features stay as they are in eval, too. (b, c, *s) to (b, c, *s).
    """

    mean: Tensor
    var: Tensor
    seen: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.zeros(channels))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self._remember(x)
            return x
        if x[0, 0].numel() == 1:
            return x
        return torch.where(self.seen > 0, adapt_style(x, self.mean, self.var.sqrt()), x)

    @torch.no_grad()
    def _remember(self, x: Tensor) -> None:
        mean, std = style_statistics(x)
        self.seen.add_(1).clamp_(max=_REMEMBERED)
        self.mean.lerp_(mean.mean(0), 1 / self.seen)
        self.var.lerp_(std.square().mean(0), 1 / self.seen)


def style_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per sample and channel of (b, c, *s), each (b, c), in float32 at least."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    var, mean = torch.var_mean(wide, tuple(range(2, x.dim())), correction=0)
    return mean, var.sqrt()


def adapt_style(x: Tensor, mean: Tensor, std: Tensor, *, eps: float = 1e-5) -> Tensor:
    """`x` with the style `mean`, `std`, each (b, c) or (c,): adaptive instance norm (Huang 2017).

    `eps` is added to both variances, as in instance norm: a channel that hardly varies stays near its new mean.
    """
    own_mean, own_std = (t[(...,) + (None,) * (x.dim() - 2)] for t in style_statistics(x))
    new_mean, new_std = (t[(...,) + (None,) * (x.dim() - 2)] for t in (mean, std))
    ratio = ((new_std.square() + eps) / (own_std.square() + eps)).sqrt()
    return torch.addcmul(new_mean, x - own_mean, ratio).to(x.dtype)
