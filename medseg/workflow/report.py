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
from medseg.io.dataset_points import point_stem, read_points
from medseg.io.datasets import read_dataset
from medseg.io.files import write_text
from medseg.io.images import image_stem, is_image, read_labels
from medseg.io.landmarks import read_landmarks
from medseg.io.pairs import read_pair
from medseg.io.plain_json import read_json
from medseg.io.records import read_record
from medseg.metrics.cases import score_case, summarise
from medseg.metrics.landmarks import score_landmarks, summarise_landmarks
from medseg.postprocess.chain import clean
from medseg.preprocess.fan import scored
from medseg.types.dataset import Case, Dataset
from medseg.types.image import Image, LabelMap
from medseg.types.landmarks import Landmarks
from medseg.types.plan import Plan
from medseg.types.result import CaseScores, LabelScores, LandmarkScores
from medseg.workflow.evaluate_landmarks import landmark_rows
from medseg.workflow.overlays import label_colours, overlay_png

Place = tuple[str, str]  # a case, and the folder of the fold that validated it


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
    landmarks: tuple[LandmarkScores, ...] = ()


def write_page(page: Page, path: Path) -> Path:
    """Write `page` as one HTML file that needs nothing else, and return its path."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    template = files("medseg.workflow").joinpath("page.html.j2").read_text(encoding="utf-8")
    colours = label_colours(page.plan.labels) if page.plan else {}
    scores = _score_table(page.scores) if page.scores else None
    points = _landmark_table(page.landmarks) if page.landmarks else None
    text = environment.from_string(template).render(page=page, colours=colours, scores=scores, points=points)
    write_text(path, text)
    return path


def read_curves(run: Path) -> tuple[Picture, ...]:
    """The learning curves of every fold below a run folder."""
    found = sorted([*run.glob("fold_*/curves.png"), *run.glob("fold_*/member_*/curves.png")])
    names = [path.parent.relative_to(run).as_posix().replace("_", " ").replace("/", ", ") for path in found]
    return tuple(Picture(name, path.read_bytes()) for name, path in zip(names, found, strict=True))


def mean_dice(scores: Sequence[CaseScores]) -> float:
    """Mean over classes of their mean Dice over the cases where it is defined; NaN without any.

    Failed cases have no Dice: count them apart.
    """
    mean = summarise(scores)["mean"]
    value = mean.get("dice") if isinstance(mean, Mapping) else None
    return math.nan if value is None else float(value)


def write_report(run: Path | str, dataset: Path | str, out: Path | None = None, *, pictures: int = 6) -> Path:
    """A page about a training run from its validation predictions and the data set they belong to.

    Scores every validated case after the cleaning of the run's bundle, and its landmarks, and shows `pictures` of them
    from worst to best; cases whose validation failed are named with the reason. Writes `out`, by default `report.html`
    in the run folder, and returns it. Raises DatasetError if the run has no validation prediction of a case of the data
    set, PlanError if it holds no finished model.
    """
    run = Path(run)
    plan = read_record(run / "bundle" / "plan.json", Plan)
    data = read_dataset(dataset)
    cases = {case.id: case for case in data.cases}
    failed = _failed(run / "bundle" / "scores.json")
    files = (path for path in sorted(run.glob("fold_*/validation/*")) if is_image(path) or point_stem(path))
    found: dict[Place, list[Path]] = {}
    for path in files:
        place = (image_stem(path) if is_image(path) else point_stem(path), path.parent.parent.name)
        if place[0] in cases and place not in failed:
            found.setdefault(place, []).append(path)
    if not found:
        raise DatasetError(
            "no validation prediction of a case of this data set", where=run, hint="train a fold before the report"
        )
    rows = ((place, *_scores(_load(data, cases[place[0]], paths, plan))) for place, paths in found.items())
    loaded = sorted(rows, key=_worst_first)
    shown = []
    for index in _spread(len(loaded), pictures):
        (name, fold), labels, points = loaded[index]
        one = _load(data, cases[name], found[name, fold], plan)
        shown.append(Picture(f"{name}, {fold.replace('_', ' ')}", _picture(one), _caption(labels, points)))
    scores = tuple(row[1] for row in loaded if row[1] is not None)
    landmarks = tuple(row[2] for row in loaded if row[2] is not None)
    page = Page(
        title=f"Training run {plan.name}",
        paragraphs=("Every case below was predicted by a network that was not trained on it.",),
        facts=(
            *_facts(plan, len(loaded), scores, landmarks),
            *((f"not validated: {case}, {fold.replace('_', ' ')}", why) for (case, fold), why in failed.items()),
        ),
        scores=scores,
        landmarks=landmarks,
        pictures=tuple(shown),
        curves=read_curves(run),
        plan=plan,
    )
    return write_page(page, out or run / "report.html")


def _failed(path: Path) -> dict[Place, str]:
    """Why training could not validate cases, by the scores of its bundle."""
    scores = read_json(path) if path.exists() else {}
    return {(one["case"], f"fold_{one['fold']}"): one["error"] for one in scores.get("failed", ())}


@dataclass(frozen=True, eq=False)
class _Loaded:
    """One validated case: the scan, cleaned prediction and reference, landmarks found and to be found."""

    case_id: str
    image: Image
    labels: tuple[LabelMap, LabelMap] | None
    landmarks: tuple[Landmarks, Landmarks] | None


def _load(data: Dataset, case: Case, paths: Sequence[Path], plan: Plan) -> _Loaded:
    image, reference = read_pair(case, data)
    maps = [path for path in paths if is_image(path)]
    points = [path for path in paths if not is_image(path)]
    labels, landmarks = None, None
    if maps and plan.labels.items:
        reference = scored(reference, image, plan.preprocess)
        prediction = clean(read_labels(maps[0], plan.labels, predicted=True), plan.postprocess)
        prediction = replace(prediction, geometry=reference.geometry)
        labels = prediction, reference
    if points and case.landmarks is not None:
        landmarks = read_landmarks(points[0]), Landmarks(data.landmarks, read_points(case, data))
    return _Loaded(case.id, image, labels, landmarks)


def _scores(one: _Loaded) -> tuple[CaseScores | None, LandmarkScores | None]:
    labels = None if one.labels is None else score_case(one.case_id, *one.labels)
    return labels, None if one.landmarks is None else score_landmarks(one.case_id, *one.landmarks)


def _picture(one: _Loaded) -> bytes:
    labels, points = one.labels or (None, None), one.landmarks or (None, None)
    return overlay_png(one.image, *labels, landmarks=points[0], reference_landmarks=points[1])


def _facts(
    plan: Plan, cases: int, scores: Sequence[CaseScores], landmarks: Sequence[LandmarkScores]
) -> tuple[tuple[str, str], ...]:
    network, training = plan.network, plan.training
    results = [("mean Dice", f"{mean_dice(scores):.3f}")] if scores else []
    if landmarks:
        results.append(("mean radial error", _length(landmarks)))
    return (
        ("validated cases", str(cases)),
        *results,
        ("network", f"{network.use}, {network.topology.ndim}D, channels {list(network.topology.channels)}"),
        ("patch (z, y, x), batch", f"{list(plan.sampling.patch)}, {plan.sampling.batch}"),
        ("training", f"{training.epochs} epochs of {training.steps_per_epoch} steps at most, seed {training.seed}"),
        *([("networks per fold", str(training.members))] if training.members > 1 else []),
        ("cleaning", ", ".join(step.use for step in plan.postprocess) or "none"),
    )


def _caption(labels: CaseScores | None, landmarks: LandmarkScores | None) -> str:
    parts = [_dice_text(labels)] if labels is not None else []
    return ", ".join([*parts, *([f"mean radial error {_length([landmarks])}"] if landmarks else [])])


def _mean_error(scores: Sequence[LandmarkScores]) -> float:
    known = [error for case in scores for error in case.errors_mm.values() if not math.isnan(error)]
    return sum(known) / len(known) if known else math.nan


def _length(scores: Sequence[LandmarkScores]) -> str:
    error, units = _mean_error(scores), sorted({case.unit for case in scores})
    return "undefined" if math.isnan(error) else f"{error:.2f} {'/'.join(units)}"


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


def _worst_first(row: tuple[Place, CaseScores | None, LandmarkScores | None]) -> tuple[float, float]:
    """By Dice from below, then by landmarks from the largest error; what is not defined comes last."""
    _, labels, landmarks = row
    dice = math.nan if labels is None else mean_dice([labels])
    error = math.nan if landmarks is None else _mean_error([landmarks])
    return math.inf if math.isnan(dice) else dice, math.inf if math.isnan(error) else -error


def _landmark_table(scores: Sequence[LandmarkScores]) -> Mapping[str, object]:
    lines = landmark_rows(summarise_landmarks(scores))
    return {"columns": lines[0], "rows": lines[1:]}


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
