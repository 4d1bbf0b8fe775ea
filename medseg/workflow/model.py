"""One scan through a model: prepare, predict, back to the scan's own grid, clean."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Shaped

from medseg.errors import BundleError, DatasetError, ImageError, PlanError
from medseg.inference.directions import predict_directions, unlearnt
from medseg.inference.ensemble import NetworkForward, load_members, predict_scores
from medseg.inference.landmarks import WholeForward, predict_whole, within_scan
from medseg.inference.sliding_window import Forward
from medseg.inference.streaming import turn_to_thinnest
from medseg.io.archives import unpacked
from medseg.io.bundles import bundle_folder, load_bundle
from medseg.io.images import read_image
from medseg.io.outputs import Format, SegKind
from medseg.io.scans import find_cases
from medseg.postprocess.chain import clean
from medseg.postprocess.components import voxel_values
from medseg.preprocess.chain import prepare_image
from medseg.preprocess.fan import cut_to_fan, has_fan, image_fan
from medseg.preprocess.native import most_probable, native_labels, native_probabilities
from medseg.types.geometry import Geometry
from medseg.types.image import Image, LabelMap, Probabilities, Slab
from medseg.types.plan import Direction, Plan
from medseg.types.progress import Report, silent
from medseg.types.result import ModelBundle, Prediction
from medseg.workflow.devices import resolve_device, resolve_precision


@dataclass(frozen=True)
class PredictOptions:
    """How to predict; the defaults follow the plan.

    `folds`: whose networks predict, None for all. `tta`: False leaves out the plan's mirrored averaging.
    `overlap`: of windows, instead of the plan's. `format`: file types of label maps, by default that of the input
    (NIfTI for DICOM and TIFF). `seg_kind`: how a DICOM SEG stores its segments. `resume`: keep the results of an
    earlier run with the same bundle and options. `clean`: apply the plan's cleaning steps. `trust`: modules of foreign
    code that the bundle may import. `workers`: processes with a model each, so that a scan that takes its process down
    costs one case; 0 predicts in this process, None chooses 1 for more than 16 cases. `case_minutes`: after that time a
    case is given up (needs workers). `keep_identifiers`: name DICOM results after folders and say paths in full, though
    people name both after patients. `spacing_mm` (y, x): of flat images and ultrasound that state none.
    `temporal_median`: frames of an ultrasound cine whose probabilities are smoothed together, an odd number.
    `directions`: axes z, y, x across which a scan is predicted in slices, and the mean taken, instead of the plan's.
    `rater`: whose way of annotating is asked for, of a model that knows raters; None for the mean of all.
    """

    device: str = "auto"
    folds: tuple[int | str, ...] | None = None
    tta: bool | None = None
    overlap: float | None = None
    save_probabilities: bool = False
    format: tuple[Format, ...] = ()
    seg_kind: SegKind = "binary"
    resume: bool = False
    clean: bool = True
    trust: tuple[str, ...] = ()
    workers: int | None = None
    case_minutes: float | None = None
    keep_identifiers: bool = False
    spacing_mm: tuple[float, float] | None = None
    temporal_median: int = 1
    directions: tuple[Direction, ...] = ()
    rater: str | None = None

    def __post_init__(self) -> None:
        width = self.temporal_median
        if width < 1 or width % 2 == 0:
            raise PlanError(f"{width} is no odd number of frames", where="--temporal-median", hint="use 1, 3, 5, ...")


_DEFAULT = PredictOptions()


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded bundle: predicts as many scans as asked."""

    bundle: ModelBundle
    members: tuple[Forward, ...]
    device: torch.device
    options: PredictOptions = _DEFAULT

    def predict(
        self,
        scan: Path | str | Image | Shaped[np.ndarray, "*c y x"],
        *,
        spacing: Sequence[float] | None = None,
        report: Report = silent,
    ) -> Prediction:
        """Segment one scan: a file, a folder or archive with one DICOM series, an `Image`, or an array.

        An array is (z, y, x), (y, x) or, with several channels, (c, z, y, x), in scanner units, its axes x, y, z
        running to the patient's left, back and head; `spacing` is then needed, (z, y, x) or (y, x) in mm, unless the
        model is one for pictures that state none. Arrays stored otherwise (nibabel gives (x, y, z), mostly to the
        right or left, front and head) must be transposed and flipped first, or read by giving the path. For a path
        `spacing`, (y, x) in mm, is that of a flat image or an ultrasound file that states none. Raises MedsegError for
        scans that cannot be used.
        """
        image, case_id = self._image(scan, spacing)
        return predict_image(
            image, self.bundle, self.members, device=self.device, options=self.options, case_id=case_id, report=report
        )

    def _image(self, scan: Path | str | Image | np.ndarray, spacing: Sequence[float] | None) -> tuple[Image, str]:
        if isinstance(scan, Image):
            if spacing is not None:
                raise ImageError("an Image has a spacing", where="spacing", hint="leave it out, or change its geometry")
            return scan, "scan"
        if isinstance(scan, np.ndarray):
            return _from_array(scan, spacing, self.bundle.plan), "array"
        path, channels = Path(scan), self.bundle.plan.channels
        flat = self.options.spacing_mm if spacing is None else _in_plane(spacing)
        with unpacked(path) as opened:
            cases, refused = find_cases([opened], channels)
            if len(cases) != 1:
                reasons = "; ".join(sorted(set(refused.values()))[:3]) or "none could be read"
                what = f"holds {len(cases)} scans" if cases else f"holds no scan ({reasons})"
                raise DatasetError(what, where=path, hint="give one scan, or predict a folder with predict_folder")
            (case,) = cases
            image = read_image(case.images, channels=channels, files=case.files, volumes=case.volumes, spacing_mm=flat)
            return image, case.id


def load_model(
    path: str | Path,
    device: str = "auto",
    *,
    folds: Sequence[int | str] | None = None,
    tta: bool | None = None,
    trust: Sequence[str] = (),
    rater: str | None = None,
) -> Model:
    """A model bundle (or the run folder that holds one), ready to predict on `device`, in the way of `rater`.

    Raises BundleError if it is damaged, lacks a fold, or needs code that is not in `trust`, PlanError for a rater that
    it does not know.
    """
    where = resolve_device(device)
    bundle = load_bundle(bundle_folder(Path(path)), trust=tuple(trust))
    chosen = None if folds is None else tuple(folds)
    options = PredictOptions(device=device, folds=chosen, tta=tta, trust=tuple(trust), rater=rater)
    return Model(bundle, members_of(bundle, where, options), where, options)


def predict_image(
    image: Image,
    bundle: ModelBundle,
    members: Sequence[Forward],
    *,
    device: torch.device,
    options: PredictOptions = _DEFAULT,
    case_id: str = "scan",
    report: Report = silent,
) -> Prediction:
    """One scan: the whole method. The labels lie on the scan's own grid, landmarks in the patient.

    With `options.save_probabilities` the result also holds one float32 per class and voxel of that grid. A model with
    landmarks sees the whole scan at once, and labels come from the same pass.
    """
    plan = tuned(bundle.plan, options)
    prepared = prepare_image(image, plan.preprocess)
    landmarks = None
    several = prepared.geometry.shape[0] > 1
    directions = options.directions or ((plan.inference.directions or plan.sampling.directions) if several else ())
    if directions:
        scores = predict_directions(members, prepared, plan, directions, device=device, report=report)
    elif plan.landmarks:
        whole = predict_whole(_whole(members), prepared, plan, device=device, report=report)
        landmarks, scores = within_scan(whole.landmarks, image.geometry), whole.slabs()
    else:
        prepared, plan, members = turn_to_thinnest(prepared, plan, members)
        scores = predict_scores(members, prepared, plan, device=device, report=report)
    labels, probabilities = _labels(scores, prepared.geometry, image.geometry, plan, options)
    dicom_us = image.source is not None and image.source.format == "dicom-us"
    if (dicom_us or has_fan(plan.preprocess)) and image.geometry.shape[0] == 1:
        fan = image_fan(image)
        labels = cut_to_fan(labels, fan)
        probabilities = probabilities if probabilities is None else outside_is_background(probabilities, fan)
    cleaned = clean(labels, plan.postprocess if options.clean else ())
    found = landmarks.warnings if landmarks is not None else unlearnt(plan, directions)
    warnings = tuple(dict.fromkeys((*prepared.warnings, *cleaned.warnings, *found)))
    volumes, areas = ({}, areas_mm2(cleaned)) if dicom_us else (volumes_ml(cleaned), {})  # a frame has no thickness
    return Prediction(case_id, cleaned, volumes, probabilities, warnings, image.source, areas, landmarks)


def outside_is_background(probabilities: Probabilities, fan: Bool[np.ndarray, "z y x"]) -> Probabilities:
    """Probabilities of background outside of the fan: 1 in its channel, 0 in all others."""
    array = np.where(fan, probabilities.array, np.float32(0))
    if not probabilities.labels.are_regions():
        array[0][~fan] = 1
    return replace(probabilities, array=array)


def _labels(
    scores: Iterator[Slab], prepared: Geometry, native: Geometry, plan: Plan, options: PredictOptions
) -> tuple[LabelMap, Probabilities | None]:
    """Labels on the scan's own grid, and probabilities if they are asked for; no class, no voxel of one."""
    if not plan.labels.items:
        return LabelMap(np.broadcast_to(np.zeros((), np.uint8), native.shape), native, plan.labels), None
    if not options.save_probabilities:
        return native_labels(scores, prepared, native, plan.labels), None
    probabilities = native_probabilities(scores, prepared, native, plan.labels)
    return most_probable(probabilities), probabilities


def _whole(members: Sequence[Forward]) -> list[WholeForward]:
    found: list[WholeForward] = [member.whole for member in members if isinstance(member, NetworkForward)]
    if len(found) < len(members):
        raise BundleError("has members that give no landmarks", hint="load them with members_of")
    return found


def members_of(bundle: ModelBundle, device: torch.device, options: PredictOptions) -> tuple[Forward, ...]:
    """The bundle's networks on `device`, in the plan's precision where the device is fast in it."""
    precision = resolve_precision(bundle.plan.training.precision, device)
    return load_members(bundle, device=device, folds=options.folds, precision=precision, rater=options.rater)


def tuned(plan: Plan, options: PredictOptions) -> Plan:
    """The plan with the window overlap and mirroring of `options`; raises PlanError unless 0 <= overlap < 1."""
    inference = plan.inference
    if options.overlap is not None:
        if not 0 <= options.overlap < 1:
            raise PlanError(f"{options.overlap} is not in [0, 1)", where="overlap", hint="0.5 is usual")
        inference = replace(inference, overlap=options.overlap)
    if options.tta is False:
        inference = replace(inference, mirror_axes=())
    return replace(plan, inference=inference)


def volumes_ml(labels: LabelMap) -> dict[str, float]:
    """Volume of every label in ml (a region is the union of its values); empty where the grid has no spacing."""
    ml = labels.geometry.voxel_mm3() / 1000
    return {name: round(count * ml, 6) for name, count in _counts(labels).items()}


def areas_mm2(labels: LabelMap) -> dict[str, float]:
    """Area of every label in mm2, of all planes together; empty where the grid has no spacing."""
    _, dy, dx = labels.geometry.spacing_mm
    return {name: round(count * dy * dx, 4) for name, count in _counts(labels).items()}


def _counts(labels: LabelMap) -> dict[str, int]:
    """Voxels of every label; empty where the grid has no spacing."""
    if labels.geometry.unit != "mm":
        return {}
    counts = np.zeros(np.iinfo(labels.array.dtype).max + 1, np.int64)
    for plane in labels.array:
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    rows = {item.name: [value for value in voxel_values(item) if value < len(counts)] for item in labels.labels.items}
    return {name: int(counts[row].sum()) for name, row in rows.items()}


def _in_plane(spacing: Sequence[float]) -> tuple[float, float]:
    if len(spacing) != 2 or not min(spacing) > 0:
        hint = "give (y, x) in mm for a flat image; files of volumes state their own"
        raise ImageError(f"{list(spacing)} is no spacing of a file", where="spacing", hint=hint)
    return float(spacing[0]), float(spacing[1])


def _from_array(array: np.ndarray, spacing: Sequence[float] | None, plan: Plan) -> Image:
    spatial = min(array.ndim, 3)
    if array.ndim not in (2, 3, 4):
        raise ImageError(f"array has {array.ndim} axes", hint="give (z, y, x), (y, x) or (c, z, y, x)")
    pixels = spacing is None and plan.preprocess.unit == "px"
    if pixels:
        spacing = (1.0,) * spatial
    if spacing is None or len(spacing) not in {spatial, 3}:
        raise ImageError(f"array needs {spatial} spacings", where="spacing", hint="give (z, y, x) or (y, x) in mm")
    if array.dtype.kind not in "iuf":
        raise ImageError(f"array is of type {array.dtype}", hint="give integers or floats")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ImageError("array holds NaN or infinite voxels", hint="replace them")
    voxels = array.reshape((1,) * (4 - array.ndim) + array.shape)
    if len(voxels) != len(plan.channels):
        needed = f"{len(plan.channels)}: {', '.join(plan.channels)}"
        raise ImageError(f"array has {len(voxels)} channels", hint=f"give (c, z, y, x); the model needs {needed}")
    z, y, x = (1.0, *map(float, spacing))[-3:]
    _, *shape = voxels.shape
    grid = Geometry((shape[0], shape[1], shape[2]), (z, y, x), unit="px" if pixels else "mm")
    return Image(voxels, grid, plan.channels)
