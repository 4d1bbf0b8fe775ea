import io

import numpy as np
import pytest
from PIL import Image as Pillow

from medseg.errors import GeometryError
from medseg.types.geometry import Geometry
from medseg.types.image import Image, LabelMap
from medseg.types.labels import Label, Labels
from medseg.types.landmarks import Landmarks
from medseg.workflow.overlays import label_colours, overlay_png
from medseg.workflow.point_marks import COLOURS

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


def test_more_classes_than_a_byte_has_values_are_drawn():
    many = Labels(tuple(Label(f"part {value}", (value,)) for value in range(1, 301)))
    array = np.arange(1, 301, dtype=np.uint16).reshape(1, 15, 20)
    grid = Geometry((1, 15, 20), (1.0, 1.0, 1.0))
    image, labels = Image(np.zeros((1, 1, 15, 20), np.int16), grid, ("CT",)), LabelMap(array, grid, many)
    pixels = np.asarray(Pillow.open(io.BytesIO(overlay_png(image, labels, size=20))).convert("RGB")).astype(int)
    colours, count = pixels.reshape(-1, 3), len(COLOURS)
    np.testing.assert_array_equal(colours[count:], colours[:-count])
    assert len(np.unique(colours, axis=0)) == count


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


def with_points(array, geometry, found=None, wanted=None, size=100):
    image = Image(array[None], geometry, ("MR",))
    points = [
        None if part is None else Landmarks(tuple(part), np.array(list(part.values()), float))
        for part in (found, wanted)
    ]
    png = overlay_png(image, None, landmarks=points[0], reference_landmarks=points[1], size=size)
    return np.asarray(Pillow.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_landmarks_lie_where_they_are_in_every_plane():
    array = np.full(SHAPE, 100, np.int16)
    array[0] = 0
    pixels = with_points(array, Geometry(SHAPE, SPACING), {".": (12.0, 4.0, 24.0)})  # left, anterior, superior, in mm
    rows, columns = coloured(pixels[:, :80])
    assert (rows.mean(), columns.mean()) == pytest.approx((22, 62), abs=1)  # (4.5, 12.5) voxels of 5 pixels
    rows, columns = coloured(pixels[:, 84 : 84 + 53])
    assert (rows.mean(), columns.mean()) == pytest.approx((15, 41), abs=1)  # superior is up
    rows, columns = coloured(pixels[:, 84 + 53 + 4 :])
    assert (rows.mean(), columns.mean()) == pytest.approx((15, 15), abs=1)  # 30 x 20 mm: 4.5 * 3.3 from anterior


def test_pictures_of_landmarks_do_not_depend_on_how_the_scan_is_stored():
    array, _ = scan_with_mark()
    array[5, 5, 5] = 300
    points = {"tip": (12.0, 4.0, 24.0), "base": (2.0, 15.0, 3.0)}
    expected = with_points(array, Geometry(SHAPE, SPACING), points)
    flipped = Geometry(SHAPE, SPACING, (15.0, 0.0, 27.0), ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, -1.0)))
    assert np.array_equal(with_points(array[::-1, :, ::-1], flipped, points), expected)
    swapped = Geometry(SHAPE[::-1], SPACING[::-1], (0.0, 0.0, 0.0), ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)))
    assert np.array_equal(with_points(array.transpose(2, 1, 0), swapped, points), expected)


def test_reference_landmarks_are_rings_of_the_colour_of_their_crosses():
    array, geometry = np.zeros((1, 50, 100), np.uint8), Geometry((1, 50, 100), (1.0, 0.3, 0.3))
    cross = with_points(array, geometry, {"a": (15.0, 7.5, 0.0)})
    ring = with_points(array, geometry, None, {"a": (15.0, 7.5, 0.0)})
    rows, columns = coloured(cross)
    assert (rows.min() + rows.max(), columns.min() + columns.max()) == (50, 100)
    assert tuple(cross[25, 50]) == (0xE6, 0x55, 0x0D) and tuple(ring[25, 50]) == (0, 0, 0)
    assert tuple(ring[25, 54]) == (0xE6, 0x55, 0x0D)
    both = with_points(array, geometry, {"a": (6.0, 7.5, 0.0)}, {"b": (3.0, 3.0, 0.0), "a": (24.0, 7.5, 0.0)})
    assert tuple(both[25, 50]) == (0x1F, 0x9E, 0xD1)  # the line from one to the other, second colour


def test_names_are_written_and_landmarks_without_a_place_are_not_drawn():
    array, geometry = np.zeros((1, 50, 100), np.uint8), Geometry((1, 50, 100), (1.0, 0.3, 0.3))
    named = with_points(array, geometry, {"menton": (29.0, 7.5, 0.0)})
    plain = with_points(array, geometry, {".": (29.0, 7.5, 0.0)})
    rows, columns = np.nonzero((named != plain).any(axis=-1))
    assert columns.max() < 97 and len(rows) > 40, "left of a point at the right edge"
    unknown = with_points(array, geometry, {"menton": (np.nan, np.nan, np.nan)})
    assert not unknown.any()


def test_without_labels_the_slice_is_that_of_the_landmarks():
    array = np.zeros((9, 20, 20), np.int16)
    array[7] = 100
    grid = Geometry((9, 20, 20), (1.0, 1.0, 1.0))
    axial = with_points(array, grid, {".": (10.0, 10.0, 7.0)})[:, :100]
    assert np.median(axial) == 255
    assert np.median(with_points(array, grid)[:, :100]) == 0
