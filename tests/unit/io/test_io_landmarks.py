import json
from dataclasses import replace

import numpy as np
import pytest

from medseg.errors import DatasetError, ImageError
from medseg.io.landmarks import read_landmarks, write_landmarks
from medseg.types.landmarks import Landmarks

NAN = [np.nan] * 3
POINTS = Landmarks(
    ("condylion, left", "Nasion ü", "gnathion"),
    np.array([[1.25, -2.5, 30.0], NAN, [-0.123456, 99.0, -101.5]]),
    np.array([0.9, np.nan, 0.25]),
)


@pytest.mark.parametrize("name", ["a.mrk.json", "a.csv"])
def test_a_round_trip_keeps_places_names_and_confidence(tmp_path, name):
    write_landmarks(POINTS, tmp_path / name)
    back = read_landmarks(tmp_path / name)
    assert back.names == POINTS.names and back.warnings == ()
    np.testing.assert_allclose(back.points_mm, POINTS.points_mm, atol=1e-6)
    np.testing.assert_allclose(back.confidence, POINTS.confidence)
    assert set(back.placed()) == {"condylion, left", "gnathion"}


def test_fcsv_keeps_places_and_refuses_undefined_ones(tmp_path):
    placed = Landmarks(POINTS.names[::2], POINTS.points_mm[::2])
    write_landmarks(placed, tmp_path / "a.fcsv")
    back = read_landmarks(tmp_path / "a.fcsv")
    assert back.names == placed.names and back.confidence is None and back.warnings == ()
    np.testing.assert_allclose(back.points_mm, placed.points_mm, atol=1e-6)
    with pytest.raises(ImageError, match="without a place"):
        write_landmarks(POINTS, tmp_path / "b.fcsv")


def markups(path, **changes):
    point = {"id": "1", "label": "F-1", "position": [10.0, 20.0, 30.0]}
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": [point | changes.pop("point", {})]}
    markup |= changes
    path.write_text(json.dumps({"markups": [{k: v for k, v in markup.items() if v is not None}]}), "utf-8")
    return read_landmarks(path)


def test_what_3d_slicer_writes(tmp_path):
    path = tmp_path / "a.mrk.json"
    assert markups(path).placed() == {"F-1": (10.0, 20.0, 30.0)}
    assert markups(path, coordinateSystem="RAS").placed() == {"F-1": (-10.0, -20.0, 30.0)}
    assert markups(path, coordinateSystem="0").placed() == {"F-1": (-10.0, -20.0, 30.0)}
    unnamed = markups(path, coordinateSystem=None)
    assert unnamed.placed() == {"F-1": (10.0, 20.0, 30.0)} and "LPS is assumed" in unnamed.warnings[0]
    assert markups(path, coordinateUnits=["mm", "UCUM", "millimeter"]).placed()
    for undefined in ({"positionStatus": "undefined"}, {"positionStatus": "preview"}, {"position": None}):
        found = markups(path, point=undefined)
        assert found.names == ("F-1",) and not found.placed()
    assert markups(path, type="Line", coordinateSystem="LPS").names == ()
    assert "no point lists" in read_landmarks(path).warnings[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"coordinateSystem": "IJK"}, "coordinate system is 'IJK'"),
        ({"coordinateUnits": "um"}, "coordinates are in 'um'"),
        ({"point": {"position": [1, 2]}}, "no three coordinates"),
        ({"point": {"position": [1, 2, float("nan")]}}, "place that is no number"),
        ({"controlPoints": [{"label": "a", "position": [0, 0, 0]}] * 2}, "used twice: a"),
        ({"controlPoints": None}, "KeyError"),
    ],
)
def test_markups_that_cannot_be_trusted(tmp_path, changes, reason):
    with pytest.raises(ImageError, match=reason):
        markups(tmp_path / "a.mrk.json", **changes)


def test_fcsv_of_every_age(tmp_path):
    rows = "vtk_1,10,20,30,0,0,0,1,1,1,0,F-1,,\n\n"
    for system, place in (("LPS", (10, 20, 30)), ("1", (10, 20, 30)), ("RAS", (-10, -20, 30)), ("0", (-10, -20, 30))):
        head = f"# Markups fiducial file version = 4.13\n# CoordinateSystem = {system}\n"
        (tmp_path / "a.fcsv").write_text(head + "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc\n" + rows)
        assert read_landmarks(tmp_path / "a.fcsv").placed() == {"F-1": place}
    (tmp_path / "a.fcsv").write_text(rows)
    old = read_landmarks(tmp_path / "a.fcsv")
    assert old.placed() == {"F-1": (-10, -20, 30)} and "RAS is assumed" in old.warnings[0]
    (tmp_path / "a.fcsv").write_text("vtk_1,10,20\n")
    with pytest.raises(ImageError):
        read_landmarks(tmp_path / "a.fcsv")


def test_csv_in_the_plane_and_broken_ones(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("name, x_mm, y_mm\nsella,87.7,109.4\nporion,,\n")
    flat = read_landmarks(path)
    assert flat.placed() == {"sella": (87.7, 109.4, 0.0)} and flat.names == ("sella", "porion")
    for text in ("image,x,y\n1,2,3\n", "name,x_mm,y_mm,z_mm\na,1,,3\n", "name,x_mm,y_mm,z_mm\na,1,2\n", ""):
        path.write_text(text)
        with pytest.raises(ImageError):
            read_landmarks(path)
    path.write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ImageError):
        read_landmarks(path)


def test_files_of_no_kind(tmp_path):
    (tmp_path / "a.mrk.json").write_text("[" * 100_000)
    for name in ("a.mrk.json", "absent.csv", "a.txt"):
        with pytest.raises(ImageError):
            read_landmarks(tmp_path / name)
    with pytest.raises(ImageError, match=r"use \.mrk\.json"):
        write_landmarks(POINTS, tmp_path / "a.json")


def test_landmarks_are_consistent():
    for names, points, confidence in (
        (("a", "a"), np.zeros((2, 3)), None),
        ((" ",), np.zeros((1, 3)), None),
        (("a", "b"), np.zeros((1, 3)), None),
        (("a",), np.array([[0, np.nan, 0]]), None),
        (("a",), np.array([[0, np.inf, 0]]), None),
    ):
        with pytest.raises(DatasetError):
            Landmarks(names, points, confidence)


@pytest.mark.parametrize("name", ["a.csv", "a.mrk.json", "a.fcsv"])
def test_blanks_around_names_do_not_count(tmp_path, name):
    write_landmarks(Landmarks((" tip ", "the end"), np.zeros((2, 3)) + [[1.0], [2.0]]), tmp_path / name)
    assert read_landmarks(tmp_path / name).names == ("tip", "the end")


def test_words_after_a_confidence_are_no_part_of_it(tmp_path):
    write_landmarks(Landmarks(("tip",), np.zeros((1, 3)), np.array([0.9])), tmp_path / "a.mrk.json")
    text = (tmp_path / "a.mrk.json").read_text("utf-8")
    (tmp_path / "a.mrk.json").write_text(text.replace("confidence 0.9", "confidence 0.9. Seen twice"), "utf-8")
    assert read_landmarks(tmp_path / "a.mrk.json").confidence.tolist() == [0.9]


def test_fcsv_cannot_say_that_points_are_in_pixels(tmp_path):
    with pytest.raises(ImageError, match="cannot say that points are in pixels"):
        write_landmarks(Landmarks(("tip",), np.zeros((1, 3)), unit="px"), tmp_path / "a.fcsv")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.csv", "a.mrk.json"])
def test_pixels_are_not_called_mm(tmp_path, name):
    points = Landmarks(("tip", "lost"), np.array([[3.5, 4.0, 0.0], [np.nan] * 3]), unit="px")
    write_landmarks(points, tmp_path / name)
    text = (tmp_path / name).read_text("utf-8")
    assert ("px" in text) and "_mm" not in text and '"mm"' not in text
    read = read_landmarks(tmp_path / name)
    assert read.unit == "px" and read.placed() == points.placed()
    write_landmarks(replace(points, unit="mm"), tmp_path / name)
    assert read_landmarks(tmp_path / name).unit == "mm"
