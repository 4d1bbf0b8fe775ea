"""Exported files: run by torch alone in a process without medseg, and by ONNX Runtime where it is installed."""

import json
import subprocess
import sys
import zipfile
from dataclasses import replace

import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from tiny_run import tiny_plan

from medseg.cli import main
from medseg.errors import BundleError, MedsegError
from medseg.io.bundles import save_bundle
from medseg.networks.build import build_network
from medseg.workflow.export import export_model


@pytest.fixture
def bundle(tmp_path):
    """A 2D bundle of two members with batch norms and RepVGG branches that have seen data."""
    plan = tiny_plan(ndim=2)
    plan = replace(plan, network=replace(plan.network, options={"encoder": "repvgg", "norm": "batch", "dropout": 0.5}))
    members = {}
    for fold in (0, 1):
        torch.manual_seed(fold)
        network = build_network(plan.network, channels=1, outputs=plan.labels.outputs())
        network(torch.randn(2, 1, 16, 16))
        members[fold] = tmp_path / f"{fold}.safetensors"
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, members[fold])
    save_bundle(tmp_path / "bundle", plan, members, {})
    return tmp_path / "bundle"


def expected(bundle, folds, image):
    from medseg.inference.ensemble import load_members
    from medseg.io.bundles import load_bundle

    members = load_members(load_bundle(bundle), device=torch.device("cpu"), folds=folds)
    return sum(member.whole(image).logits[0] for member in members) / len(members)


ALONE = """
import sys, torch
sys.modules["medseg"] = None
program = torch.export.load(sys.argv[1]).module()
print(program(torch.ones(3, 1, 16, 16))[0].flatten().tolist())
"""


def test_a_program_runs_without_medseg_and_gives_the_mean_of_the_members(bundle, tmp_path, capsys):
    out = tmp_path / "new" / "model.pt2"
    assert main(["model", "export", str(bundle), "-o", str(out)]) == 0
    text = capsys.readouterr().out
    assert "any x 1 x 16 x 16" in text and "outputs: logits" in text
    done = subprocess.run([sys.executable, "-c", ALONE, out], capture_output=True, text=True, check=True)
    found = torch.tensor(json.loads(done.stdout)).reshape(3, -1, 16, 16)
    torch.testing.assert_close(found, expected(bundle, None, torch.ones(3, 1, 16, 16)), rtol=1e-4, atol=1e-4)
    with zipfile.ZipFile(out) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("medseg.json")]
        said = json.loads(archive.read(name))
    assert said["inputs"]["image"] == {
        "axes": ["image", "channel", "y", "x"],
        "size": [None, 1, 16, 16],
        "dtype": "float32",
    }
    assert said["outputs"] == ["logits"] and said["plan"]["name"] == "tiny"


def test_one_fold_and_a_fixed_batch(bundle, tmp_path):
    card = export_model(bundle, tmp_path / "model.pt2", folds=("1",), batch=1)
    assert card.batch == 1 and card.difference is not None and card.difference < 1e-4
    program, image = torch.export.load(tmp_path / "model.pt2").module(), torch.ones(1, 1, 16, 16)
    torch.testing.assert_close(program(image)[0], expected(bundle, ["1"], image), rtol=1e-4, atol=1e-4)


def test_a_file_whose_numbers_differ_is_not_written(bundle, tmp_path, monkeypatch):
    from medseg.workflow import export

    old = tmp_path / "model.pt2"
    old.write_bytes(b"old")
    monkeypatch.setitem(export._WRITERS, ".pt2", lambda *_: lambda image: [torch.zeros(2, 3, 16, 16)])
    with pytest.raises(MedsegError, match="differ"):
        export_model(bundle, old)
    assert old.read_bytes() == b"old" and [p.name for p in tmp_path.glob("*.pt2")] == ["model.pt2"]


def test_what_cannot_be_exported_is_said(bundle, tmp_path, monkeypatch):
    with pytest.raises(MedsegError, match=r"\.pt2 or \.onnx"):
        export_model(bundle, tmp_path / "model.pth")
    with pytest.raises(BundleError, match="no fold 7"):
        export_model(bundle, tmp_path / "model.pt2", folds=("7",))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MedsegError, match=r"needs onnx.*medseg\[export\]"):
        export_model(bundle, tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*.onnx"))


def test_an_onnx_file_gives_the_numbers_of_the_network(bundle, tmp_path):
    out = tmp_path / "model.onnx"
    card = export_model(bundle, out)
    model = onnx.load(out)
    assert [i.name for i in model.graph.input] == ["image"] and [o.name for o in model.graph.output] == ["logits"]
    said = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(said["medseg.json"])["plan"]["name"] == "tiny"
    assert card.difference is not None and card.difference < 1e-4
    image = torch.ones(3, 1, 16, 16)
    session = onnxruntime.InferenceSession(str(out))
    (found,) = session.run(None, {"image": image.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected(bundle, None, image), rtol=1e-4, atol=1e-4)
