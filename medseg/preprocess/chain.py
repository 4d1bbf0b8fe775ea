"""The whole preprocessing: orient, crop, normalise, resample; `native.py` goes back.

The result carries its own grid, so the scan's grid and the prepared one are all that going back needs.
"""

from dataclasses import replace

import numpy as np

from medseg.errors import ImageError
from medseg.plugins import resolve
from medseg.preprocess.crop import nonzero_box
from medseg.preprocess.fan import blackened, has_fan, image_fan
from medseg.preprocess.intensity import INTENSITY
from medseg.preprocess.orientation import reorient
from medseg.preprocess.resample import resample_image
from medseg.preprocess.resample_labels import resample_labels
from medseg.types.geometry import Box, Geometry
from medseg.types.image import Image, LabelMap
from medseg.types.plan import Preprocess


def prepare_image(image: Image, plan: Preprocess, *, coarse_order: int = 1) -> Image:
    """A scan on the network's grid in network units, float32 (c, z, y, x), in memory of its own.

    Axes are permuted and flipped to `plan.orientation`, cropped, normalised channel by channel and resampled to
    `plan.spacing_mm`; text beside the regions that a DICOM ultrasound file states goes first. Rules see the voxels as
    they were measured: after interpolation nothing outside of a mask is exactly 0, and metal has rings. What
    "fan_z_score" and "z_score" of nonzero voxels leave at 0 is 0 on the new grid too. `coarse_order` is the order of
    interpolation along an axis more than 3 times coarser than the finest (see `resample_image`). Peak memory is about
    twice the result and one channel of the scan in float32.

    Raises ImageError where the channels do not fit the plan, voxels are not finite, or a scan without spacing would be
    resampled to one in mm.
    """
    if len(image.array) != len(plan.intensity):
        raise ImageError(
            f"scan has {len(image.array)} channels, the plan {len(plan.intensity)}",
            where=", ".join(image.channels),
            hint="give one file per channel of the plan",
        )
    _check_unit(image, plan)
    rules = [
        resolve(step.use, INTENSITY, step.options, where=f"preprocess.intensity.{i}")
        for i, step in enumerate(plan.intensity)
    ]
    if has_fan(plan) and image.source is not None and image.source.regions:
        image = blackened(image, image_fan(image))
    array, oriented = reorient(image.array, image.geometry, plan.orientation)
    box = nonzero_box(array) if plan.crop == "nonzero" else None
    if box is not None:
        array, oriented = array[(slice(None), *box.slices())], oriented.crop(box)
    target = prepared_geometry(image.geometry, plan, box)
    prepared = []
    for rule, step, channel in zip(rules, plan.intensity, array, strict=True):
        values = np.array(channel, np.float32, order="C")
        if not np.isfinite([values.min(), values.max()]).all():
            raise ImageError("voxels hold NaN or infinity", where="image", hint="replace them with a grey value of air")
        values[:] = rule(values)
        one = replace(image, array=values[np.newaxis], geometry=oriented)
        moved = resample_image(one, target, order=plan.image_order, coarse_order=coarse_order).array
        if moved is not one.array and (step.use == "fan_z_score" or step.options.get("nonzero")):
            inside = replace(one, array=(one.array != 0).view(np.uint8))
            moved *= resample_image(inside, target, order=0).array
        prepared.append(moved)
    voxels = prepared[0] if len(prepared) == 1 else np.concatenate(prepared)
    return replace(image, array=voxels, geometry=target)


def prepared_geometry(native: Geometry, plan: Preprocess, box: Box | None = None) -> Geometry:
    """The grid that `prepare_image` makes of a scan on the grid `native`; `box` is the crop in the plan's axes.

    Each axis gets max(1, round(voxels * old spacing / new spacing)) voxels over the same extent.

    >>> plan = Preprocess((None, 1.0, 2.0), ())
    >>> prepared_geometry(Geometry((3, 10, 10), (5.0, 0.5, 0.5)), plan).shape
    (3, 5, 2)
    """
    _, grid = reorient(np.broadcast_to(np.uint8(0), native.shape), native, plan.orientation)
    if box is not None:
        grid = grid.crop(box)
    z, y, x = (
        n if new is None else max(1, round(n * old / new))
        for n, old, new in zip(grid.shape, grid.spacing_mm, plan.spacing_mm, strict=True)
    )
    return grid.with_shape((z, y, x))


def prepare_labels(labels: LabelMap, like: Geometry, *, order: int = 1) -> LabelMap:
    """A label map on the grid `like` of a prepared image; see `resample_labels`."""
    return resample_labels(labels, like, order=order)


def _check_unit(image: Image, plan: Preprocess) -> None:
    """Refuse to resample millimetres as pixels, or pixels as millimetres."""
    if image.geometry.unit == plan.unit or all(spacing is None for spacing in plan.spacing_mm):
        return
    if plan.unit == "mm":
        hint = "say how large its pixels are: --spacing MM to predict, spacing_mm in dataset.json to train"
        raise ImageError("states no spacing, and the model was made for scans in mm", hint=hint)
    hint = "use pictures as the model was trained on, or plan and train with these"
    raise ImageError("states its spacing in mm, and the model was made for pictures that state none", hint=hint)
