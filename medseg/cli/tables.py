"""Records as plain text for stdout."""

import re
from collections.abc import Mapping, Sequence

from medseg.types.result import CaseReport, RunReport

_MASKED = re.compile(r"(?<![^\s/(])\*(?![^\s/.:)])")
_HIDDEN = "* hides names that may be a patient's; --keep-identifiers shows them"


def score_lines(scores: Mapping[str, object]) -> str:
    """What cross-validation found so far: mean Dice over cases the scored network had not seen, and the cleaning.

    Of landmarks the mean distance, and the share found within some mm.
    """
    lines = []
    dice, landmarks = scores.get("dice"), scores.get("landmarks")
    if isinstance(dice, Mapping):
        each = ", ".join(f"{name} {_number(value)}" for name, value in dice.items())
        lines.append(
            f"validation: mean Dice {_number(scores.get('mean_dice'))} on {scores.get('cases')} cases ({each})"
        )
        lines.append(f"cleaning: {scores.get('cleaning')}")
    if isinstance(landmarks, Mapping):
        lines.append(_landmark_line(landmarks))
    if isinstance(failed := scores.get("failed"), Sequence) and failed:
        lines.append(f"NOT VALIDATED: {len(failed)} cases failed, see scores.json and the log")
    return "\n".join(lines) or "no validation: every case was trained on"


def _landmark_line(landmarks: Mapping[str, object]) -> str:
    summary = landmarks.get("summary")
    every = summary.get("all") if isinstance(summary, Mapping) else None
    if not isinstance(every, Mapping) or not every.get("n"):
        return "validation: no reference landmarks"
    shares, unit = every["sdr"].items(), summary.get("unit", "mm") if isinstance(summary, Mapping) else "mm"
    within = ", ".join(f"{100 * share:.0f} % within {limit} {unit}" for limit, share in shares)
    mean = "undefined" if every["mean_mm"] is None else f"{every['mean_mm']:.2f} {unit}"
    missing = f", {every['missing']} missing" if every["missing"] else ""
    return f"validation: {every['n']} landmarks, mean distance {mean} ({within}{missing})"


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "undefined"


def report_lines(report: RunReport) -> str:
    """One line per case with its volumes, areas or error, and a closing count."""
    lines = []
    for case in report.cases:
        done = "done" if case.outputs else "left out"
        error = (case.error or "").removeprefix(f"{case.case_id}: ")
        lines.append(f"{case.status}: {case.case_id}: {error or _sizes(case) or done}")
        lines.extend(f"  warning: {warning}" for warning in case.warnings)
    counts = [f"{sum(c.status == s for c in report.cases)} {s}" for s in ("ok", "skipped", "failed")]
    hidden = [_HIDDEN] if any(_MASKED.search(line) for line in lines) else []
    return "\n".join([*lines, *hidden, ", ".join(counts)])


def _sizes(case: CaseReport) -> str:
    volumes = [f"{name} {volume:.2f} ml" for name, volume in (case.volumes_ml or {}).items()]
    areas = [f"{name} {area:.2f} mm2" for name, area in (case.area_mm2 or {}).items()]
    largest = [f"{name} up to {area:.2f} mm2" for name, area in (case.largest_area_mm2 or {}).items()]
    points = case.landmarks or {}
    placed = sum(place is not None for place in points.values())
    found = [f"{placed} of {len(points)} landmarks"] if points else []
    return ", ".join((*volumes, *areas, *largest, *found))
