"""A PACS for tests: Orthanc on free ports of loopback, a CT study as DICOM files, and a model whose answer is known."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from safetensors.torch import save_file
from tiny_run import tiny_plan

from medseg.io.bundles import save_bundle
from medseg.networks.build import build_network
from medseg.types.labels import Label, Labels
from medseg.types.plan import Network, Preprocess, Step, Topology

ORTHANC = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
LABELS = Labels((Label("bone", (1,)), Label("metal", (2,))))
SPACING_MM, ORIGIN_MM = (2.5, 0.7, 0.5), (-20.0, 31.0, -112.5)  # (z, y, x); LPS (x, y, z)
USER = ("medseg", "se:cret")
BONE = (slice(3, 7), slice(6, 14), slice(5, 15))


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def running_orthanc(folder, nodes):
    """Orthanc with its DICOMweb plugin; gives (http port, dicom port). `nodes` are modalities: name -> (aet, port)."""
    folder.mkdir(parents=True)
    http, dicom = free_port(), free_port()
    settings = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": http,
        "DicomPort": dicom,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": dict([USER]),
        "DicomModalities": {name: [aet, "127.0.0.1", port] for name, (aet, port) in nodes.items()},
        "Plugins": [str(DICOMWEB)],
        "StableAge": 1,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen([ORTHANC, folder / "orthanc.json"], stdout=log, stderr=log, cwd=folder)
        try:
            _await_http(http, process, folder / "log.txt")
            yield http, dicom
        finally:
            process.terminate()
            process.wait(10)


def _await_http(port, process, log):
    for _ in range(150):
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/system", timeout=2).close()
            return
        except urllib.error.HTTPError:
            return  # it is there and asks for a password
        except OSError:
            time.sleep(0.1)
    raise AssertionError(log.read_text())


def ask(port, path, body=None):
    """Bytes from Orthanc's own interface."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    key = base64.b64encode(":".join(USER).encode()).decode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Authorization": f"Basic {key}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def rest(port, path, body=None):
    """JSON from Orthanc's own interface."""
    return json.loads(ask(port, path, body))


def upload(port, files):
    for path in files:
        rest(port, "/instances", path.read_bytes())


def stored_segs(port, study):
    """Every SEG of a study in Orthanc, as data sets."""
    query = {"Level": "Instance", "Query": {"StudyInstanceUID": study, "Modality": "SEG"}}
    keys = rest(port, "/tools/find", query)
    return [pydicom.dcmread(BytesIO(ask(port, f"/instances/{key}/file"))) for key in keys]


def await_segs(port, study, count=1, seconds=60.0):
    """The SEGs of a study as soon as there are `count`."""
    end = time.monotonic() + seconds
    while len(found := stored_segs(port, study)) < count and time.monotonic() < end:
        time.sleep(0.1)
    assert len(found) == count
    return found


def write_ct(folder, *, study=None, patient="Doe^Jane", leave_out=(), slices=10):
    """One CT series with a block of bone; returns the StudyInstanceUID and the files."""
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = study or generate_uid(), generate_uid(), generate_uid()
    array = np.zeros((slices, 20, 24), np.int16)
    array[BONE] = 400
    files = []
    for k, plane in enumerate(array):
        if k in leave_out:
            continue
        files.append(folder / f"IM{k:04d}.dcm")
        _ct_slice(plane, k, study, series, frame, patient).save_as(files[-1], enforce_file_format=True)
    return study, files


def _ct_slice(plane, k, study, series, frame, patient):
    dz, dy, dx = SPACING_MM
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = pydicom.Dataset()
    ds.file_meta = meta
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = patient, "Q4711Z", "19500131", "F"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20240102", "101112", "1", "77"
    ds.ReferringPhysicianName, ds.Manufacturer, ds.PositionReferenceIndicator = "", "medseg", ""
    ds.Modality, ds.ImageType, ds.PatientPosition = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], "HFS"
    ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber, ds.KVP = 1, k + 1, 1, 120
    ds.ImagePositionPatient = [ORIGIN_MM[0], ORIGIN_MM[1], ORIGIN_MM[2] + k * dz]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.SliceThickness = [dy, dx], dz
    ds.Rows, ds.Columns = plane.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, 0, "HU"
    ds.PixelData = plane.tobytes()
    return ds


def bone_centroid_mm():
    """Centre of the block in LPS mm (x, y, z)."""
    return tuple(
        origin + spacing * (part.start + part.stop - 1) / 2
        for origin, spacing, part in zip(ORIGIN_MM, reversed(SPACING_MM), reversed(BONE), strict=True)
    )


def make_bundle(folder):
    """A bundle that labels bone above 200 HU; it needs `pacs_net` as trusted module."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = tiny_plan(channels=("CT",), labels=LABELS)
    plan = replace(
        plan,
        preprocess=Preprocess((None, None, None), (Step("none"),)),
        network=Network("pacs_net:same", Topology(3, (1,), ((1, 1, 1),), ((1, 1, 1),), (1,))),
    )
    network = build_network(plan.network, channels=1, outputs=3)
    state = network.state_dict()
    for name, value in state.items():
        new = [0.0, 1.0, 2.0] if value.dim() > 1 else [0.0, -200.0, -3000.0]
        state[name] = value.new_tensor(new).reshape(value.shape).contiguous()
    save_file(state, folder / "weights.safetensors")
    save_bundle(folder / "bundle", plan, {0: folder / "weights.safetensors"}, {})
    return folder / "bundle"
