"""Thousands of small CT-like DICOM studies, 1 % of them bad, through `medseg predict`: all told of, memory bounded.

    python benchmarks/batch_studies.py FOLDER [--studies 2000] [--killed 400]

Makes the studies and a tiny model in FOLDER, predicts them in one batch while it watches memory, then predicts the
first `--killed` of them again in a run that is killed with SIGKILL half-way and resumed. Prints what it found and exits
with 1 if a good study was not written, a bad one not reported, memory grew by 5 % or more from study 100 to the last,
or the killed run differs from the unbroken one or did a study twice.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from safetensors.torch import save_file

from medseg.io.bundles import save_bundle
from medseg.networks.build import build_network
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

FAULTS = ("missing slice", "truncated", "no spacing", "junk", "two sizes of pixels")
ROOT = "1.2.826.0.1.3680043.10.999"
PATIENT = "MUSTERMANN"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--killed", type=int, default=400)
    arguments = parser.parse_args()
    folder, count = arguments.folder, arguments.studies
    bundle = make_bundle(folder / "model")
    bad = make_studies(folder / "in", count)
    print(f"{count} studies, {len(bad)} bad: {', '.join(FAULTS)}", flush=True)
    wrong = unbroken(bundle, folder, count, bad)
    wrong += killed(bundle, folder, arguments.killed, bad)
    print("\n".join(f"WRONG: {text}" for text in wrong) or "all as it should be")
    return 1 if wrong else 0


def unbroken(bundle: Path, folder: Path, count: int, bad: dict[int, str]) -> list[str]:
    """One batch over everything; returns what is wrong."""
    out, began = folder / "out", time.monotonic()
    process = start(bundle, folder / "in", out)
    memory = watch(process, out)
    code, seconds = process.returncode, time.monotonic() - began
    cases = json.loads((out / "report.json").read_text(encoding="utf-8"))["cases"]
    ok = {case["series_uids"][0]: case for case in cases if case["status"] == "ok"}
    failed = [case for case in cases if case["status"] == "failed"]
    early = next((m for lines, m in memory if lines >= 100), 0.0)
    late = memory[-1][1] if memory else 0.0
    growth = 100 * (late / early - 1) if early else 0.0
    print(f"exit {code}, {seconds:.0f} s, {1000 * seconds / count:.0f} ms a study: {len(ok)} ok, {len(failed)} failed")
    print(f"memory of all processes at study 100: {early:.0f} MiB, at the last: {late:.0f} MiB, growth {growth:+.1f} %")
    for case in failed[:: max(1, len(failed) // 5)]:
        print(f"  {case['error']}")
    expected = {f"{ROOT}.{n}.1" for n in range(count) if n not in bad}
    wrong = [] if code == 1 else [f"exit code {code}"]
    if set(ok) != expected or not all((out / case["outputs"][0]).is_file() for case in ok.values()):
        wrong.append("the good studies are not all written, or others are")
    if len(failed) != len(bad):
        wrong.append(f"{len(failed)} studies reported as failed, {len(bad)} are bad")
    if growth >= 5:
        wrong.append(f"memory grew by {growth:.1f} %")
    told = (out / "report.json").read_text(encoding="utf-8") + " ".join(path.name for path in out.iterdir())
    if PATIENT in told:
        wrong.append("a patient is named")
    return wrong


def killed(bundle: Path, folder: Path, count: int, bad: dict[int, str]) -> list[str]:
    """The first studies again, killed half-way and resumed; returns how that differs from the unbroken run."""
    part, out = folder / "part", folder / "resumed"
    part.mkdir(exist_ok=True)
    for n in range(count):
        (part / f"{n:05d}").symlink_to((folder / "in" / name(n)).absolute())
    process = start(bundle, part, out)
    while len(lines_of(out)) < count // 2:
        if process.poll() is not None:
            return ["the run to be killed ended by itself"]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)
    before = {line["case_id"]: line for line in lines_of(out) if line["status"] == "ok"}
    written = {case: (out / line["outputs"][0]).stat().st_mtime_ns for case, line in before.items()}
    start(bundle, part, out, "--resume").wait()
    cases = json.loads((out / "report.json").read_text(encoding="utf-8"))["cases"]
    skipped = {case["case_id"] for case in cases if case["status"] == "skipped" and case["outputs"]}
    results = {case["outputs"][0] for case in cases if case["outputs"]}
    again = [c for c, at in written.items() if (out / before[c]["outputs"][0]).stat().st_mtime_ns != at]
    differ = [path for path in results if (out / path).read_bytes() != (folder / "out" / path).read_bytes()]
    print(f"killed after {len(before)} of {count}, resumed: {len(skipped)} kept, {len(results)} results,", end=" ")
    print(f"{len(again)} done twice, {len(differ)} differ from the unbroken run")
    failed = sum(case["status"] == "failed" for case in cases)
    if failed != sum(n in bad for n in range(count)):
        return [f"{failed} failed in the resumed run"]
    extra = {path.name for path in out.glob("*.nii.gz")} ^ results
    wrong = [f"{len(again)} studies done twice"] if again or skipped != set(before) else []
    return wrong + ([f"{len(differ)} results differ, {len(extra)} files without a line"] if differ or extra else [])


def start(bundle: Path, scans: Path, out: Path, *more: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "medseg.cli", "predict", str(bundle), str(scans), "-o", str(out)]
    return subprocess.Popen([*command, "--device", "cpu", *more], stdout=subprocess.DEVNULL)


def watch(process: "subprocess.Popen[bytes]", out: Path) -> list[tuple[int, float]]:
    """Lines written, and MiB of the process and its children, until it ends."""
    seen: list[tuple[int, float]] = []
    path, offset, count = out / "report.jsonl", 0, -1
    while process.poll() is None:
        if path.is_file():
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read()
            offset, count = offset + len(data), count + data.count(b"\n")
            memory = sum(map(resident_mib, [process.pid, *children(process.pid)]))
            seen += [(count, memory)] if memory and count > 0 else []
        time.sleep(0.25)
    return seen[:-1]  # the last look may have met processes that were ending


def resident_mib(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def lines_of(out: Path) -> list[dict[str, object]]:
    path = out / "report.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[1:-1]] if path.is_file() else []


def make_bundle(folder: Path) -> Path:
    """A two-stage U-Net with random weights."""
    plan = Plan(
        "medseg.plan/1",
        "tiny",
        ("CT",),
        Labels((Label("a", (1,)), Label("b", (2,)))),
        Preprocess((2.5, 1.0, 1.0), (Step("z_score"),)),
        Network("unet", Topology(3, (4, 8), ((1, 1, 1), (1, 2, 2)), ((3, 3, 3), (3, 3, 3)), (1, 1))),
        Sampling((8, 32, 32), 2),
        Training((LossTerm(1.0, "dice_ce"),), Step("sgd"), Step("poly"), (), 1, precision="fp32"),
        Inference(),
        (),
        Origin("0", "0" * 64, Budget(4.0), "unet"),
        {},
    )
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    state = build_network(plan.network, channels=1, outputs=3).state_dict()
    weights = {key: value.contiguous() for key, value in state.items()}
    save_file(weights, folder / "weights.safetensors")
    save_bundle(folder / "bundle", plan, {0: folder / "weights.safetensors"}, {})
    return folder / "bundle"


def name(number: int) -> str:
    return f"{PATIENT}^{number:05d}"


def make_studies(folder: Path, count: int) -> dict[int, str]:
    """Studies of 6 to 10 slices of 24 to 40 pixels; every hundredth has one of FAULTS, by number."""
    bad = {n: FAULTS[n // 100 % len(FAULTS)] for n in range(50, count, 100)}
    for number in range(count):
        rng = np.random.default_rng(number)
        slices, rows, columns = (int(rng.integers(low, high)) for low, high in ((6, 11), (24, 41), (24, 41)))
        voxels = rng.integers(-1000, 1500, (slices, rows, columns)).astype("<i2")
        target = folder / name(number)
        target.mkdir(parents=True, exist_ok=True)
        for index in range(slices):
            if bad.get(number) == "missing slice" and index == 3:
                continue
            data = write_slice(target / f"I{index}.dcm", voxels[index], number, index, bad.get(number, ""))
            if bad.get(number) == "truncated" and index == 2:
                (target / f"I{index}.dcm").write_bytes(data[:-50])
    return bad


def write_slice(path: Path, plane: np.ndarray, number: int, index: int, fault: str) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"{ROOT}.{number}.1.{index + 1}"
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    ds.PatientName, ds.PatientID, ds.Modality = f"{PATIENT}^{number}", str(number), "CT"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = (
        f"{ROOT}.{number}{end}" for end in ("", ".1", ".2")
    )
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = *plane.shape, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    if fault != "no spacing":
        ds.PixelSpacing = [0.7, 0.7 + 0.1 * (fault == "two sizes of pixels" and index == 4)]
    ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2.5 * index]
    ds.RescaleSlope, ds.RescaleIntercept, ds.InstanceNumber = 1, 0, index + 1
    ds.PixelData = plane.tobytes()
    ds.save_as(path, enforce_file_format=True)
    data = path.read_bytes() if fault != "junk" else bytes(1000)
    path.write_bytes(data)
    return data


if __name__ == "__main__":
    sys.exit(main())
