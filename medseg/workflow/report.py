"""One self-contained HTML page about a run: scores, pictures, learning curves and the reasons of the plan."""

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from medseg.errors import DatasetError
from medseg.io.datasets import read_dataset
from medseg.io.files import write_text
from medseg.io.images import image_stem, is_image, read_labels
from medseg.io.pairs import read_pair
from medseg.io.records import read_record
from medseg.metrics.cases import score_case, summarise
from medseg.postprocess.chain import clean
from medseg.preprocess.fan import scored
from medseg.types.dataset import Case, Dataset
from medseg.types.image import Image, LabelMap
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
    """Mean over classes of their mean Dice over the cases where it is defined; NaN without any.

    Failed cases have no Dice: count them apart.
    """
    mean = summarise(scores)["mean"]
    value = mean.get("dice") if isinstance(mean, Mapping) else None
    return math.nan if value is None else float(value)


def write_report(run: Path | str, dataset: Path | str, out: Path | None = None, *, pictures: int = 6) -> Path:
    """A page about a training run from its validation predictions and the data set they belong to.

    Scores every validated case after the cleaning of the run's bundle and shows `pictures` of them from worst to
    best. Writes `out`, by default `report.html` in the run folder, and returns it. Raises DatasetError if the run has
    no validation prediction of a case of the data set, PlanError if it holds no finished model.
    """
    run = Path(run)
    plan = read_record(run / "bundle" / "plan.json", Plan)
    data = read_dataset(dataset)
    cases = {case.id: case for case in data.cases if case.label is not None}
    files = (path for path in sorted(run.glob("fold_*/validation/*")) if is_image(path))
    found = {image_stem(path): path for path in files if image_stem(path) in cases}
    if not found:
        raise DatasetError(
            "no validation prediction of a case of this data set", where=run, hint="train a fold before the report"
        )
    scores = sorted((_load(data, cases[name], path, plan)[0] for name, path in found.items()), key=_worst_first)
    shown = []
    for index in _spread(len(scores), pictures):
        name = scores[index].case_id
        case, image, prediction, reference = _load(data, cases[name], found[name], plan)
        shown.append(Picture(name, overlay_png(image, prediction, reference), _dice_text(case)))
    page = Page(
        title=f"Training run {plan.name}",
        paragraphs=("Every case below was predicted by a network that was not trained on it.",),
        facts=_facts(plan, scores),
        scores=tuple(scores),
        pictures=tuple(shown),
        curves=read_curves(run),
        plan=plan,
    )
    return write_page(page, out or run / "report.html")


def _load(data: Dataset, case: Case, path: Path, plan: Plan) -> tuple[CaseScores, Image, LabelMap, LabelMap]:
    """Scores, scan, cleaned prediction and reference of one validated case."""
    image, reference = read_pair(case, data)
    reference = scored(reference, image, plan.preprocess)
    prediction = replace(clean(read_labels(path, plan.labels), plan.postprocess), geometry=reference.geometry)
    return score_case(case.id, prediction, reference), image, prediction, reference


def _facts(plan: Plan, scores: Sequence[CaseScores]) -> tuple[tuple[str, str], ...]:
    network, training = plan.network, plan.training
    return (
        ("validated cases", str(len(scores))),
        ("mean Dice", f"{mean_dice(scores):.3f}"),
        ("network", f"{network.use}, {network.topology.ndim}D, channels {list(network.topology.channels)}"),
        ("patch (z, y, x), batch", f"{list(plan.sampling.patch)}, {plan.sampling.batch}"),
        ("training", f"{training.epochs} epochs of {training.steps_per_epoch} steps at most, seed {training.seed}"),
        ("cleaning", ", ".join(step.use for step in plan.postprocess) or "none"),
    )


def _dice_text(scores: CaseScores) -> str:
    return ", ".join(f"{name} Dice {value.dice:.3f}" for name, value in scores.labels.items())


def _spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` indices from first to last, evenly apart.

    >>> _spread(9, 3), _spread(2, 5)
    ([0, 4, 8], [0, 1])
    """
    if count <= wanted:
        return list(range(count))
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]


def _worst_first(scores: CaseScores) -> float:
    value = mean_dice([scores])
    return math.inf if math.isnan(value) else value


def _score_table(scores: Sequence[CaseScores]) -> Mapping[str, object]:
    kinds: tuple[tuple[str, Callable[[LabelScores], float]], ...] = (
        ("Dice", lambda s: s.dice),
        ("HD95", lambda s: s.hd95_mm),
    )
    names = list(dict.fromkeys(name for case in scores for name in case.labels))
    columns = [f"{name} {kind}" for name in names for kind, _ in kinds]
    rows = [[case.case_id, *(_cell(case, name, value) for name in names for _, value in kinds)] for case in scores]
    labels = summarise(scores)["labels"]
    means = [_mean_cell(labels, name, metric) for name in names for metric in ("dice", "hd95_mm")]
    return {"columns": columns, "rows": [["mean", *means], *rows], "unit": scores[0].unit}


def _cell(case: CaseScores, name: str, value: Callable[[LabelScores], float]) -> str:
    if name not in case.labels:
        return "failed"
    number = value(case.labels[name])
    return "–" if math.isnan(number) else f"{number:.3f}"


def _mean_cell(labels: Any, name: str, metric: str) -> str:
    mean = labels[name][metric]["mean"]
    return "–" if mean is None else f"{mean:.3f}"
