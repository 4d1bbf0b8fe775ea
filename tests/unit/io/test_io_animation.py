"""Animations, read back by Pillow."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image as Picture
from PIL import ImageSequence

from medseg.errors import ImageError
from medseg.io.animation import write_gif


def _frames(count, shape=(40, 60)):
    for number in range(count):
        frame = np.zeros((*shape, 3), np.uint8)
        frame[..., 0], frame[5:15, 5:15] = 20 * (number % 10), (0, 255, 40)
        yield frame


def _read(path):
    with Picture.open(path) as gif:
        assert gif.info["loop"] == 0
        return [(np.asarray(one.convert("RGB")), one.info["duration"]) for one in ImageSequence.Iterator(gif)]


def test_frames_and_their_times_come_back(tmp_path):
    times = tuple(i / 30 for i in range(7))
    write_gif(_frames(7), tmp_path / "a.gif", times_s=times)
    shown = _read(tmp_path / "a.gif")
    for (picture, _), frame in zip(shown, _frames(7), strict=True):
        assert np.abs(picture.astype(int) - frame).max() <= 4
    assert sum(ms for _, ms in shown[:6]) == 200
    assert {ms for _, ms in shown} <= {30, 40}


def test_times_that_are_unknown_or_too_short_for_viewers(tmp_path):
    write_gif(_frames(3), tmp_path / "a.gif")
    assert [ms for _, ms in _read(tmp_path / "a.gif")] == [100, 100, 100]
    write_gif(_frames(3), tmp_path / "b.gif", times_s=(0.0, 0.001, 0.002))
    assert [ms for _, ms in _read(tmp_path / "b.gif")] == [20, 20, 20]


def test_pixels_are_square_in_mm_and_large_pictures_shrink(tmp_path):
    write_gif(_frames(1), tmp_path / "a.gif", spacing_mm=(0.2, 0.1))
    assert _read(tmp_path / "a.gif")[0][0].shape == (80, 60, 3)
    write_gif(_frames(1, (500, 1280)), tmp_path / "b.gif")
    assert _read(tmp_path / "b.gif")[0][0].shape == (250, 640, 3)


def test_memory_holds_a_frame_not_all(tmp_path):
    tracemalloc.start()
    try:
        write_gif(_frames(100, (200, 300)), tmp_path / "a.gif")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * 200 * 300 / 4
    assert len(_read(tmp_path / "a.gif")) == 100


def test_no_frames_leave_no_file(tmp_path):
    with pytest.raises(ImageError, match="no frames"):
        write_gif(_frames(0), tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []
