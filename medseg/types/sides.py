"""Left and right in names: what changes places when a scan is mirrored between the sides of the patient."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from medseg.types.labels import Labels

Pair = tuple[str, str]
_WORDS = {
    **dict.fromkeys(("left", "lt", "lh", "sinister", "sinistra", "links"), "left"),
    **dict.fromkeys(("right", "rt", "rh", "dexter", "dextra", "rechts"), "right"),
}
_LETTERS = {"l": "left", "r": "right"}
_OTHER = {"left": "right", "right": "left"}
_TEETH = frozenset({"tooth", "teeth", "fdi", "dens", "dent", "zahn"})
_OF_TEETH = frozenset({"crown", "root", "implant"})
_PALMER = re.compile(r"([UL])([LR])([1-8A-E])(?:[_\- ]?([a-zA-Z]+))?")
_FDI = frozenset(
    [*(10 * q + n for q in range(1, 5) for n in range(1, 9)), *(10 * q + n for q in range(5, 9) for n in range(1, 6))]
)
_ACROSS = {1: 2, 2: 1, 3: 4, 4: 3, 5: 6, 6: 5, 7: 8, 8: 7}  # quadrant to the one on the other side
_RIGHT_QUADRANTS = frozenset({1, 4, 5, 8})


@dataclass(frozen=True)
class Sides:
    """Names that belong to the two sides: `pairs` (left, right) in the order of the names, and those left alone.

    A name in `unpaired` says a side, but no other name is its partner: mirroring would turn it into what has no name.
    """

    pairs: tuple[Pair, ...] = ()
    unpaired: tuple[str, ...] = ()


@dataclass(frozen=True)
class Swap:
    """What flipping `axis` (of z, y, x) does to channels: channel k of the result is channel `order[k]`."""

    axis: int
    order: tuple[int, ...]


def paired_names(names: Sequence[str]) -> Sides:
    """The names that differ by their side only: left and right, L and R, or the number of a tooth (FDI, Palmer).

    Sides are whole words ("left_kidney", "kidneyRight", "Left-Hippocampus", "ctx-lh-insula"); L and R count as the
    first or last word ("TMJ-R", "l_condyle", "RCo"), and elsewhere ("Cond_L_med", "COL") where the name with the other
    letter is there. FDI numbers (11 and 21, 36 and 46, 55 and 65, 75 and 85) count after a word like tooth, or alone,
    unless another such number of `names` is none of FDI, and as first word ("16_mb") where the number across is there;
    100 more is their pulp.

    >>> paired_names(("left_kidney", "right_kidney", "liver", "tooth_36", "tooth_46", "rib_L"))
    Sides(pairs=(('left_kidney', 'right_kidney'), ('tooth_36', 'tooth_46')), unpaired=('rib_L',))
    """
    words = _with_letters_apart({name: _words(name) for name in names})
    teeth, unknown = _teeth(words)
    inner = _inner_letters(words)
    found: dict[tuple[str, str], list[str]] = {}
    for name in names:
        side, key = _side_of(name, words[name], teeth.get(name), inner.get(name))
        if side:
            found.setdefault((side, key), []).append(name)
    alone = dict.fromkeys(unknown)
    pairs: list[Pair] = []
    for (side, key), group in found.items():
        partners = found.get((_OTHER[side], key), [])
        if len(group) == 1 and len(partners) == 1:
            pairs += [(group[0], partners[0])] if side == "left" else []
        else:
            alone |= dict.fromkeys(name for name in group if not _vague(words[name]))
    order = {name: number for number, name in enumerate(names)}
    return Sides(
        tuple(sorted(pairs, key=lambda pair: min(order[name] for name in pair))),
        tuple(sorted(alone, key=order.__getitem__)),
    )


def side_axis(orientation: str) -> int | None:
    """The array axis (z, y, x = 0, 1, 2) between left and right of a grid whose axes x, y, z run along `orientation`.

    None where the orientation is not that of a patient ("stored").

    >>> side_axis("LPS"), side_axis("PSL"), side_axis("stored")
    (2, 0, None)
    """
    letters = [letter in "LR" for letter in orientation]
    return 2 - letters.index(True) if len(letters) == 3 and any(letters) else None


def value_swaps(labels: Labels, pairs: Iterable[Pair]) -> tuple[int, ...] | None:
    """The label values that change places with the classes of `pairs`, two by two, flat: (1, 2, 5, 6).

    Values are told apart by the set of classes (regions) that hold them. None where no such exchange exists, as with
    two regions of one pair that merge different numbers of values.

    >>> from medseg.types.labels import Label
    >>> value_swaps(Labels((Label("a_l", (1, 3)), Label("a_r", (2, 4)), Label("core_l", (3,)), Label("core_r", (4,)))),
    ...             [("a_l", "a_r"), ("core_l", "core_r")])
    (1, 2, 3, 4)
    """
    other = _both_ways(pairs)
    homes: dict[frozenset[str], list[int]] = {}
    for value in sorted(labels.known()):
        homes.setdefault(frozenset(item.name for item in labels.items if value in item.values), []).append(value)
    swaps: list[int] = []
    for home, values in homes.items():
        there = frozenset(other.get(name, name) for name in home)
        if len(homes.get(there, ())) != len(values):
            return None
        swaps += [
            v for pair in zip(values, homes[there], strict=True) if pair[0] < pair[1] and home != there for v in pair
        ]
    return tuple(swaps)


def index_swaps(names: Sequence[str], pairs: Iterable[Pair]) -> tuple[int, ...]:
    """The places in `names` that change places with `pairs`, two by two, flat.

    >>> index_swaps(("nasion", "condyle_l", "condyle_r"), [("condyle_l", "condyle_r")])
    (1, 2)
    """
    return tuple(names.index(name) for pair in pairs for name in pair if set(pair) <= set(names))


def swapped_order(names: Sequence[str], pairs: Iterable[Pair]) -> tuple[int, ...]:
    """For every name the place of its partner, or its own.

    >>> swapped_order(("nasion", "condyle_l", "condyle_r"), [("condyle_l", "condyle_r")])
    (0, 2, 1)
    """
    other = _both_ways(pairs)
    return tuple(names.index(other.get(name, name)) for name in names)


def channel_swap(labels: Labels, axis: int | None, pairs: Iterable[Pair]) -> Swap | None:
    """What flipping `axis` does to a network's logits, whose first channel is background unless they are regions."""
    order = swapped_order(labels.names(), pairs)
    if axis is None or order == tuple(range(len(order))):
        return None
    return Swap(axis, order if labels.are_regions() else (0, *(1 + place for place in order)))


def _both_ways(pairs: Iterable[Pair]) -> Mapping[str, str]:
    both = list(pairs)
    return {**dict(both), **{right: left for left, right in both}}


def _words(name: str) -> list[str]:
    """Words and numbers as written; case separates words too."""
    for sign, word in (("左", " left "), ("右", " right ")):
        name = name.replace(sign, word)
    if _PALMER.fullmatch(name):
        return [name]
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+", name)


def _teeth(words: Mapping[str, Sequence[str]]) -> tuple[dict[str, int], list[str]]:
    """Which word of a name is the FDI number of a tooth, and the names of teeth that are numbered otherwise.

    A number counts after a word for teeth; alone or after a part of a tooth only if all such numbers are FDI's; first
    of several words if the name with the number across is there.
    """
    sure: dict[str, int] = {}
    maybe: dict[str, int] = {}
    for name, parts in words.items():
        for place, word in enumerate(parts):
            before = parts[place - 1].lower() if place else ""
            if word.isdecimal() and before in _TEETH:
                sure[name] = place
            elif word.isdecimal() and (before in _OF_TEETH or len(parts) == 1):
                maybe[name] = place
            elif not place and word.isdecimal() and _is_fdi(int(word)):
                across = int(word) + 10 * (_ACROSS[int(word) % 100 // 10] - int(word) % 100 // 10)
                if any([str(across), *parts[1:]] == list(other) for other in words.values()):
                    sure[name] = place
    good = [all(_is_fdi(int(words[name][place])) for name, place in some.items()) for some in (sure, maybe)]
    return {**(maybe if good[1] else {}), **(sure if good[0] else {})}, [] if good[0] else list(sure)


def _is_fdi(number: int) -> bool:
    return number in _FDI or number - 100 in _FDI


def _with_letters_apart(words: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Words, those of capitals that end in L or R in two ("CO", "L") where there is one with the other letter."""
    known, found = {tuple(parts) for parts in words.values()}, dict(words)
    for name, parts in words.items():
        for place, word in enumerate(parts):
            if not re.fullmatch("[A-Z]{1,4}[LR]", word) or _PALMER.fullmatch(name):
                continue
            other = word[:-1] + ("R" if word[-1] == "L" else "L")
            if (*parts[:place], other, *parts[place + 1 :]) in known:
                found[name] = [*parts[:place], word[:-1], word[-1], *parts[place + 1 :]]
    return found


def _inner_letters(words: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Which word of a name is its only L or R, within it, where the name with the other letter is there."""
    lower = {name: tuple(word.lower() for word in parts) for name, parts in words.items()}
    known, found = set(lower.values()), {}
    for name, parts in lower.items():
        places = [place for place, word in enumerate(parts) if word in _LETTERS]
        if len(places) == 1 and 0 < places[0] < len(parts) - 1:
            other = "r" if parts[places[0]] == "l" else "l"
            if (*parts[: places[0]], other, *parts[places[0] + 1 :]) in known:
                found[name] = places[0]
    return found


def _side_of(name: str, words: Sequence[str], tooth: int | None, inner: int | None) -> tuple[str, str]:
    """The side a name says ("left", "right", or "" for none) and the rest of it."""
    palmer = _PALMER.fullmatch(name)
    if palmer:
        return _LETTERS[palmer[2].lower()], f"palmer {palmer[1]}{palmer[3]}{palmer[4] or ''}"
    lower = [word.lower() for word in words]
    said = {place: _WORDS[word] for place, word in enumerate(lower) if word in _WORDS}
    for place in {0, len(lower) - 1, inner or 0} if not said and lower else ():
        if lower[place] in _LETTERS:
            said[place] = _LETTERS[lower[place]]
    if tooth is not None:
        part, (quadrant, number) = int(lower[tooth]) // 100, divmod(int(lower[tooth]) % 100, 10)
        lower[tooth] = f"{part} {min(quadrant, _ACROSS[quadrant])}{number}"
        said = said or {-1: "right" if quadrant in _RIGHT_QUADRANTS else "left"}
    if len(set(said.values())) != 1:
        return "", ""
    return next(iter(said.values())), " ".join(word for place, word in enumerate(lower) if place not in said)


def _vague(words: Sequence[str]) -> bool:
    """Whether a single L or R stands alone or beside numbers only, as in names of vertebrae: no side by itself."""
    return all(word.isdecimal() or word.lower() in _LETTERS for word in words) and not words[0].isdecimal()
