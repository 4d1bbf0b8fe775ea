import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from scipy import ndimage

from medseg.io.contours import crossing, fill, outlines


def blobs(seed, shape=(23, 31)):
    """Parts, holes, parts in holes, and pixels that touch at corners only."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.random(shape), rng.uniform(0.01, 2))
    return smooth > np.quantile(smooth, rng.uniform(0.1, 0.9))


def area(polygon):
    x, y = polygon.T
    return abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2


@given(st.integers(0, 10**6))
def test_filled_outlines_are_the_mask(seed):
    mask = blobs(seed)
    assert np.array_equal(fill(outlines(mask), mask.shape), mask)


@given(st.integers(0, 10**6))
def test_each_outline_alone_is_one_part_for_a_reader_that_knows_no_holes(seed):
    """Holes are keyholes: the union of separately filled polygons, by the winding rule of another library."""
    mask = blobs(seed)
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    centres = np.c_[x.ravel(), y.ravel()]
    union = np.zeros(mask.shape, bool)
    for polygon in outlines(mask):
        inside = Outline(polygon, closed=False).contains_points(centres).reshape(mask.shape)
        assert not (union & inside).any()
        union |= inside
    assert np.array_equal(union, mask)


def test_area_is_known():
    """0.49 of a pixel beyond the outermost centres, and corners cut."""
    square = np.pad(np.ones((9, 12), bool), 3)
    (outer,) = outlines(square)
    corners = 4 * 0.49**2 / 2
    assert area(outer) == pytest.approx((8 + 2 * 0.49) * (11 + 2 * 0.49) - corners)
    ring = square.copy()
    ring[6:9, 6:10] = False
    hole = (2 + 2 * 0.51) * (3 + 2 * 0.51) - 4 * 0.51**2 / 2
    assert area(outlines(ring)[0]) == pytest.approx(area(outer) - hole)


@given(st.integers(0, 10**6))
def test_points_round_to_pixels_of_the_mask(seed):
    """But for the outer end of a keyhole, which may lie anywhere on an outline."""
    mask = blobs(seed)
    if ndimage.label(~np.pad(mask, 1), np.ones((3, 3)))[1] == 1:  # no hole
        for polygon in outlines(mask):
            x, y = np.rint(polygon).astype(int).T
            assert mask[y, x].all()


def test_lines_have_no_points_in_between():
    (polygon,) = outlines(np.pad(np.ones((40, 50), bool), 2))
    assert len(polygon) == 8  # four sides, four cut corners


def test_a_mask_at_the_border_and_an_empty_one():
    full = np.ones((4, 5), bool)
    assert np.array_equal(fill(outlines(full), (4, 5)), full)
    assert outlines(np.zeros((4, 5), bool)) == ()
    assert not fill([], (4, 5)).any()


def test_filling_agrees_with_another_library_on_any_polygon():
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:40, :50]
    centres = np.c_[x.ravel(), y.ravel()]
    for _ in range(50):
        star = rng.uniform(3, 19, 17)[:, None] * np.array(
            [[np.cos(a), np.sin(a)] for a in np.arange(17) * 2 * np.pi / 17]
        )
        star += rng.uniform(18, 25, 2)
        expected = Outline(star, closed=False).contains_points(centres).reshape(40, 50)
        assert np.array_equal(fill([star], (40, 50)), expected)


def test_what_lies_outside_is_cut_off_and_far_points_cost_nothing():
    square = np.array([[-1e12, -1e12], [2.5, -1e12], [2.5, 1e12], [-1e12, 1e12]])
    expected = np.zeros((6, 8), bool)
    expected[:, :3] = True
    assert np.array_equal(fill([square], (6, 8)), expected)


def test_many_crossings_are_worked_off_in_parts(monkeypatch):
    zigzag = np.array([[i, 60.0 * (i % 2)] for i in range(40)] + [[39.0, 70.0], [0.0, 70.0]])
    whole = fill([zigzag], (64, 48))
    monkeypatch.setattr("medseg.io.contours._AT_ONCE", 100)
    assert np.array_equal(fill([zigzag], (64, 48)), whole)
    assert whole.any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
def test_thin_masks(shape):
    mask = np.ones(shape, bool)
    assert np.array_equal(fill(outlines(mask), shape), mask)


@given(st.integers(0, 10**6))
def test_outlines_never_cross_and_shifted_ones_do_as_counted(seed):
    mask = blobs(seed)
    polygons = outlines(mask)
    assert not crossing(polygons, mask.shape)
    one, other = polygons[0], polygons[-1] + [2, 3]
    first, second = fill([one], (40, 40)), fill([other], (40, 40))
    shared = (first & second).sum()
    assert crossing([one, other], (40, 40)) == (0 < shared < min(first.sum(), second.sum()))
