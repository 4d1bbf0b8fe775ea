import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import PlanError
from medseg.io.records import format_record, parse_record, read_record, record_schema, record_sha256, write_record
from medseg.types.geometry import Geometry
from medseg.types.labels import Code, Label, Labels
from medseg.types.plan import Step, Topology


@dataclass(frozen=True)
class Part:
    size: int
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Whole:
    name: str
    parts: tuple[Part, ...]
    ratio: float = 0.5
    notes: dict[str, str] = field(default_factory=dict)


def test_round_trip_through_a_file(tmp_path):
    whole = Whole("Kiefer", (Part(1), Part(2, "b")), 0.1 + 0.2, {"a": "ä"})
    path = tmp_path / "ein Plan ü.json"
    write_record(whole, path)
    assert read_record(path, Whole) == whole


LABELS = st.lists(st.integers(1, 300), min_size=1, max_size=5, unique=True).map(
    lambda values: Labels(tuple(Label(f"class {v}", (v,), Code("SCT", str(v), "ä")) for v in values))
)


@settings(max_examples=25, deadline=None)
@given(LABELS)
def test_labels_round_trip(labels):
    text = format_record(labels)
    assert parse_record(text, Labels, where="x") == labels
    assert record_sha256(parse_record(json.dumps(json.loads(text), indent=7), Labels, where="x")) == record_sha256(
        labels
    )


@settings(max_examples=25, deadline=None)
@given(st.floats(allow_nan=False))
def test_floats_read_back_equal(value):
    assert parse_record(format_record(Whole("x", (), value)), Whole, where="x").ratio == value


def test_nan_survives():
    assert math.isnan(parse_record(format_record(Whole("x", (), math.nan)), Whole, where="x").ratio)


@pytest.mark.parametrize(
    ("text", "field_name"),
    [
        ('{"name": "x", "parts": [{"size": "1"}]}', "parts.0.size"),
        ('{"name": "x", "parts": [{"size": 1.5}]}', "parts.0.size"),
        ('{"name": "x", "parts": [{"size": true}]}', "parts.0.size"),
        ('{"name": "x", "parts": [{"size": 1}, {"size": 1, "kind": "c"}]}', "parts.1.kind"),
        ('{"name": "x", "parts": [{"size": 1, "sise": 2}]}', "parts.0.sise"),
        ('{"parts": []}', "name"),
        ('{"name": null, "parts": []}', "name"),
    ],
)
def test_errors_name_file_and_field(tmp_path, text, field_name):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(PlanError) as caught:
        read_record(path, Whole)
    assert caught.value.where == f"{path}: {field_name}"
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\x00", "[" * 100_000])
def test_what_is_no_record_is_refused_with_the_file(text):
    with pytest.raises(PlanError, match=r"^plan\.json"):
        parse_record(text, Whole, where="plan.json")


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(PlanError, match=r"missing\.json: cannot read"):
        read_record(tmp_path / "missing.json", Whole)
    (tmp_path / "latin.json").write_bytes(b'{"name": "\xe4"}')
    with pytest.raises(PlanError, match=r"latin\.json: cannot read"):
        read_record(tmp_path / "latin.json", Whole)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    (tmp_path / "bom.json").write_bytes(b'\xef\xbb\xbf{"name": "x", "parts": []}')
    assert read_record(tmp_path / "bom.json", Whole) == Whole("x", ())


def test_rules_of_the_record_itself_are_reported_with_its_field():
    text = format_record(Topology(3, (8, 16), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3),) * 2, (1, 1)))
    with pytest.raises(PlanError, match=r"p\.json.*one entry per stage"):
        parse_record(text.replace('"channels": [8, 16]', '"channels": [8]'), Topology, where="p.json")


def test_short_lists_stay_on_one_line_and_fields_in_order():
    text = format_record(Whole("x", tuple(Part(i) for i in range(9))))
    assert text.endswith("}\n")
    assert '    {"size": 3, "kind": "a"},\n' in text
    assert text.index('"name"') < text.index('"parts"') < text.index('"ratio"')
    assert format_record(Geometry((1, 2, 3), (1.0, 2.0, 3.0))).count("\n") < 15


def test_paths_are_written_with_forward_slashes():
    assert json.loads(format_record({"file": Path("a") / "b"})) == {"file": "a/b"}


def test_hash_sees_content_only():
    assert record_sha256(Step("x", {"a": 1, "b": 2})) == record_sha256(Step("x", {"b": 2, "a": 1}))
    assert record_sha256(Step("x", {"a": 1})) != record_sha256(Step("x", {"a": 2}))


def test_schema_forbids_unknown_fields():
    schema = record_schema(Whole)
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {"name", "parts", "ratio", "notes"}
