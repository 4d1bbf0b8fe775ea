"""Along which axes scans may be mirrored, and what changes sides then."""

from collections.abc import Sequence
from dataclasses import dataclass

from medseg.planning.decisions import AXES, Decision
from medseg.types.fingerprint import Fingerprint
from medseg.types.plan import Inference, Option, Step
from medseg.types.sides import Pair, index_swaps, paired_names, side_axis, value_swaps

LABELS = 0.7  # overlap of a mean atlas with its mirror image below which mirroring swaps classes
IMAGE = 0.5  # correlation of the mean scan with its mirror image
MIDDLE = 0.05  # of a scan's width: how far from the middle a landmark without a partner may lie


@dataclass(frozen=True)
class Mirroring:
    """Axes (z, y, x = 0, 1, 2) that may be mirrored; mirroring `swap_axis` exchanges what the pairs name."""

    axes: tuple[int, ...] = ()
    swap_axis: int | None = None
    labels: tuple[Pair, ...] = ()
    points: tuple[Pair, ...] = ()

    def within(self, ndim: int) -> "Mirroring":
        """What a network of `ndim` axes can do of it."""
        axes = tuple(axis for axis in self.axes if axis >= 3 - ndim)
        return Mirroring(axes, self.swap_axis, self.labels, self.points) if self.swap_axis in axes else Mirroring(axes)

    def inference(self) -> Inference:
        """How prediction mirrors."""
        return Inference(
            mirror_axes=self.axes, swap_axis=self.swap_axis, swap_labels=self.labels, swap_points=self.points
        )

    def step(self, fingerprint: Fingerprint) -> Step | None:
        """How training mirrors, or None where it does not."""
        if not self.axes:
            return None
        options: dict[str, Option] = {"axes": list(self.axes)}
        if self.swap_axis is not None:
            values = value_swaps(fingerprint.labels, self.labels) or ()
            points = index_swaps(fingerprint.landmarks, self.points)
            options["swap_axis"] = self.swap_axis
            options |= {"swap_values": list(values)} if values else {}
            options |= {"swap_points": list(points)} if points else {}
        return Step("mirror", options)


def mirroring(fingerprint: Fingerprint) -> Decision[Mirroring]:
    """Axes that may be mirrored in training and prediction.

    An axis qualifies if mean labels and mean image are much like their own mirror image. Mirroring an axis that is not
    symmetric teaches scans that never occur and, where classes differ by their place along it, wrong labels; not
    mirroring one that is symmetric only costs some augmentation. So the limits are strict. Where names say left or
    right, the axis between the sides is mirrored only with all of them exchanged, and with no landmark beside the
    middle that has no partner, whatever its name says. Landmarks are looked for in whole scans, which have one way up:
    only the axis between the sides may be mirrored.
    """
    sides = side_axis(fingerprint.orientation) if fingerprint.ndim == 3 else None
    labels, points = paired_names(fingerprint.labels.names()), paired_names(fingerprint.landmarks)
    pairs = (*labels.pairs, *points.pairs)
    alone = tuple(dict.fromkeys((*labels.unpaired, *points.unpaired, *_beside_the_middle(fingerprint, points.pairs))))
    chosen, said = _alike(fingerprint)
    text = f"likeness of the mean scan to its mirror image: {said}; needs labels {LABELS} and image {IMAGE}"
    if fingerprint.landmarks:
        chosen = tuple(axis for axis in chosen if axis == sides and pairs)
        text += "; landmarks: no axis but that between paired sides"
    if not pairs and not alone:
        return Decision(Mirroring(chosen), text)
    if sides is None:
        return Decision(
            Mirroring(), f"{text}; names say sides ({_named(pairs, alone)}), but no axis is known to join them"
        )
    dropped = tuple(axis for axis in chosen if axis != sides)
    if alone or value_swaps(fingerprint.labels, labels.pairs) is None:
        why = (
            f"{', '.join(alone)} has no partner" if alone else "classes of two sides merge different numbers of values"
        )
        return Decision(Mirroring(dropped), f"{text}; {AXES[sides]} joins left and right: not mirrored, since {why}")
    if sides not in chosen:
        return Decision(Mirroring(chosen), text)
    exchanged = f"{text}; {AXES[sides]} joins left and right: mirroring it exchanges {_named(pairs, ())}"
    return Decision(Mirroring(chosen, sides, labels.pairs, points.pairs), exchanged)


def _beside_the_middle(fingerprint: Fingerprint, pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Landmarks without a partner that do not lie midway between the pairs, or between the borders without pairs."""
    across = {
        name: place
        for name, place in zip(fingerprint.landmarks, fingerprint.landmark_across, strict=False)
        if place is not None
    }
    middles = [(across[left] + across[right]) / 2 for left, right in pairs if left in across and right in across]
    middle = sum(middles) / len(middles) if middles else 0.5
    paired = {name for pair in pairs for name in pair}
    return tuple(name for name, place in across.items() if name not in paired and abs(place - middle) > MIDDLE)


def _alike(fingerprint: Fingerprint) -> tuple[tuple[int, ...], str]:
    """Axes along which the mean scan is like its mirror image, and the measurements in words."""
    chosen: list[int] = []
    said = []
    for axis in range(3 - fingerprint.ndim, 3):
        labels, image = fingerprint.mirror_labels[axis], fingerprint.mirror_image[axis]
        good = labels >= LABELS and image >= IMAGE
        chosen += [axis] if good else []
        said.append(f"{AXES[axis]} {'yes' if good else 'no'} (labels {labels:.2f}, image {image:.2f})")
    return tuple(chosen), ", ".join(said)


def _named(pairs: tuple[Pair, ...], alone: tuple[str, ...]) -> str:
    shown = [*(f"{left} and {right}" for left, right in pairs[:3]), *alone[:3]]
    more = len(pairs) + len(alone) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
