"""Pictures over time as an animated GIF, written frame by frame."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import GifImagePlugin
from PIL import Image as Picture

from medseg.errors import ImageError
from medseg.io.files import whole_file

_LONGEST = 640  # pixels of a side
_DEFAULT_MS, _SHORTEST_MS = 100, 20  # viewers slow down what is shorter


def write_gif(
    frames: Iterable[UInt8[np.ndarray, "y x 3"]],
    path: Path,
    *,
    times_s: tuple[float, ...] = (),
    spacing_mm: tuple[float, float] = (1.0, 1.0),
) -> None:
    """Write RGB frames of one size, repeated for ever, at the times given (0.1 s each where there are none).

    Pixels become square in mm by `spacing_mm` (y, x), the longer side at most 640 pixels; each frame has 256 colours of
    its own. One frame at a time is in memory.
    """
    with whole_file(path) as temporary, temporary.open("wb") as file:
        written = 0
        for frame in frames:
            picture = _scaled(Picture.fromarray(frame), spacing_mm).quantize(256)
            if written == 0:
                for part in GifImagePlugin.getheader(picture, info={"loop": 0})[0]:
                    file.write(part)
            options: dict[str, Any] = {"duration": _shown_ms(times_s, written), "include_color_table": True}
            for part in GifImagePlugin.getdata(picture, **options):
                file.write(part)
            written += 1
        file.write(b";")
        if written == 0:
            raise ImageError("has no frames", where=path, hint="give at least one")


def _scaled(picture: Picture.Image, spacing_mm: tuple[float, float]) -> Picture.Image:
    fine = min(spacing_mm)
    height, width = picture.height * spacing_mm[0] / fine, picture.width * spacing_mm[1] / fine
    shrink = min(1.0, _LONGEST / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    return picture if size == picture.size else picture.resize(size, Picture.Resampling.BILINEAR)


def _shown_ms(times_s: tuple[float, ...], number: int) -> int:
    """Until the next frame, the last as long as the one before, in steps of 10 ms that add up to the right time."""
    if len(times_s) < 2:
        return _DEFAULT_MS
    first = min(number, len(times_s) - 2)
    return max(10 * (round(100 * times_s[first + 1]) - round(100 * times_s[first])), _SHORTEST_MS)
