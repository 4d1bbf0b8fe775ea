"""The plan's cleaning steps, in order."""

from collections.abc import Callable, Mapping, Sequence

from medseg.plugins import resolve
from medseg.postprocess.components import drop_small, keep_largest
from medseg.postprocess.contours import refine_contours
from medseg.postprocess.fill import fill_holes
from medseg.types.image import LabelMap
from medseg.types.plan import Step

Clean = Callable[..., LabelMap]
CLEAN: Mapping[str, Clean] = {
    "drop_small": drop_small,
    "fill_holes": fill_holes,
    "keep_largest": keep_largest,
    "refine_contours": refine_contours,
}


def clean(labels: LabelMap, steps: Sequence[Step]) -> LabelMap:
    """All steps in order; each is a name in `CLEAN` or "module:function" of (LabelMap, **options) -> LabelMap.

    Raises PlanError for an unknown step or option before anything is changed.
    """
    functions = [
        resolve(step.use, CLEAN, step.options, where=f"postprocess.{index}") for index, step in enumerate(steps)
    ]
    for function in functions:
        labels = function(labels)
    return labels
