"""Critics for adversarial training: networks that judge label maps, and are thrown away after training.

A critic is a function `(topology, *, channels, classes, **options) -> Critic`. Its module is called with the image
(b, c, *s) and two stacks of masks (b, k, *s) in [0, 1], the predicted and the true, and returns a scalar: what the
segmentor minimises, or with `own=True` what the critic itself minimises. Only masks of foreground classes are judged.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from medseg.errors import PlanError
from medseg.networks.blocks.conv import conv, initialise
from medseg.plugins import resolve
from medseg.types.plan import Adversary, Topology

Critic = nn.Module
BuildCritic = Callable[..., Critic]
WEIGHT_LIMIT = 0.05  # every weight of a clamped critic stays within (Xue 2018)


def segan(
    topology: Topology,
    *,
    channels: int,
    classes: int,
    width: int = 16,
    levels: int = 3,
    bound: Literal["clamp", "spectral"] = "clamp",
    shares: Sequence[float] = (),
) -> Critic:
    """Multi-scale L1 critic (Xue 2018): mean absolute difference of features of the masked images, at every level.

    Level 0 is the masked image itself. The segmentor makes the differences small, the critic makes them large; equal
    masks give 0. `bound`: "clamp" keeps weights within +-0.05 after every step of the critic, as published;
    "spectral" divides every layer by its largest singular value (Miyato 2018). `shares` weigh level 0 and every
    layer; none weighs all the same.
    """
    if bound not in ("clamp", "spectral"):
        raise PlanError(f'unknown bound "{bound}"', where="training.adversary", hint="use clamp or spectral")
    if shares and (len(shares) != levels + 1 or min(shares) < 0 or sum(shares) <= 0):
        hint = f"give {levels + 1} numbers of 0 or more: the masked image, then every level"
        raise PlanError(f"shares {list(shares)}", where="training.adversary", hint=hint)
    layers = _features(topology, channels * classes, width, levels)
    weights = [share / sum(shares) for share in shares] if shares else [1 / (levels + 1)] * (levels + 1)
    return SegAN(layers, weights, clamped=bound == "clamp")


def consistency(topology: Topology, *, channels: int, classes: int, width: int = 16, levels: int = 3) -> Critic:
    """Patch critic of image and masks together (Luc 2016), with cross-entropy: which of the two is a true label map."""
    layers = _features(topology, channels + classes, width, levels)
    return Consistency(nn.Sequential(*layers, _score(width * 2 ** (levels - 1), topology.ndim)))


def projective(topology: Topology, *, channels: int, classes: int, width: int = 16, levels: int = 3) -> Critic:
    """Critics of 2D projections of 3D masks along each axis, and of slices with their masks (Khosravan 2019).

    A projection is 1 - exp(-sum) along its axis: soft and below 1 where a structure is thin, near 1 where it is thick.
    Raises PlanError for 2D networks, whose masks have no projections worth judging.
    """
    if topology.ndim != 3:
        raise PlanError(
            "needs 3D masks to project", where="training.adversary", hint='use "consistency" or "segan" in 2D'
        )
    flat = [_planar(topology, axis, classes, width, levels) for axis in range(3)]
    return Projective(flat, _planar(topology, 0, channels + classes, width, levels))


CRITICS: Mapping[str, BuildCritic] = MappingProxyType(
    {"consistency": consistency, "projective": projective, "segan": segan}
)


def build_critic(adversary: Adversary, topology: Topology, *, channels: int, outputs: int, regions: bool) -> Critic:
    """The critic of a plan, initialised, on the CPU; raises PlanError for unknown names and options."""
    build = resolve(adversary.use, CRITICS, adversary.options, where="training.adversary")
    critic: Critic = build(topology, channels=channels, classes=outputs if regions else outputs - 1)
    initialise(critic)
    if isinstance(critic, SegAN) and not critic.clamped:
        for layer in critic.layers:
            spectral_norm(layer.get_submodule("conv"))  # after the weights have their first values
    return critic


def judge(critic: Critic, image: Tensor, logits: Tensor, target: Tensor, *, own: bool = False) -> Tensor:
    """What the critic makes of logits (b, k, *s), in float32: the segmentor's term, or with `own` the critic's loss.

    The segmentor's term has no gradients for the critic, and the critic's loss none for the segmentor.
    """
    predicted, true = masks((logits.detach() if own else logits).float(), target)
    critic.requires_grad_(own)
    with torch.autocast(image.device.type, enabled=False):
        verdict: Tensor = critic(image, predicted, true, own=own)
    return verdict


def masks(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted and true masks (b, k, *s) of the foreground classes or regions, both 0 where the target is ignored."""
    if logits.shape[1] == target.shape[1]:
        counts = (target >= 0).float()
        return logits.sigmoid() * counts, target.clamp_min(0).float()
    counts = (target >= 0).float()
    true = F.one_hot(target[:, 0].clamp_min(0), logits.shape[1]).movedim(-1, 1).float()
    return (logits.softmax(1) * counts)[:, 1:], (true * counts)[:, 1:]


def clamp_weights(critic: Critic) -> None:
    """Bring the weights of a critic that is not bounded otherwise back to +-0.05."""
    if isinstance(critic, SegAN) and critic.clamped:
        with torch.no_grad():
            for weight in critic.parameters():
                weight.clamp_(-WEIGHT_LIMIT, WEIGHT_LIMIT)


def project(volume: Tensor, axis: int) -> Tensor:
    """1 - exp(-sum along `axis` (0, 1, 2 = z, y, x)) of (b, k, z, y, x).

    >>> round(project(torch.ones(1, 1, 2, 1, 1), 0).item(), 4)
    0.8647
    """
    return 1 - torch.exp(-volume.sum(axis + 2))


class SegAN(nn.Module):
    """Features of masked images, compared level by level."""

    def __init__(self, layers: Sequence[nn.Module], shares: Sequence[float], *, clamped: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.shares = tuple(shares)
        self.clamped = clamped

    def forward(self, image: Tensor, predicted: Tensor, true: Tensor, *, own: bool = False) -> Tensor:
        a, b = _masked(image, predicted), _masked(image, true)
        parts = [(a - b).abs().mean()]
        for layer in self.layers:
            a, b = layer(a), layer(b)
            parts.append((a - b).abs().mean())
        distance = torch.stack([share * part for share, part in zip(self.shares, parts, strict=True)]).sum()
        return -distance if own else distance


class Consistency(nn.Module):
    """True or predicted, per patch of the image."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, image: Tensor, predicted: Tensor, true: Tensor, *, own: bool = False) -> Tensor:
        said = self.layers(torch.cat([image, predicted], 1))
        if not own:
            return _is(said, 1.0)
        return (_is(said, 0.0) + _is(self.layers(torch.cat([image, true], 1)), 1.0)) / 2


class Projective(nn.Module):
    """A critic per projection axis and one for slices; the mean of all."""

    def __init__(self, projections: Sequence[nn.Module], slices: nn.Module) -> None:
        super().__init__()
        self.projections = nn.ModuleList(projections)
        self.slices = slices

    def forward(self, image: Tensor, predicted: Tensor, true: Tensor, *, own: bool = False) -> Tensor:
        found = self._said(image, predicted)
        if not own:
            return torch.stack([_is(said, 1.0) for said in found]).mean()
        real = self._said(image, true)
        pairs = zip(found, real, strict=True)
        return torch.stack([(_is(a, 0.0) + _is(b, 1.0)) / 2 for a, b in pairs]).mean()

    def _said(self, image: Tensor, mask: Tensor) -> list[Tensor]:
        flat = [critic(project(mask, axis)) for axis, critic in enumerate(self.projections)]
        together = torch.cat([image, mask], 1)
        return [*flat, self.slices(together.transpose(1, 2).flatten(0, 1))]


def _masked(image: Tensor, mask: Tensor) -> Tensor:
    """Every channel of the image seen through every mask, (b, c * k, *s)."""
    return (image[:, :, None] * mask[:, None]).flatten(1, 2)


def _is(said: Tensor, truth: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(said, torch.full_like(said, truth))


def _features(topology: Topology, inputs: int, width: int, levels: int) -> list[nn.Module]:
    """Strided convolutions with leaky ReLU, widths doubling; strides are those of the segmentor's encoder."""
    skip = 3 - topology.ndim
    if levels < 1 or width < 1:
        raise PlanError("width and levels must be 1 or more", where="training.adversary", hint="16 and 3 are usual")
    strides = [row[skip:] for row in topology.strides[1:]] or [(1,) * topology.ndim]
    layers: list[nn.Module] = []
    for level in range(levels):
        stride = strides[level] if level < len(strides) else (1,) * topology.ndim
        kernel = topology.kernels[min(level, len(topology.kernels) - 1)][skip:]
        layers.append(_Layer(inputs, width * 2**level, kernel, stride))
        inputs = width * 2**level
    return layers


def _planar(topology: Topology, axis: int, inputs: int, width: int, levels: int) -> nn.Module:
    """A 2D critic for planes across `axis`, with the strides that the segmentor has in that plane."""

    def plane(row: tuple[int, int, int]) -> tuple[int, int, int]:
        first, second = (n for other, n in enumerate(row) if other != axis)
        return 1, first, second

    strides, kernels = tuple(map(plane, topology.strides)), tuple(map(plane, topology.kernels))
    flat = Topology(2, topology.channels, strides, kernels, topology.blocks)
    return nn.Sequential(*_features(flat, inputs, width, levels), _score(width * 2 ** (levels - 1), 2))


def _score(inputs: int, ndim: int) -> nn.Module:
    return conv(inputs, 1, (1,) * ndim)


class _Layer(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.conv = conv(inputs, outputs, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(x), 0.2)
