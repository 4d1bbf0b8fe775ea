"""A study on its way through a real PACS: Orthanc from the system's packages, on loopback."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import highdicom
import numpy as np
import pacs
import pydicom
import pytest
from pydicom.uid import CTImageStorage
from pynetdicom import AE

from medseg.cli import main
from medseg.io.inbox import hashed

pytestmark = [
    pytest.mark.skipif(
        pacs.ORTHANC is None or not pacs.DICOMWEB.is_file(),
        reason="Orthanc or its DICOMweb plugin is not installed (apt-get install orthanc orthanc-dicomweb)",
    ),
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]
SECRETS = re.compile(r"Doe|Jane|Q4711Z|19500131|se:cret|Traceback")


@pytest.fixture(autouse=True)
def collected():
    """pynetdicom leaves sockets that the other side closed first to the garbage collector; that must be here."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return pacs.make_bundle(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    """Http port, DICOM port, and the port where Orthanc expects the node MEDSEG."""
    node = pacs.free_port()
    with pacs.running_orthanc(tmp_path_factory.mktemp("pacs") / "orthanc", {"medseg": ("MEDSEG", node)}) as (
        web,
        dicom,
    ):
        yield web, dicom, node


@pytest.fixture
def auth(tmp_path):
    path = tmp_path / "password"
    path.write_text(":".join(pacs.USER) + "\n")
    path.chmod(0o600)
    return path


def check_seg(dataset, files):
    """A second reader finds the block where it was put, in the study and frame of reference of the scan."""
    seg = highdicom.seg.Segmentation.from_dataset(dataset)
    scan = pydicom.dcmread(files[0])
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == (scan.StudyInstanceUID, scan.FrameOfReferenceUID)
    assert str(seg.PatientName) == "Doe^Jane"
    volume = seg.get_volume(combine_segments=True)
    points = volume.map_indices_to_reference(np.argwhere(volume.array == 1))
    np.testing.assert_allclose(points.mean(axis=0), pacs.bone_centroid_mm(), atol=1e-3)
    depth, rows, columns = (part.stop - part.start for part in pacs.BONE)
    assert len(points) == depth * rows * columns


def predict(bundle, web, study, out, *options):
    return main(
        ["predict", str(bundle), f"dicomweb:http://127.0.0.1:{web}/dicom-web", "--study", study, "-o", str(out)]
        + ["--device", "cpu", "--trust", "pacs_net", *map(str, options)]
    )


def test_a_study_is_fetched_predicted_and_stored_beside_itself(bundle, orthanc, auth, tmp_path, capfd):
    study, files = pacs.write_ct(tmp_path / "ct")
    pacs.upload(orthanc[0], files)
    assert predict(bundle, orthanc[0], study, tmp_path / "out", "--auth", auth) == 0
    (seg,) = pacs.stored_segs(orthanc[0], study)
    check_seg(seg, files)
    assert predict(bundle, orthanc[0], study, tmp_path / "out", "--auth", auth) == 0
    assert len(pacs.stored_segs(orthanc[0], study)) == 1
    text = "".join(capfd.readouterr()) + (tmp_path / "out" / "report.json").read_text()
    assert not SECRETS.search(text)
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".dcm", ".json"]


def test_no_password_or_no_such_study_is_one_clear_line(bundle, orthanc, auth, tmp_path, capfd):
    assert predict(bundle, orthanc[0], "1.2.3", tmp_path / "out") == 2
    assert "refuses the credentials (HTTP 401)" in capfd.readouterr().err
    assert predict(bundle, orthanc[0], "1.2.3", tmp_path / "out", "--auth", auth) == 2
    error = capfd.readouterr().err
    assert "knows no such study" in error
    assert not SECRETS.search(error)


def send(port, files):
    """Statuses of C-STORE, one per file."""
    entity = AE("CT1")
    entity.add_requested_context(CTImageStorage)
    association = entity.associate("127.0.0.1", port, ae_title="MEDSEG")
    assert association.is_established
    statuses = [association.send_c_store(path).Status for path in files]
    association.release()
    return statuses


@contextmanager
def listener(bundle, orthanc, out, *options):
    """`medseg listen` in a process of its own."""
    _, dicom, port = orthanc
    command = [sys.executable, "-m", "medseg.cli", "listen", "--bundle", bundle, "--port", port, "--out", out]
    command += ["--peer", f"ORTHANC@127.0.0.1:{dicom}", "--device", "cpu", "--trust", "pacs_net", *options]
    paths = os.pathsep.join([str(Path(pacs.__file__).parent), os.environ.get("PYTHONPATH", "")])
    log = out.with_suffix(".log")
    with log.open("ab") as file:
        started = file.tell()
        environment = {**os.environ, "PYTHONPATH": paths}
        process = subprocess.Popen(list(map(str, command)), stderr=file, stdout=file, env=environment)
    try:
        while "listens on" not in log.read_text()[started:]:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield process, log
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


def test_studies_arrive_and_go_back_through_kill_refusal_and_faults(bundle, orthanc, tmp_path):
    web, _, port = orthanc
    out = tmp_path / "node"
    killed, killed_files = pacs.write_ct(tmp_path / "killed")
    routed, routed_files = pacs.write_ct(tmp_path / "routed")
    bad, bad_files = pacs.write_ct(tmp_path / "bad", leave_out=(4,))

    with listener(bundle, orthanc, out, "--quiet", 600, "--queue", 1) as (process, _):
        assert send(port, killed_files) == [0x0000] * len(killed_files)
        assert send(port, bad_files[:1]) == [0xA700]
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert pacs.stored_segs(web, killed) == []

    with listener(bundle, orthanc, out, "--quiet", 0.5, "--allow", "CT1", "ORTHANC") as (process, log):
        (seg,) = pacs.await_segs(web, killed)
        check_seg(seg, killed_files)
        assert send(port, bad_files) == [0x0000] * len(bad_files)
        pacs.upload(web, routed_files)
        pacs.rest(web, "/modalities/medseg/store", pacs.rest(web, "/tools/lookup", routed.encode())[0]["ID"].encode())
        (seg,) = pacs.await_segs(web, routed)
        check_seg(seg, routed_files)
        reason = out / "failed" / hashed(bad) / "reason.json"
        end = time.monotonic() + 30
        while not reason.is_file() and time.monotonic() < end:
            time.sleep(0.1)
        assert "missing" in json.loads(reason.read_text())["reasons"][0]
        assert send(port, killed_files) == [0x0000] * len(killed_files)
        while "nothing new" not in log.read_text() and time.monotonic() < end:
            time.sleep(0.1)
        process.terminate()
        assert process.wait(20) == 143
    assert "nothing new" in log.read_text()
    assert [len(pacs.stored_segs(web, study)) for study in (killed, routed, bad)] == [1, 1, 0]
    assert list((out / "incoming").iterdir()) == list((out / "work").iterdir()) == []
    assert not SECRETS.search(log.read_text())
    for study in (killed, routed):
        assert study not in log.read_text()
