"""Records as plain text for stdout."""

from medseg.types.result import RunReport


def report_lines(report: RunReport) -> str:
    """One line per case with its volumes or its error, and a closing count."""
    lines = []
    for case in report.cases:
        volumes = ", ".join(f"{name} {volume:.2f} ml" for name, volume in (case.volumes_ml or {}).items())
        lines.append(f"{case.status}: {case.case_id}: {case.error or volumes or 'done before'}")
        lines.extend(f"  warning: {warning}" for warning in case.warnings)
    counts = [f"{sum(c.status == s for c in report.cases)} {s}" for s in ("ok", "skipped", "failed")]
    return "\n".join([*lines, ", ".join(counts)])
