"""Re-plan every fingerprint in this folder, and write the JSON Schema of plans.

python plans/remake.py

`<task>/fingerprint.json` holds the measurements of a data set, no voxels; `<task>/budgets.json` what to plan for. Each
budget gives `<task>/<config>-<budget>.json`. A change of the planner shows up here as a readable difference.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medseg.io.files import write_text
from medseg.io.records import format_record, parse_record, read_record, record_schema
from medseg.planning.design import Wishes
from medseg.planning.planner import make_plans
from medseg.types.fingerprint import Fingerprint
from medseg.types.plan import Budget, Options, Plan

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Request:
    """One entry of budgets.json; with hours, `budget.step_s` is the time every training step is taken to need."""

    preset: str
    budget: Budget
    options: Options = field(default_factory=dict)
    heads: tuple[str, ...] = ()


def tasks() -> list[str]:
    """Folders that hold a fingerprint."""
    return sorted(path.parent.name for path in FOLDER.glob("*/fingerprint.json"))


def planned(task: str) -> Iterator[tuple[Path, str]]:
    """Path and text of every plan of a task."""
    fingerprint = read_record(FOLDER / task / "fingerprint.json", Fingerprint)
    listed = FOLDER / task / "budgets.json"
    requests: dict[str, Request] = parse_record(listed.read_text("utf-8"), dict[str, Request], where=str(listed))
    for name, request in requests.items():
        step_s = request.budget.step_s or 1.0
        own = {"wishes": Wishes(request.options, request.heads), "seconds_of": lambda *_, step_s=step_s: step_s}
        plans = make_plans(fingerprint, request.budget, request.preset, **own)
        for plan in plans:
            config = plan.name.removeprefix(f"{fingerprint.dataset}-")
            yield FOLDER / task / f"{config}-{name}.json", format_record(plan)


def schema() -> tuple[Path, str]:
    """Path and text of the JSON Schema that editors check plans with."""
    return FOLDER / "plan.schema.json", json.dumps(record_schema(Plan), indent=2) + "\n"


def main() -> None:
    """Write everything anew; plans that are no longer made are removed."""
    write_text(*schema())
    for task in tasks():
        made = dict(planned(task))
        for path in (FOLDER / task).glob("[23]d*-*.json"):
            if path not in made:
                path.unlink()
        for path, text in made.items():
            write_text(path, text)


if __name__ == "__main__":
    main()
