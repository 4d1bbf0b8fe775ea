"""The records that hold torch tensors; the only types module that imports torch."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Patch:
    """One training sample; `*s` is (z, y, x) or (y, x); labels are the values of the label map."""

    image: Float[Tensor, "c *s"]
    labels: Int[Tensor, "1 *s"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Stacked patches on the training device.

    `target` is one channel of class indices (0 = background), or one 0/1 channel per region; -1 is ignored. It has
    the size of the image, or of a coarser decoder scale.
    """

    image: Float[Tensor, "b c *s"]
    target: Int[Tensor, "b r ..."]


@dataclass(frozen=True)
class NetworkOutput:
    """What every network returns: logits per decoder scale, finest first."""

    logits: tuple[Float[Tensor, "b k ..."], ...]
