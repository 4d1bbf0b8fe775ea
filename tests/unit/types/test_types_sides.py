import pytest

from medseg.types.labels import Label, Labels
from medseg.types.sides import (
    Sides,
    Swap,
    channel_swap,
    index_swaps,
    paired_names,
    side_axis,
    swapped_order,
    value_swaps,
)

FDI = [10 * q + n for q in (1, 2, 3, 4) for n in range(1, 9)] + [10 * q + n for q in (5, 6, 7, 8) for n in range(1, 6)]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left_kidney", "right_kidney"),
        ("kidney_L", "kidney_R"),
        ("kidney, left", "kidney, right"),
        ("TMJ-L", "TMJ-R"),
        ("l_condyle", "r_condyle"),
        ("condyle_left_anterior", "condyle_right_anterior"),
        ("kidneyLeft", "kidneyRight"),
        ("femurL", "femurR"),
        ("LCo", "RCo"),
        ("Left-Hippocampus", "Right-Hippocampus"),
        ("ctx-lh-insula", "ctx-rh-insula"),
        ("rib_left_1", "rib_right_1"),
        ("Lt ovary", "Rt ovary"),
        ("左侧髁突", "右侧髁突"),
        ("left", "right"),
        ("L_1", "R_1"),
        ("Cond_L_med", "Cond_R_med"),
        ("molar_L6", "molar_R6"),
        ("COL", "COR"),
        ("UL6_MB", "UR6_MB"),
        ("26_mb", "16_mb"),
        ("36-crown", "46-crown"),
        ("UL6", "UR6"),
        ("LL3", "LR3"),
        ("tooth_36", "tooth_46"),
        ("tooth_21_tip", "tooth_11_tip"),
        ("upper left tooth 26", "upper right tooth 16"),
        ("FDI 65 crown", "FDI 55 crown"),
        ("upper_left_canine_fdi23", "upper_right_canine_fdi13"),
        ("upper_left_canine_pulp_fdi123", "upper_right_canine_pulp_fdi113"),
        ("Upper Left Third Molar (Wisdom Tooth)", "Upper Right Third Molar (Wisdom Tooth)"),
    ],
)
def test_names_that_differ_by_their_side_are_a_pair_in_any_order(left, right):
    expected = Sides(((left, right),))
    assert paired_names((left, "mandible", right)) == expected
    assert paired_names((right, left, "nasion")) == expected


@pytest.mark.parametrize("word", ["{}", "tooth_{}", "Tooth{}"])
def test_every_tooth_of_fdi_has_its_mirror_image_as_partner(word):
    names = [word.format(number) for number in FDI]
    partner = {1: 2, 2: 1, 3: 4, 4: 3, 5: 6, 6: 5, 7: 8, 8: 7}
    sides = paired_names(names)
    assert not sides.unpaired
    both = dict(sides.pairs) | {right: left for left, right in sides.pairs}
    assert both == {word.format(n): word.format(10 * partner[n // 10] + n % 10) for n in FDI}
    assert all(int(left.lower().removeprefix("tooth").strip("_")) // 10 in (2, 3, 6, 7) for left, _ in sides.pairs)


@pytest.mark.parametrize(
    "names",
    [
        ("upright", "bright", "cleft", "brightness"),
        ("L1", "L2", "L3", "R"),  # vertebrae
        ("L_1", "L_2"),
        ("T11", "T12"),
        ("1", "2", "3", "11", "21"),  # values, no teeth: 1 is no number of FDI
        ("left_to_right_shunt",),
        ("upper", "lower", "anterior", "posterior"),
        (),
    ],
)
def test_names_without_a_side_stay_as_they_are(names):
    assert paired_names(names) == Sides()


@pytest.mark.parametrize(
    ("names", "unpaired"),
    [
        (("lung_left", "lung_middle_lobe_right", "liver"), ("lung_left", "lung_middle_lobe_right")),
        (("left_kidney", "kidney_left", "right_kidney"), ("left_kidney", "kidney_left", "right_kidney")),
        (("tooth_36", "tooth_37", "tooth_46"), ("tooth_37",)),
        (("tooth_1", "tooth_16", "tongue"), ("tooth_1", "tooth_16")),  # universal numbering: sides are not known
        (("kidney_R",), ("kidney_R",)),
    ],
)
def test_a_side_without_a_partner_is_named(names, unpaired):
    assert paired_names(names).unpaired == unpaired


@pytest.mark.parametrize(
    ("orientation", "axis"), [("LPS", 2), ("RAS", 2), ("PSL", 0), ("LSP", 2), ("PLS", 1), ("stored", None)]
)
def test_the_axis_between_the_sides_is_that_of_the_letter(orientation, axis):
    assert side_axis(orientation) == axis


def labels(**values):
    return Labels(tuple(Label(name, value) for name, value in values.items()))


def mirrored(masks, swaps):
    """Every value replaced by its partner."""
    table = {a: b for one, two in zip(swaps[::2], swaps[1::2], strict=True) for a, b in ((one, two), (two, one))}
    return {name: {table.get(value, value) for value in values} for name, values in masks.items()}


@pytest.mark.parametrize(
    ("known", "pairs"),
    [
        (labels(mid=(1,), a_l=(2,), a_r=(7,), b_r=(3,), b_l=(4,)), [("a_l", "a_r"), ("b_l", "b_r")]),
        (labels(l=(1, 2, 9), r=(3, 4, 5), core_l=(2,), core_r=(5,)), [("l", "r"), ("core_l", "core_r")]),
        (labels(head=(1, 2, 3), l=(1,), r=(2,)), [("l", "r")]),
    ],
)
def test_exchanged_values_turn_every_class_into_its_partner(known, pairs):
    before = {item.name: set(item.values) for item in known.items}
    partner = dict(pairs) | {right: left for left, right in pairs}
    swaps = value_swaps(known, pairs)
    assert len(set(swaps)) == len(swaps)
    assert mirrored(before, swaps) == {name: before[partner.get(name, name)] for name in before}


def test_regions_of_unequal_parts_cannot_be_exchanged():
    assert value_swaps(labels(l=(1, 3), r=(2,)), [("l", "r")]) is None
    assert value_swaps(labels(l=(1,), r=(2,)), []) == ()


def test_places_of_partners():
    names, pairs = ("nasion", "a_l", "b_r", "a_r", "b_l"), [("a_l", "a_r"), ("b_l", "b_r"), ("not", "there")]
    assert index_swaps(names, pairs) == (1, 3, 4, 2)
    assert swapped_order(names, pairs) == (0, 3, 4, 1, 2)


def test_channels_of_classes_follow_background_and_regions_do_not():
    classes = labels(mid=(1,), k_l=(2,), k_r=(3,))
    assert channel_swap(classes, 2, [("k_l", "k_r")]) == Swap(2, (0, 1, 3, 2))
    assert channel_swap(labels(both=(1, 2), k_l=(1,), k_r=(2,)), 0, [("k_l", "k_r")]) == Swap(0, (0, 2, 1))
    assert channel_swap(classes, None, [("k_l", "k_r")]) is None
    assert channel_swap(classes, 2, []) is None
