"""Ultrasound of real scanners: the table of docs/guide/ultrasound.md, colours against GDCM, and fans.

    pytest -m acceptance --data FOLDER

FOLDER holds us-dicom, us-breast-busi, us-fetal-head-hc18 and us-trus-prostate-3d.
"""

import json
import warnings
from dataclasses import replace

import highdicom
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image as Picture
from safetensors.torch import save_file
from tiny_run import tiny_plan

from medseg.cli.app import main
from medseg.errors import DicomError
from medseg.io.bundles import save_bundle
from medseg.io.dicom_us import open_cine
from medseg.io.images import read_image, read_labels
from medseg.networks.build import build_network
from medseg.preprocess.fan import fan_mask
from medseg.types.labels import Label, Labels
from medseg.types.plan import Preprocess, Sampling, Step

pytestmark = pytest.mark.acceptance

FILES = {  # frames, spacing in mm or what the refusal says, last frame time in s
    "IM00001.implicit_little_endian.dcm": (8, 2.29375, 0.31),
    "JPGLosslessP14SV1_1s_1f_8b.dcm": (1, 0.254767, None),
    "OBXXXX1A_rle_2frame.dcm": (2, 0.262288, None),
    "US-PAL-8-10x-echo": (10, "no pixel spacing", 0.684),
    "YBR_422.dcm": (1, 0.0616, None),
    "YBR_FULL-RLE.dcm": (1, 0.0953679, None),
    "color-pl.dcm": (1, "no pixel spacing", None),
    "examples_jpeg2k.dcm": (1, "no pixel spacing", None),
    "examples_palette.dcm": (1, "beyond its edges", None),
    "examples_rgb_color.dcm": (1, "no pixel spacing", None),
    "examples_ybr_color.dcm": (30, "beyond its edges", 0.966657),
    "gdcm-US-ALOKA-16.dcm": (1, 0.382653, None),
    "no-pixel-spacing.dcm": (1, 0.330542, None),
}
LOSSY = {"examples_ybr_color.dcm": 3}  # grey levels that two JPEG decoders may differ by


def test_the_table_lists_every_file(real_data):
    assert {path.name for path in (real_data / "us-dicom").iterdir()} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_frames_spacing_times_and_colours(real_data, name):
    frames, spacing, last_s = FILES[name]
    path = real_data / "us-dicom" / name
    if isinstance(spacing, str):
        with pytest.raises(DicomError, match=spacing):
            open_cine(path)
        cine = open_cine(path, spacing_mm=(0.5, 0.5))
    else:
        cine = open_cine(path)
        assert cine.geometry.spacing_mm == pytest.approx((1.0, spacing, spacing), rel=1e-5)
    assert cine.count == frames
    assert (cine.times_s[-1] if cine.times_s else None) == pytest.approx(last_s, abs=1e-5)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    other = sitk.GetArrayFromImage(reader.Execute())
    for number, frame in enumerate(cine.frames()):
        planes = frame.array[:, 0].astype(int)
        known = np.atleast_3d(other[number])
        known = known >> 8 if known.dtype == np.uint16 else known
        assert np.abs(np.moveaxis(planes, 0, -1) - known.astype(int)).max() <= LOSSY.get(name, 0)


def _flat(path):
    return np.asarray(Picture.open(path).convert("L"))


def test_cut_pictures_are_all_fan_and_no_lesion_is_lost(real_data):
    kept = []
    for path in sorted((real_data / "us-breast-busi" / "images").iterdir()):
        fan = fan_mask(_flat(path)[None])[0]
        mask = real_data / "us-breast-busi" / "masks" / path.name
        assert not (_flat(mask)[~fan] > 0).any(), path.name
        kept.append(fan.mean())
    assert np.median(kept) > 0.999
    assert min(kept) > 0.9


def test_sectors_are_cut_to_their_fan_and_keep_the_head(real_data):
    kept, lost = [], []
    for path in sorted((real_data / "us-fetal-head-hc18" / "images").iterdir()):
        fan = fan_mask(_flat(path)[None])[0]
        head = _flat(real_data / "us-fetal-head-hc18" / "masks" / path.name) > 0
        kept.append(fan.mean())
        lost.append((head & ~fan).sum() / head.sum())
    assert np.median(kept) < 0.9
    assert max(lost) < 0.005


def test_every_file_is_predicted_and_its_seg_holds_the_labels(real_data, tmp_path):
    """A network with random weights labels something everywhere, which is enough to compare files."""
    labels = Labels((Label("one", (1,)), Label("two", (2,))))
    plan = tiny_plan(ndim=2, channels=("US",), labels=labels)
    plan = replace(plan, preprocess=Preprocess((None, None, None), (Step("fan_z_score"),)))
    plan = replace(plan, sampling=Sampling((1, 128, 128), 2))
    torch.manual_seed(3)
    state = build_network(plan.network, channels=1, outputs=3).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "weights.safetensors")
    save_bundle(tmp_path / "bundle", plan, {0: tmp_path / "weights.safetensors"}, {})
    folder, out = str(real_data / "us-dicom"), tmp_path / "out"
    options = ["--spacing", "0.3", "--format", "dicom-seg", "nii.gz", "gif", "--device", "cpu"]
    assert main(["predict", str(tmp_path / "bundle"), folder, "-o", str(out), *options]) == 0
    lines = json.loads((out / "report.json").read_text("utf-8"))["cases"]
    assert len(lines) == len(FILES)
    for line in lines:
        stack = read_labels(out / line["outputs"][1], labels).array
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # two of the files have UIDs that the standard does not allow
            seg = highdicom.seg.segread(out / line["outputs"][0])
        source = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID
        if len(stack) == 1:
            found = seg.get_pixels_by_source_instance([source], combine_segments=True)
        else:
            numbers = list(range(1, len(stack) + 1))
            found = seg.get_pixels_by_source_frame(
                source, numbers, combine_segments=True, assert_missing_frames_are_empty=True
            )
            with Picture.open(out / line["outputs"][2]) as gif:
                assert gif.n_frames == len(stack)
        np.testing.assert_array_equal(found, stack)
        assert stack.any()


def test_3d_ultrasound_reads_as_another_reader_reads_it(real_data):
    folder = real_data / "us-trus-prostate-3d"
    for path in sorted((folder / "us_images").iterdir()):
        image, other = read_image([path]), sitk.ReadImage(str(path))
        assert np.array_equal(image.array[0], sitk.GetArrayViewFromImage(other))
        assert image.geometry.spacing_mm == pytest.approx(other.GetSpacing()[::-1], rel=1e-6)
        assert image.geometry.origin_mm == pytest.approx(other.GetOrigin(), abs=1e-4)
        gland = read_image([folder / "us_labels" / path.name]).array[0] > 0.5
        assert (gland & ~fan_mask(image.array[0])).sum() < 0.006 * gland.sum()
