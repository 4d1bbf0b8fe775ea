"""One self-contained HTML page about a run: scores, pictures, learning curves and the reasons of the plan."""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from medseg.errors import DatasetError
from medseg.io.datasets import read_dataset
from medseg.io.files import write_text
from medseg.io.images import read_image, read_labels
from medseg.io.records import read_record
from medseg.metrics.cases import score_case
from medseg.types.dataset import Case
from medseg.types.plan import Plan
from medseg.types.result import CaseScores, LabelScores
from medseg.workflow.overlays import label_colours, overlay_png


@dataclass(frozen=True)
class Picture:
    """A PNG with a caption."""

    title: str
    png: bytes
    text: str = ""


@dataclass(frozen=True)
class Page:
    """What `write_page` shows, in this order; empty parts are left out."""

    title: str
    paragraphs: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    scores: tuple[CaseScores, ...] = ()
    pictures: tuple[Picture, ...] = ()
    curves: tuple[Picture, ...] = ()
    plan: Plan | None = None


def write_page(page: Page, path: Path) -> Path:
    """Write `page` as one HTML file that needs nothing else, and return its path."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    template = files("medseg.workflow").joinpath("page.html.j2").read_text(encoding="utf-8")
    colours = label_colours(page.plan.labels) if page.plan else {}
    scores = _score_table(page.scores) if page.scores else None
    write_text(path, environment.from_string(template).render(page=page, colours=colours, scores=scores))
    return path


def read_curves(run: Path) -> tuple[Picture, ...]:
    """The learning curves of every fold below a run folder."""
    found = sorted(run.glob("fold_*/curves.png"))
    return tuple(Picture(path.parent.name.replace("_", " "), path.read_bytes()) for path in found)


def mean_dice(scores: Sequence[CaseScores]) -> float:
    """Mean over classes of the mean Dice over the cases where it is defined; NaN without any."""
    names = scores[0].labels if scores else ()
    means = [_mean([case.labels[name].dice for case in scores]) for name in names]
    return _mean(means)


def write_report(run: Path, dataset: Path, out: Path | None = None, *, pictures: int = 6) -> Path:
    """A page about a training run from its validation predictions and the data set they belong to.

    Shows the scores of every validated case and `pictures` of them from worst to best. Writes `out`, by default
    `report.html` in the run folder, and returns it. Raises DatasetError if the run has no validation predictions
    or none of them belongs to the data set.
    """
    plan = read_record(run / "plan.json", Plan)
    cases = {case.id: case for case in read_dataset(dataset).cases}
    found = {_case_id(path): path for path in sorted(run.glob("fold_*/validation/*")) if _case_id(path) in cases}
    if not found:
        raise DatasetError(
            "no validation prediction of a case of this data set", where=run, hint="train a fold before the report"
        )
    scores = []
    for case_id, path in found.items():
        reference = cases[case_id].label
        if reference is not None:
            scores.append(score_case(case_id, read_labels(path, plan.labels), read_labels(reference, plan.labels)))
    scores.sort(key=lambda case: _worst_first(mean_dice([case])))
    shown = [scores[i] for i in _spread(len(scores), pictures)]
    page = Page(
        title=f"Training run {plan.name}",
        paragraphs=("Every case below was predicted by networks that were not trained on it.",),
        facts=_facts(plan, scores),
        scores=tuple(scores),
        pictures=tuple(_picture(cases[case.case_id], found[case.case_id], plan, case) for case in shown),
        curves=read_curves(run),
        plan=plan,
    )
    return write_page(page, out or run / "report.html")


def _facts(plan: Plan, scores: Sequence[CaseScores]) -> tuple[tuple[str, str], ...]:
    network, training = plan.network, plan.training
    return (
        ("cases", str(len(scores))),
        ("mean Dice", f"{mean_dice(scores):.3f}"),
        ("network", f"{network.use}, {network.topology.ndim}D, channels {list(network.topology.channels)}"),
        ("patch (z, y, x), batch", f"{list(plan.sampling.patch)}, {plan.sampling.batch}"),
        ("training", f"{training.epochs} epochs of {training.steps_per_epoch} steps, seed {training.seed}"),
        ("cleaning", json.dumps([step.use for step in plan.postprocess])),
    )


def _picture(case: Case, path: Path, plan: Plan, scores: CaseScores) -> Picture:
    image = read_image(case.images, channels=plan.channels)
    reference = read_labels(case.label, plan.labels) if case.label else None
    text = ", ".join(f"{name} Dice {value.dice:.3f}" for name, value in scores.labels.items())
    return Picture(case.id, overlay_png(image, read_labels(path, plan.labels), reference), text)


def _case_id(path: Path) -> str:
    """Name without every known suffix: "a.b.nii.gz" is case "a.b"."""
    name = path.name
    for suffix in (".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".tif", ".tiff"):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


def _spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` indices from first to last, evenly apart.

    >>> _spread(9, 3), _spread(2, 5)
    ([0, 4, 8], [0, 1])
    """
    if count <= wanted:
        return list(range(count))
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]


def _worst_first(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _score_table(scores: Sequence[CaseScores]) -> Mapping[str, object]:
    kinds: tuple[tuple[str, Callable[[LabelScores], float]], ...] = (
        ("Dice", lambda s: s.dice),
        ("HD95", lambda s: s.hd95_mm),
    )
    names = list(scores[0].labels)
    columns = [f"{name} {kind}" for name in names for kind, _ in kinds]
    rows = [[case.case_id, *(_cell(value(case.labels[n])) for n in names for _, value in kinds)] for case in scores]
    means = [_cell(_mean([value(case.labels[n]) for case in scores])) for n in names for _, value in kinds]
    return {"columns": columns, "rows": [["mean", *means], *rows], "unit": scores[0].unit}


def _cell(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
