import io

import numpy as np
import pytest
from PIL import Image as Pillow

from medseg.errors import GeometryError
from medseg.types.geometry import Geometry
from medseg.types.image import Image, LabelMap
from medseg.types.labels import Label, Labels
from medseg.workflow.overlays import label_colours, overlay_png

LABELS = Labels((Label("tooth", (1,)),))
SHAPE, SPACING = (10, 20, 16), (3.0, 1.0, 1.0)


def scan_with_mark():
    """A grey scan, axes rising towards S, P, L, whose only labelled block is left, anterior and superior."""
    array = np.full(SHAPE, 100, np.int16)
    array[0] = 0
    labels = np.zeros(SHAPE, np.uint8)
    labels[8:, :5, 12:] = 1
    return array, labels


def picture(array, labels, geometry, reference=None):
    image = Image(array[None], geometry, ("MR",))
    maps = [LabelMap(m, geometry, LABELS) if m is not None else None for m in (labels, reference)]
    png = overlay_png(image, maps[0], maps[1], size=100)
    return np.asarray(Pillow.open(io.BytesIO(png)).convert("RGB")).astype(int)


def coloured(pixels):
    """Rows and columns of pixels that are no grey."""
    return np.nonzero(np.ptp(pixels, axis=-1) > 40)


def test_left_of_the_patient_is_right_in_the_picture_and_superior_is_up():
    array, labels = scan_with_mark()
    pixels = picture(array, labels, Geometry(SHAPE, SPACING))
    axial = pixels[:, :80]  # 16 x 20 mm at 100 pixels for 20 mm
    rows, columns = coloured(axial)
    assert columns.min() >= 55 and rows.max() <= 30  # left = picture right; anterior = top
    coronal = pixels[:, 84 : 84 + 53]  # 30 mm high, 16 mm wide
    rows, columns = coloured(coronal)
    assert rows.max() <= 25 and columns.min() >= 35


def test_the_picture_does_not_depend_on_how_the_scan_is_stored():
    array, labels = scan_with_mark()
    expected = picture(array, labels, Geometry(SHAPE, SPACING))
    # stored with x towards R and z towards I, then with axes x and z exchanged
    flipped = Geometry(SHAPE, SPACING, (15.0, 0.0, 27.0), ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, -1.0)))
    assert np.array_equal(picture(array[::-1, :, ::-1], labels[::-1, :, ::-1], flipped), expected)
    swapped = Geometry(SHAPE[::-1], SPACING[::-1], (0.0, 0.0, 0.0), ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)))
    assert np.array_equal(picture(array.transpose(2, 1, 0), labels.transpose(2, 1, 0), swapped), expected)


def test_reference_is_outlined_and_prediction_filled():
    array, labels = scan_with_mark()
    geometry = Geometry(SHAPE, SPACING)
    empty = np.zeros_like(labels)
    filled = coloured(picture(array, labels, geometry))[0].size
    outlined = coloured(picture(array, empty, geometry, labels))[0].size
    assert 0 < outlined < 0.5 * filled


def test_a_2d_image_is_one_picture_as_stored():
    labels = np.zeros((1, 30, 60), np.uint8)
    labels[0, :10, :10] = 1
    geometry = Geometry((1, 30, 60), (1.0, 1.0, 1.0), unit="px")
    pixels = picture(np.zeros((1, 30, 60), np.uint8), labels, geometry)
    assert pixels.shape == (50, 100, 3)
    rows, columns = coloured(pixels)
    assert rows.max() < 20 and columns.max() < 20


def test_regions_are_drawn_and_colours_are_stable():
    regions = Labels((Label("whole", (1, 2), write=1), Label("core", (2,))))
    assert list(label_colours(regions)) == ["whole", "core"]
    assert label_colours(regions)["whole"] == label_colours(LABELS)["tooth"]


def test_another_shape_is_refused():
    array, labels = scan_with_mark()
    geometry = Geometry(SHAPE, SPACING)
    image = Image(array[None], geometry, ("MR",))
    wrong = LabelMap(labels[1:], Geometry((9, 20, 16), SPACING), LABELS)
    with pytest.raises(GeometryError, match="own grid"):
        overlay_png(image, wrong)
