"""Plan, train and run medical image segmentation models under a budget of memory and time.

The names below load their modules on first use, so that `import medseg` costs next to nothing.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Torch asks Linux for huge pages then, which saves time where much memory is taken and given back on a CPU
# (docs/benchmarks.md, 4). It must be known before torch is imported; whoever sets it otherwise is left alone.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

if TYPE_CHECKING:
    from medseg.errors import MedsegError as MedsegError
    from medseg.io.datasets import read_dataset as read_dataset
    from medseg.io.images import read_image as read_image
    from medseg.io.images import read_labels as read_labels
    from medseg.io.images import write_labels as write_labels
    from medseg.io.landmarks import read_landmarks as read_landmarks
    from medseg.io.landmarks import write_landmarks as write_landmarks
    from medseg.io.records import write_record as write_record
    from medseg.metrics.cases import score_case as score_case
    from medseg.metrics.cases import summarise as summarise
    from medseg.training.curves import tensorboard as tensorboard
    from medseg.types.dataset import Case as Case
    from medseg.types.dataset import Dataset as Dataset
    from medseg.types.geometry import Geometry as Geometry
    from medseg.types.image import Image as Image
    from medseg.types.image import LabelMap as LabelMap
    from medseg.types.labels import Label as Label
    from medseg.types.labels import Labels as Labels
    from medseg.types.landmarks import Landmarks as Landmarks
    from medseg.types.plan import Budget as Budget
    from medseg.types.plan import LossTerm as LossTerm
    from medseg.types.plan import Network as Network
    from medseg.types.plan import Plan as Plan
    from medseg.types.plan import Step as Step
    from medseg.types.plan import Topology as Topology
    from medseg.types.progress import Progress as Progress
    from medseg.types.result import CaseScores as CaseScores
    from medseg.types.result import LandmarkScores as LandmarkScores
    from medseg.types.result import ModelBundle as ModelBundle
    from medseg.types.result import Prediction as Prediction
    from medseg.types.result import RunReport as RunReport
    from medseg.types.tensors import Batch as Batch
    from medseg.types.tensors import NetworkOutput as NetworkOutput
    from medseg.workflow.check_dataset import check_dataset as check_dataset
    from medseg.workflow.check_plan import check_plan as check_plan
    from medseg.workflow.check_plan import load_plan as load_plan
    from medseg.workflow.convert import convert as convert
    from medseg.workflow.evaluate import evaluate as evaluate
    from medseg.workflow.evaluate_landmarks import evaluate_landmarks as evaluate_landmarks
    from medseg.workflow.inspect import inspect as inspect
    from medseg.workflow.networks import list_networks as list_networks
    from medseg.workflow.overlays import overlay_png as overlay_png
    from medseg.workflow.plan import plan as plan
    from medseg.workflow.predict import PredictOptions as PredictOptions
    from medseg.workflow.predict import load_model as load_model
    from medseg.workflow.predict import predict_folder as predict_folder
    from medseg.workflow.report import Page as Page
    from medseg.workflow.report import Picture as Picture
    from medseg.workflow.report import mean_dice as mean_dice
    from medseg.workflow.report import read_curves as read_curves
    from medseg.workflow.report import write_page as write_page
    from medseg.workflow.report import write_report as write_report
    from medseg.workflow.train import train as train

__version__ = "0.1.0"

_HOMES = {
    "medseg.errors": ("MedsegError",),
    "medseg.io.datasets": ("read_dataset",),
    "medseg.io.images": ("read_image", "read_labels", "write_labels"),
    "medseg.io.landmarks": ("read_landmarks", "write_landmarks"),
    "medseg.io.records": ("write_record",),
    "medseg.metrics.cases": ("score_case", "summarise"),
    "medseg.training.curves": ("tensorboard",),
    "medseg.types.dataset": ("Case", "Dataset"),
    "medseg.types.geometry": ("Geometry",),
    "medseg.types.image": ("Image", "LabelMap"),
    "medseg.types.labels": ("Label", "Labels"),
    "medseg.types.landmarks": ("Landmarks",),
    "medseg.types.plan": ("Budget", "LossTerm", "Network", "Plan", "Step", "Topology"),
    "medseg.types.progress": ("Progress",),
    "medseg.types.result": ("CaseScores", "LandmarkScores", "ModelBundle", "Prediction", "RunReport"),
    "medseg.types.tensors": ("Batch", "NetworkOutput"),
    "medseg.workflow.check_dataset": ("check_dataset",),
    "medseg.workflow.check_plan": ("check_plan", "load_plan"),
    "medseg.workflow.convert": ("convert",),
    "medseg.workflow.evaluate": ("evaluate",),
    "medseg.workflow.evaluate_landmarks": ("evaluate_landmarks",),
    "medseg.workflow.inspect": ("inspect",),
    "medseg.workflow.networks": ("list_networks",),
    "medseg.workflow.overlays": ("overlay_png",),
    "medseg.workflow.plan": ("plan",),
    "medseg.workflow.predict": ("PredictOptions", "load_model", "predict_folder"),
    "medseg.workflow.report": ("Page", "Picture", "mean_dice", "read_curves", "write_page", "write_report"),
    "medseg.workflow.train": ("train",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'medseg' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return list(__all__)
