"""A trained model whose scores a student learns from."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from medseg.types.tensors import Batch


@dataclass(frozen=True, eq=False)
class Teacher:
    """`scores` maps an image (b, c, *s) to logits (b, k, *s), without gradients; `identity` says which model it is."""

    scores: Callable[[Tensor], Tensor]
    identity: str


def taught(batch: Batch, teacher: Teacher | None) -> Batch:
    """The batch with the teacher's logits for its image, as it was augmented."""
    return batch if teacher is None else replace(batch, teacher=teacher.scores(batch.image))
