"""Records as plain text for stdout."""

import re
from collections.abc import Mapping

from medseg.types.result import CaseReport, RunReport

_MASKED = re.compile(r"(?<![^\s/(])\*(?![^\s/.:)])")
_HIDDEN = "* hides names that may be a patient's; --keep-identifiers shows them"


def score_lines(scores: Mapping[str, object]) -> str:
    """What cross-validation found so far: mean Dice over cases the scored network had not seen, and the cleaning."""
    dice = scores.get("dice")
    if not isinstance(dice, Mapping):
        return "no validation: every case was trained on"
    each = ", ".join(f"{name} {_number(value)}" for name, value in dice.items())
    head = f"validation: mean Dice {_number(scores.get('mean_dice'))} on {scores.get('cases')} cases ({each})"
    return f"{head}\ncleaning: {scores.get('cleaning')}"


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
