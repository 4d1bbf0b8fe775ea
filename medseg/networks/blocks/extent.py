"""How many voxels per axis cover the same distance."""

from collections.abc import Sequence


def window(extent: int, spacing: Sequence[float]) -> tuple[int, ...]:
    """The odd kernel per axis that reaches as far as `extent` voxels do along the finest axis.

    An `extent` of 3 is 3, or 1 along axes whose spacing is more than twice the finest.

    >>> window(3, (3.0, 1.0, 1.0)), window(7, (2.0, 1.0, 1.0))
    ((1, 3, 3), (5, 7, 7))
    """
    reach = [extent // 2 * min(spacing) / s for s in spacing]
    return tuple(2 * int(r + 0.5 + 1e-6) + 1 for r in reach)


def dilations(rate: int, spacing: Sequence[float]) -> tuple[int, ...]:
    """The dilation per axis that spans as far as `rate` voxels do along the finest axis, at least 1.

    >>> dilations(6, (3.0, 1.0, 1.0))
    (2, 6, 6)
    """
    return tuple(max(1, round(rate * min(spacing) / s)) for s in spacing)
