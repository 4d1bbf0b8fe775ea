from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import DicomError
from medseg.io.dicom_headers import Slice, read_header
from medseg.io.dicom_layout import lay_out
from tests.dicom_slices import AXIAL, OBLIQUE, ORIGIN, stored, write_slice


@pytest.fixture
def stack(tmp_path):
    """Slices at given steps (x, y, z) from the first, along an orientation; no file stands behind them."""
    header = read_header(write_slice(tmp_path / "0.dcm", stored()[0], ORIGIN))

    def made(steps, axes=AXIAL):
        frame = np.stack([*axes, np.cross(*axes)])
        return [
            Slice(
                replace(header, path=Path(f"/nowhere/{k}.dcm")),
                replace(
                    header.planes[0], position=tuple(ORIGIN + np.array(step) @ frame), orientation=tuple(axes.ravel())
                ),
            )
            for k, step in enumerate(steps)
        ]

    return made


def along(*heights):
    return [(0, 0, height) for height in heights]


@pytest.mark.parametrize("axes", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_slices_are_ordered_along_their_normal(stack, axes, order):
    layout = lay_out([stack(along(0, 2, 4, 6), axes)[i] for i in order])
    assert [one.header.path.stem for one in layout.slices] == ["0", "1", "2", "3"]
    assert layout.geometry.spacing_mm == pytest.approx((2, 0.7, 0.4))
    assert layout.geometry.origin_mm == pytest.approx(tuple(ORIGIN))
    np.testing.assert_allclose(layout.geometry.affine()[:3, 0], 2 * np.cross(*axes), atol=1e-9)
    assert (layout.shear_mm, layout.copies, layout.warnings) == ((0, 0), (), ())


def test_small_unevenness_is_told_and_more_is_refused(stack):
    uneven = lay_out(stack(along(0, 5.03, 9.98, 15.02, 20)))
    assert "up to 0.026 mm off an even grid of 5 mm" in uneven.warnings[0]
    assert not lay_out(stack(along(0, 0.33, 0.67, 1.0, 1.33))).warnings
    with pytest.raises(DicomError, match=r"2\.dcm: lies 4\.8 mm after .*1\.dcm, other slices 5 mm apart"):
        lay_out(stack(along(0, 5, 9.8, 15, 20)))


@pytest.mark.parametrize("missing", [1, 5, 8])
def test_every_gap_is_found(stack, missing):
    heights = [2.5 * k for k in range(10) if k != missing]
    with pytest.raises(DicomError, match=r"lies 5 mm after .*, other slices 2\.5 mm apart; about 1 missing"):
        lay_out(stack(along(*heights)))


def test_even_shear_is_measured_drift_within_rounding_is_not(stack):
    layout = lay_out(stack([(0.2 * k, -0.6 * k, 2 * k) for k in range(5)]))
    assert layout.shear_mm == pytest.approx((-0.6, 0.2))
    assert layout.geometry.spacing_mm[0] == pytest.approx(2)
    assert lay_out(stack([(0, 0.004 * k, 2 * k) for k in range(5)])).shear_mm == (0, 0)


def test_a_gap_in_a_tilted_stack_names_both(stack):
    with pytest.raises(DicomError, match=r"about 1 missing; the stack is also sheared \(gantry tilt\)"):
        lay_out(stack([(0, 0.6 * k, 2 * k) for k in (0, 1, 2, 4, 5)]))


@pytest.mark.parametrize(
    "steps",
    [
        [(0, 0.1 * k * k, 2 * k) for k in range(6)],
        [(0, 3 * k, 2 * k) for k in range(6)],
        [(0, 4 * (k == 3), 2 * k) for k in range(6)],
    ],
    ids=["bent", "steep", "one aside"],
)
def test_other_shears_are_refused(stack, steps):
    with pytest.raises(DicomError, match=r"within its plane \(gantry tilt or sheared stack\)"):
        lay_out(stack(steps))


def test_planes_at_one_height_are_copies_or_refused(stack):
    layout = lay_out(stack(along(0, 2, 2.001, 4, 6)))
    assert len(layout.slices) == 4
    assert [(a.header.path.stem, b.header.path.stem) for a, b in layout.copies] == [("1", "2")]
    with pytest.raises(DicomError, match="lies at the same height as"):
        lay_out(stack([(0, 0, 0), (0, 0, 2), (30, 0, 2), (0, 0, 4)]))


def test_one_slice_never_guesses_in_silence(stack):
    (one,) = stack(along(0))
    for tags, spacing, words in [
        ({"between": (4.0,), "thickness": (3.0,)}, 4, None),
        ({"between": None, "thickness": (3.0,)}, 3, "SliceThickness"),
        ({"between": (0.0,), "thickness": (-1.0,)}, 1, "1 mm is assumed"),
        ({"between": (), "thickness": None}, 1, "1 mm is assumed"),
    ]:
        layout = lay_out([replace(one, plane=replace(one.plane, **tags))])
        assert layout.geometry.spacing_mm[0] == spacing
        assert [words in warning for warning in layout.warnings] == ([True] if words else [])
