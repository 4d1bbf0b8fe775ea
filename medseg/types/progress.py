"""How long jobs tell the outside where they are, without knowing a terminal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """Item `done` of `total` of a stage, e.g. ("prepare", 3, 20); `values` are numbers worth showing."""

    stage: str
    done: int
    total: int
    values: Mapping[str, float] = field(default_factory=dict)


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Report nothing."""
