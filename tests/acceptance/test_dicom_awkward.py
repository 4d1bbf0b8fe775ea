"""Real awkward DICOM: every folder has the outcome that docs/dicom.md says, and reference conversions are matched.

    pytest -m acceptance --data FOLDER

FOLDER holds dicom-awkward and cbct-icat.
"""

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from medseg.errors import DicomError
from medseg.io.dicom_frames import stored_frame
from medseg.io.dicom_headers import read_header
from medseg.io.dicom_series import find_series, group_files, read_series
from medseg.io.images import read_image
from tests.acceptance.awkward_table import table

pytestmark = pytest.mark.acceptance
REFERENCES = [
    "mr-double-oblique",
    "mr-enhanced-4d-fmri",
    "mr-enhanced-multiframe-philips",
    "mr-enhanced-multiframe-siemens",
    "mr-nonisotropic-pixels",
    "mr-rgb-j2k",
    "mr-sagittal-oblique",
    "mr-single-slice",
    "same-series-compressed_j2k",
    "same-series-compressed_jpeg-baseline",
    "same-series-compressed_jpeg-lossless",
    "same-series-compressed_jpeg-ls",
    "same-series-compressed_rle",
]


@pytest.fixture
def awkward(real_data):
    return real_data / "dicom-awkward"


def test_every_folder_has_the_outcome_that_the_documentation_says(awkward):
    documented = (Path(__file__).parents[2] / "docs" / "dicom.md").read_text("utf-8").splitlines()
    for line in table(awkward):
        assert line in documented


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_conversions_are_matched(awkward, name):
    """Every voxel within half a grey level, at a place within 0.001 mm."""
    folder = awkward / name if (awkward / name).is_dir() else awkward.joinpath(*name.rsplit("_", 1))
    stored = nibabel.load(awkward / f"{name}_reference.nii.gz")
    values = np.asarray(stored.dataobj)
    if values.dtype.names:
        values = np.stack([values[channel] for channel in "RGB"], axis=-1)
    affine = np.diag([-1, -1, 1, 1]) @ stored.affine
    volumes = [read_series(series) for series in find_series(folder)[0]]
    channels = np.concatenate([image.array for image in volumes]).reshape(-1, volumes[0].array[0].size)
    assert channels.size == values.size
    for image in volumes:
        here = np.stack(np.meshgrid(*map(np.arange, image.geometry.shape), [1], indexing="ij")).reshape(4, -1)
        place = image.geometry.affine() @ here
        i, j, k = index = np.rint(np.linalg.inv(affine) @ place)[:3].astype(int)
        assert np.abs(affine[:3, :3] @ index + affine[:3, 3:] - place[:3]).max() < 1e-3
        expected = values[i, j, k].reshape(len(i), -1).T.astype(float)
        assert np.abs(channels - expected).max() < 0.5


@pytest.mark.parametrize("scan", ["CT1", "MR4"])
@pytest.mark.parametrize("packing", ["J2KR", "JLSL", "JPLL", "RLE"])
def test_lossless_scans_equal_their_originals(awkward, scan, packing):
    plain, packed = (
        stored_frame(read_header(awkward / "nema-wg04" / f"{scan}_{kind}"), 0) for kind in ("UNC", packing)
    )
    assert np.array_equal(plain, packed)


@pytest.mark.parametrize("scan", ["CT1", "MR4"])
def test_near_lossless_scans_stay_within_their_bound(awkward, scan):
    plain, packed = (stored_frame(read_header(awkward / "nema-wg04" / f"{scan}_{kind}"), 0) for kind in ("UNC", "JLSN"))
    assert 0 < np.abs(plain.astype(int) - packed).max() <= 4


def test_one_small_image_in_every_syntax_reads_the_same(awkward):
    folder = awkward / "transfer-syntaxes"
    expected = stored_frame(read_header(folder / "MR_small.dcm"), 0)
    assert np.array_equal(expected, pydicom.dcmread(folder / "MR_small.dcm").pixel_array)
    found = sorted(folder.glob("MR_small_*.dcm"))
    assert len(found) == 7
    for path in found:
        assert np.array_equal(stored_frame(read_header(path), 0), expected), path.name
    frames = [stored_frame(read_header(path), 7) for path in sorted(folder.glob("emri_small*.dcm"))]
    assert len(frames) == 5
    assert all(np.array_equal(frame, frames[0]) for frame in frames)


def test_a_tilted_stack_keeps_its_values_in_place(awkward):
    """Middle rows of the sheared slices lie where the positions say: a slice is its own plane, shifted."""
    folder = awkward / "ct-siemens-tilt-4slices"
    image = read_image([folder])
    for k, path in enumerate(sorted(folder.iterdir(), key=lambda p: pydicom.dcmread(p).ImagePositionPatient[2])):
        ds = pydicom.dcmread(path)
        plane = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        corner = np.linalg.solve(image.geometry.affine(), [*map(float, ds.ImagePositionPatient), 1])
        assert corner[0] == pytest.approx(k, abs=1e-3)
        assert corner[2] == pytest.approx(0, abs=1e-3)
        low, part = divmod(corner[1], 1)
        rows = np.arange(1, 512)
        expected = (1 - part) * plane[rows] + part * plane[rows - 1]
        assert np.abs(image.array[0, k, round(low) + rows] - expected).max() <= 0.51


def test_the_cbct_is_read_right(real_data):
    """517 slices of JPEG Extended with 12 bits, against a GPL decoder of another family."""
    decoders = pytest.importorskip("libjpeg")
    files = sorted((real_data / "cbct-icat" / "DICOM").iterdir())
    (series,), refused = group_files(files)
    assert not refused
    image = read_series(series)
    assert image.array.shape == (1, 517, 640, 640)
    assert image.geometry.spacing_mm == pytest.approx((0.25, 0.25, 0.25), abs=1e-6)
    assert not image.warnings
    for k in range(0, 517, 43):
        ds = pydicom.dcmread(series.files[k])
        (code,) = pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1)
        theirs = decoders.decode(code).reshape(640, 640).astype(int) + int(ds.RescaleIntercept)
        apart = np.abs(image.array[0, k] - theirs)
        assert apart.max() <= 3
        assert apart.mean() < 0.05
        assert image.geometry.origin_mm[2] + 0.25 * k == pytest.approx(float(ds.ImagePositionPatient[2]), abs=1e-3)


def test_folders_of_several_scans_are_never_read_as_one(awkward):
    for name in ["dicomdir-tree", "nema-wg04", "mr-mixed-orientations-one-series", "ct-4d-tiny", "mr-enhanced-4d-fmri"]:
        with pytest.raises(DicomError, match=r"holds \d+ series"):
            read_image([awkward / name])
