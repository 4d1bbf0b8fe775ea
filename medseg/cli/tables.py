"""Records as plain text for stdout."""

import math
from collections.abc import Sequence

from medseg.types.result import CaseScores, LabelScores, RunReport


def report_lines(report: RunReport) -> str:
    """One line per case with its volumes or its error, and a closing count."""
    lines = []
    for case in report.cases:
        volumes = ", ".join(f"{name} {volume:.2f} ml" for name, volume in (case.volumes_ml or {}).items())
        lines.append(f"{case.status}: {case.case_id}: {case.error or volumes or 'done before'}")
        lines.extend(f"  warning: {warning}" for warning in case.warnings)
    counts = [f"{sum(c.status == s for c in report.cases)} {s}" for s in ("ok", "skipped", "failed")]
    return "\n".join([*lines, ", ".join(counts)])


def score_table(scores: Sequence[CaseScores]) -> str:
    """Mean per class over the cases where a metric is defined and finite; the counts say over how many."""
    unit = scores[0].unit if scores else "mm"
    rows = [["class", "Dice", "IoU", f"HD95 {unit}", f"mean surface {unit}", "NSD", "cases", "infinite", "undefined"]]
    for name in scores[0].labels if scores else ():
        values = [case.labels[name] for case in scores]
        means = [
            _mean([v.dice for v in values]),
            _mean([v.iou for v in values]),
            _mean([v.hd95_mm for v in values]),
            _mean([v.mean_surface_mm for v in values]),
            _mean([v.nsd for v in values]),
        ]
        rows.append([name, *means, str(len(values)), str(_infinite(values)), str(_undefined(values))])
    return _aligned(rows)


def _infinite(values: Sequence[LabelScores]) -> int:
    return sum(math.isinf(v.hd95_mm) for v in values)


def _undefined(values: Sequence[LabelScores]) -> int:
    return sum(math.isnan(v.dice) for v in values)


def _mean(values: Sequence[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    return f"{sum(known) / len(known):.3f}" if known else "-"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
