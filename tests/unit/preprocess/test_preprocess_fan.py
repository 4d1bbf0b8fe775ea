"""The fan of phantoms whose sector is known; what a scanner burns in lies outside."""

import numpy as np
import pytest
from scipy import ndimage
from us_phantoms import Sector, sector_frames

from medseg.preprocess.chain import prepare_image
from medseg.preprocess.fan import cine_fan, cut_to_fan, fan_mask, image_fan
from medseg.types.geometry import Box, Geometry
from medseg.types.image import Image, LabelMap, Source
from medseg.types.labels import Label, Labels
from medseg.types.plan import Preprocess, Step

SECTORS = {
    "curved": Sector(),
    "curved, large": Sector((-100, 512), 220, 800, 38, (768, 1024)),
    "phased": Sector((20, 400), 0, 560, 45, (600, 800)),
    "narrow": Sector((-300, 160), 320, 500, 14),
    "beside the middle": Sector((-60, 200), 90, 250, 30, (240, 400)),
    "cut by the edge": Sector((-40, 40), 70, 260, 32),
}


def _agreement(found, truth):
    both = (found & truth).sum()
    return both / truth.sum(), both / found.sum()


@pytest.mark.parametrize("name", SECTORS)
def test_one_frame_gives_the_sector(name):
    sector = SECTORS[name]
    recall, precision = _agreement(fan_mask(sector_frames(sector, 1))[0], sector.mask())
    assert recall > 0.98
    assert precision > 0.98


@pytest.mark.parametrize("name", SECTORS)
def test_frames_that_move_give_the_sector(name):
    sector = SECTORS[name]
    recall, precision = _agreement(cine_fan(sector_frames(sector, 8)), sector.mask())
    assert recall > 0.98
    assert precision > 0.98


def test_a_still_cine_has_the_fan_of_its_frames():
    frame = sector_frames(count=1)
    np.testing.assert_array_equal(cine_fan(np.repeat(frame, 5, axis=0)), fan_mask(frame)[0])


def test_noise_of_the_coder_does_not_move_and_a_dark_fan_is_found_by_its_motion():
    rng = np.random.default_rng(1)
    frames = sector_frames(count=12).astype(int)
    dim = np.where(Sector().mask(), frames // 6, frames) + rng.integers(0, 3, frames.shape)
    recall, precision = _agreement(cine_fan(dim.clip(0, 255).astype(np.uint8)), Sector().mask())
    assert recall > 0.98
    assert precision > 0.98


def test_a_tinted_desktop_is_no_tissue():
    recall, precision = _agreement(fan_mask(sector_frames(count=1, background=45))[0], Sector().mask())
    assert recall > 0.98
    assert precision > 0.98


def test_nothing_counts_outside_of_the_boxes_of_the_scanner():
    frames = sector_frames(count=1)
    frames[0, 225:, :] = 120  # a panel brighter than the fan and as wide as the picture
    box = Box((0, 25, 0), (1, 222, 320))
    grid = Geometry((1, 240, 320), (1.0, 0.5, 0.5))
    image = Image(frames[None], grid, ("US",), Source((), "dicom-us", None, (box,)))
    mask = image_fan(image)[0]
    assert not mask[:25].any()
    assert not mask[222:].any()
    recall, precision = _agreement(
        mask, Sector().mask() & (np.arange(240) >= 25)[:, None] & (np.arange(240) < 222)[:, None]
    )
    assert recall > 0.97
    assert precision > 0.98


def test_a_picture_cut_to_its_tissue_is_all_fan_even_with_a_dark_corner():
    rng = np.random.default_rng(2)
    tissue = 90 + 60 * ndimage.gaussian_filter(rng.normal(size=(200, 300)), 2) * 4
    y, x = np.indices(tissue.shape)
    tissue[y > 260 - x] *= 0.02
    tissue = tissue + rng.integers(0, 9, tissue.shape)
    assert fan_mask(tissue.clip(0, 255).astype(np.uint8)[None]).mean() > 0.98


def test_text_beside_the_regions_of_the_file_changes_no_prepared_pixel():
    frames = sector_frames(count=1)
    clean = np.where(Sector().mask(), frames, 0).astype(np.uint8)
    box = Box((0, 0, 30), (1, 222, 300))
    grid = Geometry((1, 240, 320), (1.0, 0.5, 0.5))
    plan = Preprocess((None, 1.0, 1.0), (Step("fan_z_score"),))
    loud = frames.copy()
    loud[0, 2:60, :29] = 255
    made = [
        prepare_image(Image(array[None], grid, ("US",), Source((), "dicom-us", None, (box,))), plan).array
        for array in (clean, loud)
    ]
    assert abs(made[0] - made[1]).mean() < 0.01
    assert (made[1][0, 0, :30, :15] == 0).all()


def test_labels_outside_of_the_fan_become_background_and_are_counted():
    labels = Labels((Label("cyst", (2,)),))
    grid = Geometry((1, 240, 320), (1.0, 0.5, 0.5))
    fan = Sector().mask()[None]
    array = np.zeros(grid.shape, np.uint8)
    array[0, 100:110, 150:160] = 2
    array[0, :3, :4] = 2
    cut = cut_to_fan(LabelMap(array, grid, labels), fan)
    assert (cut.array == 2).sum() == 100
    assert cut.warnings == ("12 labelled pixels outside of the ultrasound fan are set to background",)
    assert cut_to_fan(cut, fan) is cut


def test_constant_planes_are_all_fan():
    assert fan_mask(np.full((2, 20, 30), 7, np.uint8)).all()
    assert cine_fan(np.zeros((3, 20, 30), np.uint8)).all()


def test_ignored_pixels_outside_of_the_fan_stay_ignored_and_are_not_counted():
    fan = np.zeros((1, 4, 6), bool)
    fan[:, 1:3] = True
    array = np.array([[[9] * 6, [1] * 6, [0] * 6, [1, 9, 0, 0, 0, 0]]], np.uint8)
    cut = cut_to_fan(LabelMap(array, Geometry(array.shape, (1.0,) * 3), Labels((Label("a", (1,)),), ignore=9)), fan)
    assert cut.array.tolist() == [[[9] * 6, [1] * 6, [0] * 6, [0, 9, 0, 0, 0, 0]]]
    assert any("1 labelled pixels" in note for note in cut.warnings)
