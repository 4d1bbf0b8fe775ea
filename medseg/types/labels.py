"""What the voxel values mean."""

from dataclasses import dataclass

from medseg.errors import PlanError


@dataclass(frozen=True)
class Code:
    """A coded concept, e.g. SCT 91609006 'Mandible'; goes into DICOM SEG unchanged."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Label:
    """One output class; more than one value makes it a region (the values are merged).

    `write` is the value a prediction gets in label maps; by default the first of `values`.
    """

    name: str
    values: tuple[int, ...]
    code: Code | None = None
    write: int | None = None

    @property
    def written(self) -> int:
        """The value this class has in predicted label maps."""
        return self.values[0] if self.write is None else self.write

    @property
    def stored(self) -> tuple[int, ...]:
        """Every value of a predicted label map that belongs to this class: its own, or all of a region's."""
        return (self.written,) if len(self.values) == 1 else tuple(sorted({*self.values, self.written}))


@dataclass(frozen=True)
class Labels:
    """All classes in channel order; background is value 0 and is not listed. Landmark tasks may have none.

    Where regions overlap, a later region overwrites an earlier one in label maps.

    >>> Labels((Label("anterior", (1,)), Label("posterior", (2,)))).outputs()
    3
    >>> Labels((Label("whole", (1, 2), write=1), Label("core", (2,)))).outputs()
    2
    """

    items: tuple[Label, ...]
    ignore: int | None = None

    def __post_init__(self) -> None:
        names = [item.name for item in self.items]
        if len(set(names)) < len(names):
            raise PlanError("labels need unique names", where="labels.items", hint=f"found {names}")
        bad = [item.name for item in self.items if not item.values or min(item.values) < 1 or item.written < 1]
        if bad:
            raise PlanError(f"values of {bad} must be 1 or more", where="labels.items", hint="0 is background")
        if self.ignore is not None and self.ignore in {0, *self.known()}:
            taken = "also a class" if self.ignore else "background"
            raise PlanError(f"ignore value {self.ignore} is {taken}", where="labels.ignore", hint="use another")

    def are_regions(self) -> bool:
        """Whether classes may overlap, so that each has its own sigmoid."""
        return any(len(item.values) > 1 for item in self.items)

    def mean_the_same(self, other: "Labels") -> bool:
        """Whether networks for one serve the other: values that are written may differ."""
        one, two = ([(item.name, item.values) for item in labels.items] for labels in (self, other))
        return one == two and self.ignore == other.ignore

    def outputs(self) -> int:
        """Number of network channels: one per region, or background plus one per class; 0 without classes."""
        return len(self.items) + (0 if self.are_regions() or not self.items else 1)

    def known(self) -> frozenset[int]:
        """Every foreground value a label map may hold, without the ignore value."""
        return frozenset(value for item in self.items for value in item.values)

    def names(self) -> tuple[str, ...]:
        """Class names in channel order."""
        return tuple(item.name for item in self.items)
