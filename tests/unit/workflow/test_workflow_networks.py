import inspect
import json

import pytest

from medseg import list_networks
from medseg.cli.app import main
from medseg.errors import PlanError
from medseg.losses.build import LOSSES, WHOLE_LOSSES
from medseg.networks.blocks.activations import ACTS
from medseg.networks.blocks.attention import ATTENTION
from medseg.networks.blocks.norms import NORMS
from medseg.networks.build import BACKBONES, HEADS
from medseg.networks.critics import CRITICS
from medseg.networks.encoders import ENCODERS
from medseg.workflow.networks import format_networks

TABLES = {
    "network.use": BACKBONES,
    "network.heads": HEADS,
    "training.losses": {**LOSSES, **WHOLE_LOSSES},
    "training.adversary": CRITICS,
    "network.options.attention": ATTENTION,
    "network.options.norm": NORMS,
    "network.options.act": ACTS,
    "network.options.encoder": ENCODERS,
}
PARTS = list_networks()
WITHOUT_PAPER = {"none", "sigmoid", "tanh", "plain", "cross_entropy", "heatmap", "grouped_residual"}  # common knowledge


def test_it_lists_the_tables_and_nothing_else():
    listed = {place: {part.name for part in PARTS if part.place == place} for place in {part.place for part in PARTS}}
    assert listed == {place: set(table) for place, table in TABLES.items()}
    assert len(PARTS) == sum(len(table) for table in TABLES.values())


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.place}-{part.name}")
def test_every_part_says_what_it_is_and_where_it_comes_from(part):
    assert len(part.says) > 5 and part.says.endswith(".") and "\n" not in part.says
    assert part.paper or part.name in WITHOUT_PAPER, "name the paper in the docstring as (Author year)"
    assert set(part.dimensions) <= {2, 3} and part.dimensions


def test_options_are_those_of_the_function():
    (unet,) = (part for part in PARTS if part.name == "unet")
    signature = inspect.signature(BACKBONES["unet"])
    known = {name: p.default for name, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}
    del known["in_channels"]
    assert {option.name: option.default for option in unet.options} == known
    choices = {option.name: option.choices for option in unet.options}
    assert set(choices["norm"]) == set(NORMS) and set(choices["act"]) == set(ACTS)
    assert set(choices["attention"]) == {"none", *ATTENTION} and set(choices["encoder"]) == set(ENCODERS)
    (cldice,) = (part for part in PARTS if part.name == "cldice")
    assert {"classes"} <= {option.name for option in cldice.options}
    assert not any(o.name == "classes" for part in PARTS if part.place == "training.adversary" for o in part.options)
    (dsnt,) = (part for part in PARTS if part.name == "dsnt" and part.kind == "head")
    assert [option.name for option in dsnt.options if option.required] == ["points"]


def test_kinds_can_be_told_apart_and_unknown_ones_are_refused():
    assert {part.kind for part in PARTS} == {"backbone", "block", "head", "loss"}
    assert list_networks("head") == tuple(part for part in PARTS if part.kind == "head")
    with pytest.raises(PlanError, match="backbone, block, head, loss"):
        list_networks("optimiser")


def test_the_command_prints_text_and_json(capsys):
    assert main(["networks", "--kind", "head"]) == 0
    text = capsys.readouterr().out
    assert text.rstrip() == format_networks(list_networks("head"))
    assert "segmentation, 2D/3D: " in text and "points = must be given" in text
    assert main(["networks", "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in read] == [part.name for part in PARTS]
    assert set(read[0]) == {"name", "kind", "place", "paper", "dimensions", "options", "says"}
    assert main(["networks", "--kind", "nothing"]) == 2


def test_options_of_blocks_stand_with_the_block():
    from medseg.networks.blocks.options import BlockOptions

    blocks = [part for part in PARTS if part.kind == "block"]
    listed = {option.name: option.default for part in blocks for option in part.options}
    assert set(listed) == set(BlockOptions.__annotations__)
    assert listed["aspp_rates"] == [6, 12, 18] and listed["mobilenet_expand"] == 6
    assert [option.name for part in blocks if part.name == "dense" for option in part.options] == [
        "dense_growth",
        "dense_theta",
    ]
