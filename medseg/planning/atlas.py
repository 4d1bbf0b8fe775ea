"""Small pictures of a scan over its own extent, for comparing scans of any size."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Shaped
from scipy.ndimage import find_objects

from medseg.types.geometry import Size3, Vec3


def pooled(volume: Shaped[np.ndarray, "z y x"], shape: Size3) -> Float64[np.ndarray, "d h w"]:
    """Exact area mean of `volume` over `shape` equal boxes; a finer grid than the volume's repeats voxels.

    >>> pooled(np.arange(6.0).reshape(1, 1, 6), (1, 1, 3)).ravel().tolist()
    [0.5, 2.5, 4.5]
    """
    return _weighted(volume, [_weights(n, m) for n, m in zip(volume.shape, shape, strict=True)])


def label_atlas(
    labels: Shaped[np.ndarray, "z y x"], classes: tuple[tuple[int, ...], ...], shape: Size3
) -> Float64[np.ndarray, "k d h w"]:
    """Per class (a tuple of label values), the fraction of each of `shape` boxes that it fills."""
    weights = [_weights(n, m) for n, m in zip(labels.shape, shape, strict=True)]
    boxes = find_objects(labels)
    wanted = sorted({value for values in classes for value in values})
    parts: dict[int, np.ndarray] = {}
    for value in wanted:
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is None:
            parts[value] = np.zeros(shape)
        else:
            cut = [weight[:, part] for weight, part in zip(weights, box, strict=True)]
            parts[value] = _weighted(labels[box] == value, cut)
    pictures = [sum((parts[value] for value in values), np.zeros(shape)) for values in classes]
    return np.stack(pictures) if pictures else np.zeros((0, *shape))


def standardised(picture: Float64[np.ndarray, "*s"]) -> Float64[np.ndarray, "*s"]:
    """Mean 0 and standard deviation 1; zeros where the picture is constant."""
    centred = picture - picture.mean()
    size = float(np.sqrt((centred**2).mean()))
    tiny = 1e-9 * float(np.abs(picture).max(initial=0.0))
    return centred / size if size > tiny else np.zeros_like(picture)


def mirror_overlap(atlas: Float64[np.ndarray, "k d h w"], partners: Sequence[int] = ()) -> Vec3:
    """Per axis (z, y, x), the share of the least symmetric class that lies on its own mirror image.

    Sum of min(p, flip p) over sum of p: 1 = symmetric; 0 where no class is anywhere. One left and one right class
    among many symmetric ones give 0; along x, each lies on the mirror image of the other if `partners` says for every
    class which one that is.
    """
    total = atlas.sum(axis=(1, 2, 3))
    present = total > 0
    if not present.any():
        return 0.0, 0.0, 0.0
    pairs = np.stack([atlas, atlas, atlas[list(partners)] if len(partners) else atlas])
    shared = [np.minimum(atlas, np.flip(pairs[axis], axis + 1)).sum(axis=(1, 2, 3)) for axis in range(3)]
    z, y, x = (float((share[present] / total[present]).min()) for share in shared)
    return z, y, x


def mirror_correlation(picture: Float64[np.ndarray, "d h w"]) -> Vec3:
    """Per axis (z, y, x), Pearson correlation of a picture with its mirror image; 1 on axes of one voxel."""
    unit = standardised(picture)
    if not unit.any():
        return 1.0, 1.0, 1.0
    z, y, x = (float((unit * np.flip(unit, axis)).mean()) for axis in range(3))
    return z, y, x


def _weights(voxels: int, boxes: int) -> Float64[np.ndarray, "m n"]:
    """Share of each voxel in the mean of each of `boxes` equal boxes along one axis; rows sum to 1."""
    edges = np.arange(boxes + 1) * voxels / boxes
    index = np.arange(voxels)
    low = np.maximum(edges[:-1, None], index)
    high = np.minimum(edges[1:, None], index + 1)
    return np.asarray(np.clip(high - low, 0, None) * boxes / voxels)


def _weighted(volume: Shaped[np.ndarray, "z y x"], weights: list[np.ndarray]) -> Float64[np.ndarray, "d h w"]:
    """Separable weighted sums, slice after slice so that no float64 copy of the volume is made."""
    along_z, along_y, along_x = weights
    planes = np.stack([along_y @ np.asarray(plane, np.float64) @ along_x.T for plane in volume])
    return np.asarray(np.tensordot(along_z, planes, axes=1))
