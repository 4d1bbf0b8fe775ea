"""The individual decisions about the data; each returns the value and the sentence a reviewer reads."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np

from medseg.types.fingerprint import CaseFingerprint, Fingerprint, IntensityStats
from medseg.types.geometry import Size3, Vec3
from medseg.types.labels import Labels
from medseg.types.plan import Step

T = TypeVar("T")
SpacingMm = tuple[float | None, float | None, float | None]
AXES = ("z", "y", "x")
ANISOTROPY = 3.0  # a spacing this much coarser than the others makes an axis special (Isensee 2021)
CROP_SAVES = 0.25
WORDS: tuple[tuple[str, frozenset[str]], ...] = (
    ("cbct", frozenset({"cbct", "dvt", "conebeam"})),
    ("ct", frozenset({"ct", "cta", "cect", "ncct", "ldct", "hu"})),
    ("us", frozenset({"us", "ultrasound", "sonography", "bmode", "trus", "ivus", "echo", "echography"})),
    (
        "mr",
        frozenset({"mr", "mri", "flair", "adc", "dwi", "swi", "dce", "pd", "pdw", "t1", "t2", "stir", "mra", "cine"}),
    ),
    ("colour", frozenset({"rgb", "red", "green", "blue", "r", "g", "b", "natural", "colour", "color", "photo"})),
    ("none", frozenset({"nonorm", "none"})),
    ("mr", frozenset({"zscore"})),
)
AIR_HU = (-3100.0, -900.0)  # air, or the padding some scanners write below it
MIXTURE = 1.5  # P90 / P10 of voxel size from which scans count as a mixture of resolutions


@dataclass(frozen=True)
class Decision(Generic[T]):
    """A value and the sentence a reviewer reads."""

    value: T
    reason: str


def orientation(fingerprint: Fingerprint) -> Decision[str]:
    """Patient direction of the array axes x, y, z that every scan is brought to; "stored" for 2D images."""
    cases = fingerprint.cases
    if fingerprint.ndim == 2:
        return Decision("stored", f"2D images keep their rows and columns ({_count(cases, 'image')})")
    target = fingerprint.orientation
    others = sum(case.stored_orientation != target for case in cases)
    if not others:
        return Decision(target, f"all {_count(cases, 'scan')} are stored as {target}")
    return Decision(target, f"{others} of {_count(cases, 'scan')} are stored otherwise and are reoriented to {target}")


def cropping(fingerprint: Fingerprint) -> Decision[Literal["none", "nonzero"]]:
    """Whether cropping to nonzero voxels saves a quarter of the median scan or more."""
    saved = 1 - cropped_share(fingerprint)
    text = f"a box around nonzero voxels saves {saved:.0%} of the median scan"
    if saved >= CROP_SAVES:
        return Decision("nonzero", f"{text} (at least {CROP_SAVES:.0%})")
    return Decision("none", f"{text} (below {CROP_SAVES:.0%})")


def cropped_share(fingerprint: Fingerprint) -> float:
    """Median over cases of cropped volume / stored volume."""
    return float(np.median([math.prod(c.cropped_shape) / math.prod(c.shape) for c in fingerprint.cases]))


def target_spacing(fingerprint: Fingerprint) -> Decision[SpacingMm]:
    """Spacing (z, y, x) of the network grid: the median per axis.

    An axis that is more than 3 times coarser than the others and has 3 times fewer voxels gets its 10th percentile, so
    that slices are not interpolated away from most scans (Isensee 2021). 2D images keep the z axis, and images without
    physical spacing keep their pixels.
    """
    if fingerprint.unit == "px":
        return Decision((None, None, None), "files state no physical spacing: pixels are kept as they are")
    spacings = np.array([case.spacing_mm for case in fingerprint.cases])
    shapes = np.array([case.cropped_shape for case in fingerprint.cases])
    target = np.median(spacings, axis=0)
    text = f"median of {_count(fingerprint.cases, 'scan')} ({_range(spacings)} mm)"
    if fingerprint.ndim == 2:
        return Decision((None, _round(target[1]), _round(target[2])), f"{text}, in-plane" + _mixture(spacings, target))
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    size = np.median(shapes, axis=0)
    if target[worst] > ANISOTROPY * target[others].max() and size[worst] * ANISOTROPY < size[others].min():
        coarse = target[worst]
        target[worst] = max(np.percentile(spacings[:, worst], 10), target[others].max() + 1e-5)
        text += f"; {AXES[worst]} is {coarse / target[others].max():.1f} times coarser: its 10th percentile"
    z, y, x = (_round(value) for value in target)
    return Decision((z, y, x), text + _mixture(spacings, target))


def native_spacing(fingerprint: Fingerprint) -> Vec3:
    """Median spacing (z, y, x) of the scans as stored, in mm or pixels."""
    z, y, x = np.median([case.spacing_mm for case in fingerprint.cases], axis=0)
    return float(z), float(y), float(x)


def median_shape(fingerprint: Fingerprint, spacing_mm: SpacingMm, crop: Literal["none", "nonzero"]) -> Vec3:
    """Median shape (z, y, x) on the network grid; may end in .5."""
    shapes = [resampled_shape(case, spacing_mm, crop) for case in fingerprint.cases]
    z, y, x = np.median(shapes, axis=0)
    return float(z), float(y), float(x)


def resampled_shape(case: CaseFingerprint, spacing_mm: SpacingMm, crop: Literal["none", "nonzero"]) -> Size3:
    """Shape (z, y, x) of one case on the network grid."""
    shape = case.cropped_shape if crop == "nonzero" else case.shape
    z, y, x = (
        n if new is None else max(1, round(n * old / new))
        for n, old, new in zip(shape, case.spacing_mm, spacing_mm, strict=True)
    )
    return z, y, x


def modality(channel: str) -> str | None:
    """What a channel's name says it is: "ct", "cbct", "mr", "us", "colour", "none", or None where it says nothing.

    >>> [modality(name) for name in ("CBCT", "T1w", "B-mode", "ncct", "channel_0")]
    ['cbct', 'mr', 'us', 'ct', None]
    """
    name = re.sub(
        r"(b)-(mode)|(cone).(beam)|(z).(score)|(no).(norm)",
        lambda m: "".join(filter(None, m.groups())),
        channel.lower(),
    )
    words = {word for word in re.split(r"[^a-z0-9]+", name) if word}
    words |= {word[:2] for word in words if re.fullmatch(r"t[12][a-z]{0,4}|mr[a-z0-9]{1,3}", word)}
    return next((kind for kind, known in WORDS if words & known), None)


def intensity_steps(fingerprint: Fingerprint) -> Decision[tuple[Step, ...]]:
    """One intensity rule per channel, by its name, else by its values."""
    made = [
        _intensity(
            name,
            stats,
            [case.intensity[index] for case in fingerprint.cases],
            cropped_share(fingerprint),
            min(case.lowest[index] if case.lowest else case.intensity[index].minimum for case in fingerprint.cases),
        )
        for index, (name, stats) in enumerate(zip(fingerprint.channels, fingerprint.intensity, strict=True))
    ]
    return Decision(tuple(decision.value for decision in made), "; ".join(decision.reason for decision in made))


def _intensity(
    name: str, stats: IntensityStats, cases: Sequence[IntensityStats], share: float, lowest: float
) -> Decision[Step]:
    kind, why = modality(name), f'"{name}"'
    if kind is None:
        kind = "ct" if AIR_HU[0] <= lowest <= AIR_HU[1] else "mr"
        near = "near that of air in HU" if kind == "ct" else "not that of air in HU"
        why += f" names no modality; the lowest value is {lowest:.6g}, {near}"
    if kind == "ct" and stats.p005 < stats.p995:
        return _hounsfield(why, stats, lowest)
    if kind == "cbct":
        return Decision(
            Step("anchor_scale"),
            f"{why}: grey values are no HU (foreground medians {_medians(cases)}); each scan is scaled by its anchors",
        )
    if kind == "us":
        return Decision(Step("fan_z_score"), f"{why}: zero mean and unit deviation inside each image's fan")
    if kind == "colour":
        high = 255.0 if stats.maximum > 1 else 1.0
        return Decision(Step("rescale", {"low": 0.0, "high": high}), f"{why}: 0 to {high:g} becomes 0 to 1")
    if kind == "none":
        return Decision(Step("none"), f"{why}: values are used as they are")
    nonzero = share <= 1 - CROP_SAVES
    inside = f"nonzero voxels ({share:.0%} of the median scan is left by cropping)" if nonzero else "all voxels"
    return Decision(
        Step("z_score", {"nonzero": nonzero}),
        f"{why}: each scan to zero mean and unit deviation over {inside} (foreground medians {_medians(cases)})",
    )


def _hounsfield(why: str, stats: IntensityStats, lowest: float) -> Decision[Step]:
    low, high, mean, std = (_round(value) for value in (stats.p005, stats.p995, stats.mean, stats.std))
    text = f"{why}: clipped to the foreground's P0.5 to P99.5 ({low:g} to {high:g}), mean {mean:g}, deviation {std:g}"
    if lowest >= 0:
        text += "; warning: no value is below 0, make sure they are HU"
    return Decision(Step("clip_z_score", {"low": low, "high": high, "mean": mean, "std": max(std, 1e-6)}), text)


def _medians(cases: Sequence[IntensityStats]) -> str:
    medians = [case.median for case in cases]
    return f"{min(medians):.4g} to {max(medians):.4g}"


def batch_dice(labels: Labels, *, config: str, has_lowres: bool, whole: bool = False) -> Decision[bool]:
    """Whether Dice is computed over the batch (a patch may hold few classes) or per sample (Isensee 2021).

    `whole`: a patch holds the whole scan.
    """
    if whole:
        return Decision(False, "the patch is the whole scan: Dice per sample")
    if config == "2d":
        return Decision(True, f"a slice may hold few or none of the {len(labels.items)} classes: Dice over the batch")
    if config == "3d_fullres" and has_lowres:
        return Decision(True, "the patch is a small part of the scan: Dice over the batch")
    return Decision(False, "the patch sees most of the scan: Dice per sample")


def _mixture(spacings: np.ndarray, target: np.ndarray) -> str:
    finer = int((spacings / target > 2).any(axis=1).sum())
    size = np.prod(spacings, axis=1) ** (1 / 3)
    low, high = np.percentile(size, [10, 90])
    text = f"; {finer} of {len(spacings)} up-sampled more than 2 times along an axis" if finer else ""
    if high > MIXTURE * low:
        p75 = np.percentile(spacings, 75, axis=0)
        text += (
            f"; warning: a mixture of resolutions (voxel size P10 {low:.3g} to P90 {high:.3g} mm), "
            f"the 75th percentile would be {_vector(p75)} mm"
        )
    return text


def _range(spacings: np.ndarray) -> str:
    low, high = spacings.min(axis=0), spacings.max(axis=0)
    if np.allclose(low, high, rtol=1e-4):
        return f"all {_vector(low)}"
    return f"{_vector(low)} to {_vector(high)}"


def _vector(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def _count(items: Sequence[object], noun: str) -> str:
    return f"{len(items)} {noun}" + ("" if len(items) == 1 else "s")
