"""The records that hold torch tensors; the only types module that imports torch.

Points are voxel coordinates (z, y, x), or (y, x) in 2D, in which the centre of the first voxel is 0; NaN where a point
is unknown or lies outside.
"""

from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Patch:
    """One training sample; `*s` is (z, y, x) or (y, x); labels are the values of the label map.

    `weight` is how much its loss counts beside those of other samples, `rater` the number of who annotated it, -1 where
    nobody is named, None where the plan knows no raters.
    """

    image: Float[Tensor, "c *s"]
    labels: Int[Tensor, "1 *s"]
    points: Float[Tensor, "n d"] | None = None
    weight: float = 1.0
    rater: int | None = None


@dataclass(frozen=True, eq=False)
class Mixed:
    """The second truth of mixed samples: its target, and the share (from 0 to 1) that the first one has."""

    target: Int[Tensor, "b r ..."]
    share: Float[Tensor, " b"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Stacked patches on the training device.

    `target` is one channel of class indices (0 = background), or one 0/1 channel per region; -1 is ignored. It has
    the size of the image, or of a coarser decoder scale. `spacing` is that of the target's voxels per axis, in mm, or
    in pixels where the scans state none; None stands for 1 along every axis. `progress` is the share of the
    training that is done, None outside of it. `teacher` are the logits of a model to learn from, of the target's size.
    `mixed` is there where images are mixed in pairs: labels are then share * target + (1 - share) * mixed.target.
    `weight` is there where losses are taken sample by sample and count differently, `raters` where the network is told
    who annotated each sample (-1: unknown).
    """

    image: Float[Tensor, "b c *s"]
    target: Int[Tensor, "b r ..."]
    points: Float[Tensor, "b n d"] | None = None
    spacing: tuple[float, ...] | None = None
    progress: float | None = None
    teacher: Float[Tensor, "b k ..."] | None = None
    mixed: Mixed | None = None
    weight: Float[Tensor, " b"] | None = None
    raters: Int[Tensor, " b"] | None = None

    def sample(self, number: int) -> "Batch":
        """The batch of one sample alone, without its weight; mixed batches are not taken apart."""
        one = slice(number, number + 1)
        return replace(
            self,
            image=self.image[one],
            target=self.target[one],
            points=None if self.points is None else self.points[one],
            teacher=None if self.teacher is None else self.teacher[one],
            weight=None,
            raters=None if self.raters is None else self.raters[one],
        )


@dataclass(frozen=True, eq=False)
class Boundary:
    """What one boundary module found at its own scale, a channel per class: where edges are, and what they enclose."""

    edge: Float[Tensor, "b k *s"]
    mask: Float[Tensor, "b k *s"]


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a backbone may return instead of its features (finest first) alone: `sides` reach the network's output."""

    features: tuple[Float[Tensor, "b _ ..."], ...]
    sides: tuple[Float[Tensor, "b k ..."], ...] = ()


@dataclass(frozen=True, eq=False)
class NetworkOutput:
    """What every network returns; every field is filled by at most one head.

    `logits` per decoder scale, finest first. `boundaries` one per boundary module. `heatmaps` at the image's size and
    `points` in its voxels, float32, of landmark heads. `distances` signed and normalised, at the image's size. `sides`
    logits that a backbone has of its own, each at its own size, with one channel per output. `scale_weights` are how
    much a backbone wants each of the `logits` to count, finest first; empty for the default of the losses.
    `rater_codes` are those of all raters that the network knows.
    """

    logits: tuple[Float[Tensor, "b k ..."], ...] = ()
    boundaries: tuple[Boundary, ...] = ()
    heatmaps: Float[Tensor, "b n *s"] | None = None
    points: Float[Tensor, "b n d"] | None = None
    distances: Float[Tensor, "b k *s"] | None = None
    sides: tuple[Float[Tensor, "b k ..."], ...] = ()
    scale_weights: tuple[float, ...] = ()
    rater_codes: Float[Tensor, "raters _"] | None = None

    def sample(self, number: int) -> "NetworkOutput":
        """What the network returns for one sample of the batch."""
        one = slice(number, number + 1)
        return replace(
            self,
            logits=tuple(part[one] for part in self.logits),
            boundaries=tuple(Boundary(part.edge[one], part.mask[one]) for part in self.boundaries),
            heatmaps=None if self.heatmaps is None else self.heatmaps[one],
            points=None if self.points is None else self.points[one],
            distances=None if self.distances is None else self.distances[one],
            sides=tuple(part[one] for part in self.sides),
        )

    def as_float32(self) -> "NetworkOutput":
        """The same in float32, for losses; landmark heads compute in float32 from the start."""
        return replace(
            self,
            logits=tuple(part.float() for part in self.logits),
            boundaries=tuple(Boundary(part.edge.float(), part.mask.float()) for part in self.boundaries),
            distances=None if self.distances is None else self.distances.float(),
            sides=tuple(part.float() for part in self.sides),
        )
