"""Bundles: whole, verified, and free of code."""

import hashlib
import json
import math
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from medseg.errors import BundleError
from medseg.io.bundles import bundle_sha256, load_bundle, remove_leftovers, remove_parts, save_bundle
from medseg.types.labels import Label, Labels
from medseg.types.plan import (
    Budget,
    Inference,
    LossTerm,
    Network,
    Origin,
    Plan,
    Preprocess,
    Sampling,
    Step,
    Topology,
    Training,
)

TOPOLOGY = Topology(3, (4, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)), (1, 1))
PLAN = Plan(
    "medseg.plan/1",
    "tiny",
    ("MR",),
    Labels((Label("a", (1,)),)),
    Preprocess((1.0, 1.0, 1.0), (Step("z_score"),)),
    Network("unet", TOPOLOGY),
    Sampling((8, 8, 8), 2),
    Training((LossTerm(1.0, "dice_ce"),), Step("sgd"), Step("poly"), (), 1),
    Inference(),
    (),
    Origin("0.1.0", "0" * 64, Budget(4.0), "unet"),
    {},
)


def _weights(folder: Path, value: float = 1.0) -> Path:
    path = folder / f"weights {value}.safetensors"
    save_file({"w": np.full(3, value, np.float32)}, path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_bundle(tmp_path / "bündel a", PLAN, {0: _weights(tmp_path), 1: _weights(tmp_path, 2.0)}, {"dice": math.nan})
    return tmp_path / "bündel a"


def _rewrite(root: Path, change) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    change(manifest)
    (root / "manifest.json").write_text(json.dumps(manifest))


def test_a_bundle_reads_back_equal_after_being_copied(root, tmp_path):
    there = tmp_path / "elsewhere"
    shutil.copytree(root, there)
    bundle = load_bundle(there)
    assert bundle.plan == PLAN and bundle.scores == {"dice": None}
    assert [(m.fold, m.weights) for m in bundle.members] == [
        (0, "members/fold_0.safetensors"),
        (1, "members/fold_1.safetensors"),
    ]
    assert bundle_sha256(bundle) == hashlib.sha256((root / "manifest.json").read_bytes()).hexdigest()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_leftovers_of_a_killed_process_are_removed(root, tmp_path):
    for name in (".part-abc", ".old-abc"):
        (tmp_path / name / "members").mkdir(parents=True)
    (tmp_path / ".part-of-a-file").write_text("kept")
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.glob(".*")} == {".part-of-a-file"}
    assert load_bundle(root).plan == PLAN


def test_parts_of_files_are_removed_all_or_by_name(tmp_path):
    parts = [".part-abcdefgh-scores.json", ".part-a_b-c1d2-more scores.json", ".part-abcdefgh-weights.safetensors"]
    for name in (*parts, "scores.json", "part-scores.json"):
        (tmp_path / name).write_text("half")
    (tmp_path / ".part-folder-scores.json").mkdir()
    remove_parts(tmp_path, "weights.safetensors")
    assert sorted(path.name for path in tmp_path.glob(".part-*") if path.is_file()) == sorted(parts[:2])
    remove_parts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"scores.json", "part-scores.json", ".part-folder-scores.json"}
    remove_parts(tmp_path / "absent")


def test_saving_again_replaces_the_old_bundle_and_nothing_else(root, tmp_path):
    save_bundle(root, PLAN, {"all": _weights(tmp_path, 3.0)}, {})
    assert [m.fold for m in load_bundle(root).members] == ["all"]
    assert not (root / "members" / "fold_0.safetensors").exists()
    other = tmp_path / "documents"
    other.mkdir()
    (other / "letter.txt").write_text("keep")
    with pytest.raises(BundleError, match="holds other files"):
        save_bundle(other, PLAN, {0: _weights(tmp_path)}, {})
    assert (other / "letter.txt").read_text() == "keep"


def test_a_failed_save_leaves_the_old_bundle(root, tmp_path):
    bad = tmp_path / "weights.safetensors"
    bad.write_bytes(pickle.dumps({"w": 1}))
    before = (root / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="no safetensors file"):
        save_bundle(root, PLAN, {0: bad}, {})
    assert (root / "manifest.json").read_bytes() == before and len(load_bundle(root).members) == 2
    assert not list(tmp_path.glob(".part-*"))


@pytest.mark.parametrize("name", ["members/fold_1.safetensors", "plan.json", "scores.json"])
def test_changed_cut_and_missing_files_are_refused(root, name):
    path = root / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"damaged.*copy"):
        load_bundle(root)
    path.write_bytes(bytes(data[:-1]))
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(root)
    path.unlink()
    with pytest.raises(BundleError, match="missing"):
        load_bundle(root)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "members/../../x", "C:\\x", "a\\..\\b"])
def test_paths_that_leave_the_bundle_are_refused(root, name):
    _rewrite(root, lambda m: m["files"].update({name: {"sha256": "0", "bytes": 1}}))
    with pytest.raises(BundleError, match="leaves the bundle"):
        load_bundle(root)


def test_links_are_refused(root, tmp_path):
    weights = root / "members" / "fold_0.safetensors"
    weights.replace(tmp_path / "outside")
    weights.symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="link"):
        load_bundle(root)
    weights.unlink()
    (tmp_path / "outside").replace(weights)
    (root / "members").rename(tmp_path / "folder")
    (root / "members").symlink_to(tmp_path / "folder")
    with pytest.raises(BundleError, match="link"):
        load_bundle(root)


def test_a_member_that_is_no_tensor_file_is_refused(root):
    def rename(manifest):
        manifest["files"]["members/fold_0.pkl"] = manifest["files"].pop("members/fold_0.safetensors")
        manifest["members"][0]["weights"] = "members/fold_0.pkl"

    (root / "members/fold_0.safetensors").rename(root / "members/fold_0.pkl")
    _rewrite(root, rename)
    with pytest.raises(BundleError, match="not tensors only"):
        load_bundle(root)


@pytest.mark.parametrize("change", [{"schema": "medseg.bundle/2"}, {"extra": 1}, {"members": []}])
def test_unknown_manifests_are_refused(root, change):
    _rewrite(root, lambda m: m.update(change))
    with pytest.raises(BundleError, match=r"newer medseg|lists no members"):
        load_bundle(root)


def test_no_bundle_at_all_says_so(tmp_path):
    with pytest.raises(BundleError, match="no model bundle"):
        load_bundle(tmp_path / "nothing")


def test_foreign_code_needs_trust_even_if_the_manifest_hides_it(tmp_path):
    plan = replace(PLAN, postprocess=(Step("my_lab.cleaning:thin"),))
    root = tmp_path / "b"
    bundle = save_bundle(root, plan, {0: _weights(tmp_path)}, {}, code_refs=("my_lab.nets",))
    assert bundle.code_refs == ("my_lab.cleaning", "my_lab.nets")
    _rewrite(root, lambda m: m.update(code_refs=[]))
    for trust in ((), ("my",), ("my_lab.nets",)):
        with pytest.raises(BundleError, match=r"my_lab.cleaning.*trusted"):
            load_bundle(root, trust=trust)
    assert load_bundle(root, trust=("my_lab",)).plan == plan
