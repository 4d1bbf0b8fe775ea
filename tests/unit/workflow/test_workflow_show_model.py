"""Bundles of any origin: shown after verification, or refused; nothing in them is run."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace

import pytest
from toy_bundles import PLAN, WEIGHTS, make_bundle, spoil

from medseg.cli import main
from medseg.errors import BundleError
from medseg.types.plan import Step
from medseg.workflow.show_model import show_model


class Canary:
    """Unpickled, this makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def root(tmp_path):
    return make_bundle(tmp_path / "run" / "bundle")


def tensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("unit", ["mm", "px"])
def test_landmarks_are_as_far_away_as_their_unit_says(tmp_path, capsys, unit):
    scores = {"landmarks": {"summary": {"unit": unit, "all": {"mean_mm": 2.5}}}}
    root = make_bundle(tmp_path / "run" / "bundle", scores=scores)
    assert main(["model", "show", str(root)]) == 0
    assert f"landmarks 2.50 {unit} away on average" in capsys.readouterr().out


def test_a_bundle_is_summed_up(root, capsys):
    card = show_model(root.parent)
    (member,) = card.members
    assert (member.tensors, member.parameters) == (2, 7)
    assert member.sha256 == hashlib.sha256((root / WEIGHTS).read_bytes()).hexdigest()
    assert card.plan == PLAN and not card.warnings and not card.unlisted
    assert main(["model", "show", str(root)]) == 0
    text = capsys.readouterr().out
    assert "channels: MR" in text and "labels: 1 a" in text and "mean Dice 0.500 on 4 cases" in text
    assert f"sha256 {member.sha256} verified" in text
    assert main(["model", "show", str(root), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["plan"]["name"] == "tiny" and shown["members"][0]["parameters"] == 7


def test_foreign_code_is_listed_and_not_imported(tmp_path, monkeypatch):
    package = tmp_path / "my_lab.py"
    package.write_text(f"import os; os.mkdir({str(tmp_path / 'canary')!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    plain = replace(PLAN, postprocess=(Step("my_lab:thin"),))
    import medseg.io.bundles as bundles

    monkeypatch.setattr(bundles, "load_bundle", lambda root, trust: None)  # saving ends with a trusted load
    card = show_model(make_bundle(tmp_path / "b", plain))
    assert card.code_refs == ("my_lab",) and "if you trust it" in card.warnings[0]
    assert not (tmp_path / "canary").exists() and "my_lab" not in sys.modules


def test_files_beside_the_listed_ones_are_named_and_not_read(root, tmp_path):
    (root / "postprocessing.pkl").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    (root / "passwords").symlink_to("/etc/passwd")
    card = show_model(root)
    assert card.unlisted == ("passwords", "postprocessing.pkl")
    assert any("postprocessing.pkl may hold code" in warning for warning in card.warnings)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", ["zip", "tar", "pickle"])
def test_archives_and_checkpoints_are_refused_unopened(tmp_path, kind, capsys):
    path = tmp_path / "model.zip"
    payload = pickle.dumps(Canary(tmp_path / "canary"))
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../escaped.txt", "out")
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            archive.add(sys.executable, "../escaped")
    else:
        path.write_bytes(payload)
    assert main(["model", "show", str(path)]) == 2
    assert "a bundle is a folder" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.zip"]


DEEP = b"[" * 200_000 + b"]" * 200_000


@pytest.mark.parametrize("name", ["scores.json", "plan.json"])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (DEEP, "too deeply"),
        (b'{"mean_dice": NaN}', "finite"),
        (b'{"mean_dice": 1e999}', "finite"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no JSON that can be used"),
        (b"\xff\xfe", "no JSON"),
        (b"", "no JSON"),
    ],
    ids="deep nan overflow doubled long-number bytes empty".split(),
)
def test_json_that_would_mislead_or_exhaust_is_refused(root, name, data, words):
    spoil(root, name, data)
    with pytest.raises(BundleError, match=words):
        show_model(root)


def test_scores_must_be_named(root):
    spoil(root, "scores.json", b"[1, 2]")
    with pytest.raises(BundleError, match="no scores by name"):
        show_model(root)


def test_oversized_json_is_refused_by_its_size(root):
    with (root / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)  # takes no space on disk
    with pytest.raises(BundleError, match="too large"):
        show_model(root)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        (1 << 62).to_bytes(8, "little") + b"{}",
        pickle.dumps({"w": 1}),
        tensors(b"[]"),
        tensors(b'{"w": ' + DEEP + b"}"),
        tensors({"w": F32}, bytes(7)),
        tensors({"w": F32}, bytes(9)),
        tensors({"w": F32, "v": F32}, bytes(8)),
        tensors({"w": {**F32, "data_offsets": [8, 16]}}, bytes(16)),
        tensors({"w": {**F32, "shape": [3]}}, bytes(8)),
        tensors({"w": {**F32, "shape": [-2]}}, bytes(8)),
        tensors({"w": {**F32, "shape": [1 << 40, 1 << 40, 0]}}, bytes(8)),
        tensors({"w": {**F32, "shape": [2.0]}}, bytes(8)),
        tensors({"w": {**F32, "dtype": "PICKLE"}}, bytes(8)),
        tensors({"w": {**F32, "dtype": ["F32"]}}, bytes(8)),
        tensors({"w": {**F32, "code": "x"}}, bytes(8)),
        tensors({"w": [1]}, bytes(8)),
    ],
    ids="empty short-length long-length pickle list deep cut surplus overlap gap shape negative huge fraction type "
    "types key entry".split(),
)
def test_weights_that_are_no_sound_tensor_file_are_refused(root, data):
    spoil(root, WEIGHTS, data)
    with pytest.raises(BundleError, match=r"safetensors|tensor|nested"):
        show_model(root)


def test_a_header_larger_than_any_model_needs_is_refused(root):
    data = (17 << 20).to_bytes(8, "little") + b" " * (17 << 20)
    spoil(root, WEIGHTS, data)
    with pytest.raises(BundleError, match="no safetensors"):
        show_model(root)


def test_a_named_pipe_does_not_hang(root):
    (root / "scores.json").unlink()
    os.mkfifo(root / "scores.json")
    with pytest.raises(BundleError, match="missing"):
        show_model(root)
    (root / "manifest.json").unlink()
    os.mkfifo(root / "manifest.json")
    with pytest.raises(BundleError, match="no regular file"):
        show_model(root)


def test_names_out_of_a_bundle_do_not_steer_the_terminal(tmp_path, capsys):
    main(["model", "show", str(make_bundle(tmp_path / "b", replace(PLAN, channels=("\x1b[31mred\x07",))))])
    shown = capsys.readouterr().out
    assert "\\x1b[31mred\\x07" in shown and "\x1b" not in shown


def test_showing_needs_no_torch(root):
    code = "import sys; import medseg.cli as c; c.main(['model', 'show', sys.argv[1]]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
