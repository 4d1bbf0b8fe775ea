"""Ultrasound cines: label every frame, follow areas over time, write what viewers show."""

import csv
import io
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Shaped, UInt8
from PIL import ImageColor
from scipy import ndimage

from medseg.errors import DicomError
from medseg.inference.ensemble import predict_scores
from medseg.inference.sliding_window import Forward
from medseg.io.animation import write_gif
from medseg.io.channels import match_channels
from medseg.io.dicom_us import is_cine, open_cine
from medseg.io.files import write_text
from medseg.io.outputs import output_name
from medseg.postprocess.chain import clean
from medseg.preprocess.chain import prepare_image
from medseg.preprocess.fan import blackened, cine_fan, has_fan
from medseg.preprocess.native import most_probable, native_labels, native_probabilities
from medseg.types.cine import Cine
from medseg.types.dataset import Case
from medseg.types.geometry import Geometry
from medseg.types.image import Image, LabelMap, Probabilities
from medseg.types.plan import Plan
from medseg.types.progress import Progress, Report, silent
from medseg.types.result import ModelBundle, Prediction, Provenance
from medseg.workflow.model import PredictOptions, tuned
from medseg.workflow.overlays import label_colours
from medseg.workflow.write_back import write_checked

FORMATS = ("dicom-seg", "gif")
_ALLOWED = (*FORMATS, "nii.gz", "nrrd", "mha")
_FAN_FRAMES = 32  # seen to find the fan
_FILL, _FULL = 0.4, 0.98
Mask = Bool[np.ndarray, "y x"]


@dataclass(frozen=True, eq=False)
class CinePrediction:
    """Labels of all frames, frames on the z axis, with the cine they belong to and its fan."""

    prediction: Prediction
    cine: Cine
    fan: Mask

    def areas_mm2(self) -> list[dict[str, float]]:
        """Area of every label, per frame."""
        labels = self.prediction.labels
        _, dy, dx = labels.geometry.spacing_mm
        named = [(item.name, list(item.stored)) for item in labels.labels.items]
        return [
            {name: round(float(np.isin(frame, values).sum()) * dy * dx, 4) for name, values in named}
            for frame in labels.array
        ]

    def largest_mm2(self) -> dict[str, float]:
        """Of every label its largest area in any frame."""
        frames = self.areas_mm2()
        return {name: max(frame[name] for frame in frames) for name in frames[0]}


def cine_file(case: Case) -> Path | None:
    """The file of a case that is an ultrasound cine, else None; reads a header."""
    files = case.files[0] if case.files else case.images
    single = len(case.images) == 1 and len(files) == 1 and files[0].is_file()
    return files[0] if single and is_cine(files[0]) else None


def check_cine(path: Path, plan: Plan, formats: Sequence[str], options: PredictOptions) -> None:
    """Raise what is known to fail before a frame is decoded."""
    if plan.network.topology.ndim != 2:
        hint = "use a 2D model: its frames are time, not slices"
        raise DicomError("is a cine, and the model is 3D", where=path, hint=hint)
    if not plan.labels.items:
        hint = "give single images; landmarks of cines are not written"
        raise DicomError("is a cine, and the model finds landmarks only", where=path, hint=hint)
    wrong = [form for form in formats if form not in _ALLOWED]
    if wrong:
        raise DicomError(f"--format {wrong[0]} does not hold a cine", where=path, hint=f"use {', '.join(_ALLOWED)}")
    if options.save_probabilities:
        raise DicomError("probabilities of cines are not written", where=path, hint="leave out --save-probabilities")
    if options.directions:
        hint = "leave out --directions"
        raise DicomError("is a cine, whose frames are time and no slices", where=path, hint=hint)


def predict_cine(
    path: Path,
    bundle: ModelBundle,
    members: Sequence[Forward],
    *,
    device: torch.device,
    options: PredictOptions,
    case_id: str = "cine",
    report: Report = silent,
) -> CinePrediction:
    """Label each frame of an ultrasound file by a 2D model.

    The fan is that of up to 32 frames (what moves); nothing outside of it is seen by the network or labelled. With
    `options.temporal_median` N, the probabilities of each class become their median over N frames around each frame
    (fewer at the ends) before the largest wins. Memory does not grow with the number of frames but for the labels,
    which lie in a temporary file.

    Raises DicomError for a 3D model, formats that hold no frames, and files that cannot be read.
    """
    plan = tuned(bundle.plan, options)
    check_cine(path, plan, options.format, options)
    cine = open_cine(path, spacing_mm=options.spacing_mm)
    fan = _fan(cine)
    warnings = [*cine.warnings]
    if fan.mean() > _FULL:
        warnings.append("no borders around the fan were found; text burned into the frames stays visible")
    stack = _stack(cine, plan)
    outside = 0

    def prepared() -> Iterator[tuple[Image, Image]]:
        for frame in cine.frames():
            image = match_channels(frame, len(plan.channels), path)
            inner = blackened(image, fan[np.newaxis]) if has_fan(plan.preprocess) else image
            yield prepare_image(replace(inner, source=None), plan.preprocess), image

    for number, labels in enumerate(_labels(prepared(), plan, members, device, options.temporal_median)):
        outside += int(np.count_nonzero(labels.array[0][~fan]))
        cut = replace(labels, array=np.where(fan, labels.array, 0).astype(labels.array.dtype))
        cleaned = clean(cut, plan.postprocess if options.clean else ())
        stack[number] = cleaned.array[0]
        warnings += [note for note in cleaned.warnings if note not in warnings]
        report(Progress("frames", number + 1, cine.count))
    if outside:
        warnings.append(f"{outside} labelled pixels outside of the ultrasound fan are set to background")
    _, rows, columns = cine.geometry.shape
    grid = Geometry((cine.count, rows, columns), cine.geometry.spacing_mm)
    made = Prediction(case_id, LabelMap(stack, grid, plan.labels), {}, None, tuple(warnings), cine.source)
    return CinePrediction(made, cine, fan)


def cine_names(case_id: str, formats: Sequence[str]) -> tuple[str, ...]:
    """The files that `write_cine` leaves.

    >>> cine_names("US-1", ("dicom-seg", "gif"))
    ('US-1.seg.dcm', 'US-1.gif', 'US-1.csv')
    """
    return (*(output_name(case_id, form) for form in formats), f"{case_id}.csv")


def write_cine(
    made: CinePrediction, out: Path, formats: Sequence[str], made_by: Provenance, *, options: PredictOptions
) -> tuple[str, ...]:
    """Write a multi-frame SEG, an overlay as animated GIF, label maps with frames on the z axis, and areas as CSV.

    Returns warnings. In the GIF everything outside of the fan is black unless `options.keep_identifiers`, because
    scanners burn names in.
    """
    case_id = made.prediction.case_id
    others = [form for form in formats if form != "gif"]
    write_checked(made.prediction, out, case_id, others, made_by, seg_kind=options.seg_kind)
    if "gif" in formats:
        spacing = made.cine.geometry.spacing_mm
        frames = _overlays(made, keep=options.keep_identifiers)
        write_gif(frames, out / output_name(case_id, "gif"), times_s=made.cine.times_s, spacing_mm=spacing[1:])
    write_text(out / f"{case_id}.csv", _table(made))
    stacked = ", ".join(form for form in others if form != "dicom-seg")
    return (f"frames lie on the z axis of {stacked}: z is time, its spacing of 1 is no mm",) if stacked else ()


def _fan(cine: Cine) -> Mask:
    picked = np.unique(np.linspace(0, cine.count - 1, min(cine.count, _FAN_FRAMES)).round().astype(int))
    return cine_fan((cine.read(int(number)).max(axis=0)[0] for number in picked), cine.source.regions)


def _stack(cine: Cine, plan: Plan) -> Shaped[np.ndarray, "z y x"]:
    """Room for the labels of all frames, in a temporary file that goes with the array."""
    top = max(item.written for item in plan.labels.items)
    shape = (cine.count, *cine.geometry.shape[1:])
    with tempfile.TemporaryFile(prefix="medseg-") as file:
        return np.memmap(file, np.uint8 if top < 256 else np.uint16, "w+", shape=shape)


def _labels(
    frames: Iterator[tuple[Image, Image]], plan: Plan, members: Sequence[Forward], device: torch.device, width: int
) -> Iterator[LabelMap]:
    """Labels per frame, on its own grid."""
    scored = ((predict_scores(members, made, plan, device=device), made.geometry, own.geometry) for made, own in frames)
    if width == 1:
        return (native_labels(scores, made, own, plan.labels) for scores, made, own in scored)
    likely = (native_probabilities(scores, made, own, plan.labels) for scores, made, own in scored)
    return (most_probable(one) for one in temporal_median(likely, width))


def temporal_median(frames: Iterable[Probabilities], width: int) -> Iterator[Probabilities]:
    """Per class and pixel the median over `width` frames around each frame, fewer at both ends.

    `width` is odd; as many frames are in memory.
    """
    half = width // 2
    window: deque[Probabilities] = deque()
    for step, frame in enumerate(chain(frames, repeat(None, half))):
        centre = step - half
        if centre > half:
            window.popleft()
        if frame is not None:
            window.append(frame)
        if centre >= 0:
            yield _median(window)


def _median(window: Sequence[Probabilities]) -> Probabilities:
    return replace(window[0], array=np.median([one.array for one in window], axis=0).astype(np.float32))


def _overlays(made: CinePrediction, *, keep: bool) -> Iterator[UInt8[np.ndarray, "y x 3"]]:
    """RGB frames, labels filled and outlined; grey beyond 8 bits is scaled by the largest value of the first frame."""
    labels = made.prediction.labels
    colours = label_colours(labels.labels)
    scale = 1.0
    for number, frame in enumerate(made.cine.frames()):
        planes = frame.array[:, 0]
        if number == 0 and planes.dtype != np.uint8:
            scale = 255 / max(float(planes.max()), 1.0)
        picture = np.moveaxis(np.broadcast_to(planes, (3, *planes.shape[1:])), 0, -1) * np.float32(scale)
        if not keep:
            picture[~made.fan] = 0
        for item in labels.labels.items:
            inside = np.isin(labels.array[number], item.stored)
            colour = np.array(ImageColor.getrgb(colours[item.name]))
            picture[inside] = (1 - _FILL) * picture[inside] + _FILL * colour
            picture[inside & ~ndimage.binary_erosion(inside)] = colour
        yield picture.clip(0, 255).astype(np.uint8)


def _table(made: CinePrediction) -> str:
    """CSV: frame (from 1), time in s (empty where the file states none), area per label in mm2."""
    text = io.StringIO()
    names = made.prediction.labels.labels.names()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["frame", "time_s", *(f"{name}_mm2" for name in names)])
    times = made.cine.times_s or ("",) * made.cine.count
    for number, (time, areas) in enumerate(zip(times, made.areas_mm2(), strict=True), start=1):
        table.writerow([number, time, *(areas[name] for name in names)])
    return text.getvalue()
