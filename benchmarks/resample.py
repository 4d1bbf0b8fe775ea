"""Resampling beside scipy and SimpleITK: seconds of one thread and peak memory, each job in a process of its own.

    python benchmarks/resample.py [--size 300 400 400] [--classes 20]

Ratios within one run are what to look at; seconds depend on the machine and on what else it does.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from medseg.preprocess.axes import along_x, along_y, bands, weights_at
from medseg.preprocess.native import native_labels
from medseg.preprocess.resample import resample_image
from medseg.preprocess.resample_labels import resample_labels
from medseg.types.geometry import Geometry, Size3
from medseg.types.image import Image, LabelMap, Slab
from medseg.types.labels import Label, Labels

FINE_MM, COARSE_MM = 0.3, 0.4
Job = Callable[[], tuple[np.ndarray, float, int]]


def grids(size: Size3) -> tuple[Geometry, Geometry]:
    fine = Geometry(size, (FINE_MM,) * 3)
    return fine, fine.with_shape(tuple(round(n * FINE_MM / COARSE_MM) for n in size))


def measured(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float, int]:
    """Result, seconds of processor time, and by how many MiB the process grew at most (result included; Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before = resident_mib("VmRSS")
    start = time.process_time()
    result = work()
    return result, time.process_time() - start, resident_mib("VmHWM") - before


def resident_mib(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) // 1024


def volume(shape: Size3) -> np.ndarray:
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    waves = np.sin(z / 9.0) + np.sin(y / 7.0) + np.sin(x / 8.0)
    out = np.empty(shape, np.int16)
    for plane, wave in zip(out, waves, strict=True):
        plane[:] = 500 * wave + rng.normal(0, 60, plane.shape)
    return out


def organs(shape: Size3) -> np.ndarray:
    z, y, x = (a / n - 0.5 for a, n in zip(np.ogrid[: shape[0], : shape[1], : shape[2]], shape, strict=True))
    labels = (z**2 + y**2 + x**2 < 0.4**2).astype(np.uint8)
    labels[z**2 + y**2 + (x - 0.1) ** 2 < 0.2**2] = 2
    return labels


def scores(shape: Size3, classes: int, planes: int = 16) -> "list[Slab]":
    """Smooth random scores, so that borders between many classes run through the whole volume."""
    knots = np.random.default_rng(0).normal(size=(classes, 8, 8, 8)).astype(np.float32)
    z, y, x = (weights_at((np.arange(n) + 0.5) * 8 / n - 0.5, 8, order=3) for n in shape)
    to_y, to_x = bands(y), bands(x)
    slabs = []
    for start in range(0, shape[0], planes):
        part = np.einsum("Zz,kzyx->kZyx", z[start : start + planes], knots)
        slabs.append(Slab(start, np.stack([along_x(along_y(plane, to_y), to_x) for plane in part])))
    return slabs


def image_jobs(size: Size3, order: int, *, up: bool) -> dict[str, Job]:
    fine, coarse = grids(size)
    source, target = (coarse, fine) if up else (fine, coarse)
    array = volume(source.shape)

    def ours() -> np.ndarray:
        return resample_image(Image(array[None], source, ("CBCT",)), target, order=order).array[0]

    def scipy() -> np.ndarray:
        from scipy import ndimage

        zoom = [m / n for m, n in zip(target.shape, source.shape, strict=True)]
        found = ndimage.zoom(array, zoom, np.float32, order=order, mode="nearest", grid_mode=True)
        return found.clip(array.min(), array.max(), out=found)

    def simpleitk() -> np.ndarray:
        import SimpleITK as sitk

        image, like = sitk.GetImageFromArray(array), sitk.Image(*target.shape[::-1], sitk.sitkFloat32)
        image.SetSpacing(source.spacing_mm[::-1])
        image.SetOrigin(source.origin_mm)
        like.SetSpacing(target.spacing_mm[::-1])
        like.SetOrigin(target.origin_mm)
        kind = sitk.sitkLinear if order == 1 else sitk.sitkBSpline
        found = sitk.GetArrayFromImage(sitk.Resample(image, like, sitk.Transform(), kind, 0.0, sitk.sitkFloat32))
        return found.clip(array.min(), array.max(), out=found)

    return {
        "medseg": lambda: measured(ours),
        "scipy": lambda: measured(scipy),
        "SimpleITK": lambda: measured(simpleitk),
    }


def label_jobs(size: Size3, *, up: bool) -> dict[str, Job]:
    fine, coarse = grids(size)
    source, target = (coarse, fine) if up else (fine, coarse)
    array = organs(source.shape)
    labels = Labels((Label("a", (1,)), Label("b", (2,))))

    def ours() -> np.ndarray:
        return resample_labels(LabelMap(array, source, labels), target).array

    def scipy() -> np.ndarray:
        from scipy import ndimage

        zoom = [m / n for m, n in zip(target.shape, source.shape, strict=True)]
        best = np.full(target.shape, -1, np.float32)
        found = np.zeros(target.shape, np.uint8)
        for value in range(3):
            share = ndimage.zoom((array == value).astype(np.float32), zoom, order=1, mode="nearest", grid_mode=True)
            found[share > best] = value
            np.maximum(best, share, out=best)
        return found

    return {"medseg": lambda: measured(ours), "scipy": lambda: measured(scipy)}


def native_jobs(size: Size3, classes: int) -> dict[str, Job]:
    fine, coarse = grids(size)
    labels = Labels(tuple(Label(str(i), (i,)) for i in range(1, classes)))
    slabs = scores(coarse.shape, classes)

    def ours() -> np.ndarray:
        return native_labels(slabs, coarse, fine, labels).array

    def scipy() -> np.ndarray:
        from scipy import ndimage

        zoom = [m / n for m, n in zip(fine.shape, coarse.shape, strict=True)]
        found = np.empty((classes, *fine.shape), np.float32)
        for k in range(classes):
            whole = np.concatenate([slab.scores[k] for slab in slabs])
            ndimage.zoom(whole, zoom, found[k], order=1, mode="nearest", grid_mode=True)
        return found.argmax(axis=0)

    return {"medseg": lambda: measured(ours), "scipy": lambda: measured(scipy)}


def jobs(name: str, size: Size3, classes: int) -> dict[str, Job]:
    table: dict[str, Callable[[], dict[str, Job]]] = {
        "image order 3 down": lambda: image_jobs(size, 3, up=False),
        "image order 3 up": lambda: image_jobs(size, 3, up=True),
        "image order 1 down": lambda: image_jobs(size, 1, up=False),
        "labels down": lambda: label_jobs(size, up=False),
        "labels up": lambda: label_jobs(size, up=True),
        "scores to labels": lambda: native_jobs(size, classes),
    }
    return table[name]()


TOOLS = {name: ("medseg", "scipy", "SimpleITK") for name in
         ("image order 3 down", "image order 3 up", "image order 1 down")}  # fmt: skip
TOOLS |= {name: ("medseg", "scipy") for name in ("labels down", "labels up", "scores to labels")}


def child(name: str, tool: str, size: Size3, classes: int, out: str) -> None:
    if tool == "SimpleITK":
        import SimpleITK as sitk

        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    result, seconds, mib = jobs(name, size, classes)[tool]()
    np.save(out, result, allow_pickle=False)
    print(json.dumps({"seconds": seconds, "mib": mib}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(300, 400, 400), metavar=("Z", "Y", "X"))
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = (given.size[0], given.size[1], given.size[2])
    if given.child:
        child(given.child[0], given.child[1], size, given.classes, given.child[2])
        return
    one_thread = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    print(f"{'job':20} {'tool':10} {'CPU s':>7} {'MiB':>6} {'ratio':>6}  difference to medseg")
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            first: dict[str, float] = {}
            for tool in TOOLS[name]:
                out = Path(folder) / f"{tool}.npy"
                command = [sys.executable, __file__, "--size", *map(str, size), "--classes", str(given.classes)]
                answer = subprocess.run([*command, "--child", name, tool, str(out)], env=one_thread, check=True,
                                        capture_output=True, text=True)  # fmt: skip
                found = json.loads(answer.stdout)
                first = first or found
                ours, theirs = (np.load(Path(folder) / f"{t}.npy", mmap_mode="r") for t in ("medseg", tool))
                apart = difference(name, ours, theirs)
                ratio = found["seconds"] / first["seconds"]
                print(f"{name:20} {tool:10} {found['seconds']:7.2f} {found['mib']:6} {ratio:6.1f}  {apart}", flush=True)


def difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> str:
    if not name.startswith("image"):
        return f"{sum(np.count_nonzero(a != b) for a, b in zip(ours, theirs, strict=True))} voxels"
    inner = (slice(8, -8),) * 3
    apart = max(float(np.abs(a - b).max()) for a, b in zip(ours[inner], theirs[inner], strict=True))
    return f"{apart:.4f} grey levels (8 voxels from the edge)"


if __name__ == "__main__":
    main()
