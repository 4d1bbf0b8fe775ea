"""Learning curves as a picture, and for TensorBoard."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.errors import TrainingError
from medseg.io.files import whole_file

_AXES: Mapping[str, Mapping[str, Any]] = {
    "dice": {"ylabel": "Dice on validation patches", "ylim": (0, 1)},
    "radial_error_mm": {"ylabel": "distance of landmarks, mm or px", "ylim": (0, None)},
}


def draw_curves(rows: Sequence[Mapping[str, float | None]], path: Path) -> None:
    """A PNG with loss, Dice per class, distance per landmark and learning rate over the rows of metrics.jsonl."""
    from matplotlib.figure import Figure

    kinds = [kind for kind in _AXES if any(kind in row for row in rows)] or ["dice"]
    figure = Figure(figsize=(8, 6 + 3 * len(kinds)), layout="constrained")
    panels = figure.subplots(2 + len(kinds), 1, sharex=True)
    _lines(panels[0], rows, ("loss", "val_loss"))
    panels[0].set_ylabel("loss")
    for panel, kind in zip(panels[1:-1], kinds, strict=True):
        names = sorted({name for row in rows for name in row if name.startswith(f"{kind} ")})
        _lines(panel, rows, names if len(names) <= 10 else [])
        _lines(panel, rows, (kind,), color="black")
        panel.set(**_AXES[kind])
    _lines(panels[-1], rows, ("learning_rate",))
    panels[-1].set(ylabel="learning rate", xlabel="epoch")
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=80, format="png")


def tensorboard(folder: Path) -> Callable[[Any], None]:
    """A hook that writes every epoch's metrics for TensorBoard; raises TrainingError without the extra `track`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError("TensorBoard is not installed", hint='pip install "medseg[track]"') from error

    writer = SummaryWriter(str(folder))

    def write(end: Any) -> None:
        for name, value in end.metrics.items():
            writer.add_scalar(name, value, end.epoch)
        writer.flush()

    return write


def _lines(axes: Any, rows: Sequence[Mapping[str, float | None]], names: Sequence[str], **style: str) -> None:
    for name in names:
        points = [(row.get("epoch"), row.get(name)) for row in rows if row.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1, **style)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
