"""Ultrasound files that the tests write, against what was written and against GDCM's decoder."""

import io
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as Picture
from pydicom import Dataset
from pydicom.pixels import convert_color_space
from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless
from us_phantoms import save, sector_frames, us_dataset, us_region

from medseg.errors import DicomError
from medseg.io.dicom_series import find_series, series_layout
from medseg.io.dicom_us import is_cine, open_cine, read_ultrasound
from medseg.io.images import read_image

GREY = sector_frames(count=3)
TINT = np.stack([GREY, GREY // 2, 255 - GREY], axis=-1)
SMOOTH = np.stack([np.add.outer(np.arange(64) * 2, np.arange(96)).astype(np.uint8)] * 3, axis=-1)[None] // [1, 2, 3]
SMOOTH = np.concatenate([SMOOTH, SMOOTH[:, ::-1]]).astype(np.uint8)


def _read(path):
    cine = open_cine(path)
    return np.moveaxis(np.concatenate([cine.read(i) for i in range(cine.count)], axis=1), 0, -1)


def _gdcm(path):
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return sitk.GetArrayFromImage(reader.Execute())


def _code(frame, kind, **options):
    buffer = io.BytesIO()
    Picture.fromarray(frame).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("rle", [False, True])
@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_comes_as_three_channels(tmp_path, rle, planar):
    data = us_dataset(TINT, photometric="RGB")
    if planar and not rle:
        data.PlanarConfiguration = 1
        data.PixelData = np.moveaxis(TINT, -1, 1).tobytes()
    if rle:
        data.compress(RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(_read(save(data, tmp_path / "a.dcm")), TINT)


@pytest.mark.parametrize("rle", [False, True])
def test_full_ybr_becomes_rgb(tmp_path, rle):
    data = us_dataset(convert_color_space(SMOOTH, "RGB", "YBR_FULL"), photometric="YBR_FULL")
    if rle:
        data.compress(RLELossless, generate_instance_uid=False)
    path = save(data, tmp_path / "a.dcm")
    assert np.abs(_read(path).astype(int) - SMOOTH).max() <= 2
    assert np.abs(_read(path).astype(int) - _gdcm(path)).max() <= 1


def test_subsampled_ybr_becomes_rgb(tmp_path):
    ybr = convert_color_space(SMOOTH, "RGB", "YBR_FULL")
    data = us_dataset(ybr, photometric="YBR_FULL_422")
    pairs = np.stack([ybr[:, :, ::2, 0], ybr[:, :, 1::2, 0], ybr[:, :, ::2, 1], ybr[:, :, ::2, 2]], axis=-1)
    data.PixelData = pairs.tobytes()
    path = save(data, tmp_path / "a.dcm")
    assert np.abs(_read(path).astype(int) - SMOOTH).max() <= 4
    assert np.abs(_read(path).astype(int) - _gdcm(path)).max() <= 1


def test_jpeg_baseline(tmp_path):
    data = us_dataset(SMOOTH, photometric="YBR_FULL_422")
    codes = [_code(frame, "JPEG", quality=95, subsampling="4:2:2") for frame in SMOOTH]
    path = save(data, tmp_path / "a.dcm", syntax=JPEGBaseline8Bit, codes=codes)
    assert np.abs(_read(path).astype(int) - SMOOTH).max() <= 8
    assert np.abs(_read(path).astype(int) - _gdcm(path)).max() <= 3


def test_jpeg_2000_without_and_with_loss(tmp_path):
    for kind, syntax, loss in (("YBR_RCT", JPEG2000Lossless, False), ("YBR_ICT", JPEG2000, True)):
        codes = [_code(f, "JPEG2000", irreversible=loss, mct=1, no_jp2=True) for f in SMOOTH]
        path = save(us_dataset(SMOOTH, photometric=kind), tmp_path / f"{kind}.dcm", syntax=syntax, codes=codes)
        assert np.abs(_read(path).astype(int) - SMOOTH).max() <= (3 if loss else 0)


@pytest.mark.parametrize(("kind", "name"), [("JPEG", "Lossless"), ("JPEGLS", "JPEG-LS")])
def test_lossless_jpeg_is_decoded_without_extra_packages(tmp_path, kind, name):
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(tmp_path / "a.dcm"))
    writer.SetCompressor(kind)
    writer.UseCompressionOn()
    image = sitk.GetImageFromArray(GREY[0])
    image.SetMetaData("0008|0060", "US")
    image.SetMetaData("0008|0016", "1.2.840.10008.5.1.4.1.1.6.1")
    try:
        writer.Execute(image)
    except RuntimeError:
        pytest.skip(f"this SimpleITK writes no {name}")
    cine = open_cine(tmp_path / "a.dcm", spacing_mm=(0.5, 0.5))
    np.testing.assert_array_equal(cine.read(0)[0, 0], GREY[0])


@pytest.mark.parametrize("scale", [257, 1])
@pytest.mark.parametrize("rle", [False, True])
def test_palette_colours_scaled_to_16_bit_or_not(tmp_path, scale, rle):
    data = us_dataset(GREY, photometric="PALETTE COLOR")
    tables = [np.arange(256), np.arange(256)[::-1], np.arange(256) // 2]
    for colour, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        setattr(data, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(data, f"{colour}PaletteColorLookupTableData", (table * scale).astype("<u2").tobytes())
    if rle:
        data.compress(RLELossless, generate_instance_uid=False)
    path = save(data, tmp_path / "a.dcm")
    np.testing.assert_array_equal(_read(path), np.stack([table[GREY] for table in tables], axis=-1))


def test_white_low_is_inverted_and_bits_above_are_dropped(tmp_path):
    stored = (GREY.astype(np.uint16) * 4) | 0x8000
    data = us_dataset(stored, photometric="MONOCHROME1")
    data.BitsStored, data.HighBit = 10, 9
    np.testing.assert_array_equal(_read(save(data, tmp_path / "a.dcm"))[..., 0], 1023 - GREY.astype(int) * 4)


def test_spacing_comes_from_the_2d_region_in_cm(tmp_path):
    data = us_dataset(GREY[:1], spacing_cm=None)
    ecg = us_region((0, 200, 319, 239), 0.01, kind=10, spatial=4)
    tissue = us_region((10, 20, 319, 199), 0.031)
    tissue.PhysicalDeltaX = -0.03
    data.SequenceOfUltrasoundRegions = [ecg, tissue]
    image = read_ultrasound(save(data, tmp_path / "a.dcm"))
    assert image.geometry.spacing_mm == pytest.approx((1.0, 0.31, 0.30))
    assert image.geometry.unit == "mm"
    assert [(box.start, box.stop) for box in image.source.regions] == [((0, 20, 10), (1, 200, 320))]


def _regions(*regions):
    def change(data):
        data.SequenceOfUltrasoundRegions = list(regions)

    return change


def _pixel_spacing(data):
    data.PixelSpacing = [0.9, 0.9]


@pytest.mark.parametrize(
    ("spacing_cm", "change", "said"),
    [
        (None, lambda data: None, "no pixel spacing"),
        (0.05, _pixel_spacing, "0.9 x 0.9 mm as PixelSpacing and 0.5 x 0.5 mm"),
        (None, _regions(us_region((0, 0, 99, 99), 0.05), us_region((100, 0, 199, 99), 0.06)), "unlike pixel spacing"),
        (None, _regions(us_region((84, 31, 595, 414), 0.05)), "beyond its edges"),
        (None, _regions(us_region((0, 0, 99, 99), 0.0)), "without sensible numbers"),
        (None, _regions(us_region((0, 0, 99, 99), 0.05, spatial=2)), "no pixel spacing"),
    ],
)
def test_without_one_clear_spacing_it_is_refused_unless_given(tmp_path, spacing_cm, change, said):
    data = us_dataset(GREY[:1], spacing_cm=spacing_cm)
    change(data)
    path = save(data, tmp_path / "a.dcm")
    with pytest.raises(DicomError, match=said) as refusal:
        read_ultrasound(path)
    assert "--spacing" in refusal.value.hint


def test_pixel_spacing_alone_is_taken_and_a_given_one_counts_more(tmp_path):
    data = us_dataset(GREY[:1], spacing_cm=None)
    _pixel_spacing(data)
    path = save(data, tmp_path / "a.dcm")
    assert read_ultrasound(path).geometry.spacing_mm == (1.0, 0.9, 0.9)
    given = read_ultrasound(path, spacing_mm=(0.4, 0.3))
    assert given.geometry.spacing_mm == (1.0, 0.4, 0.3)
    assert any("0.9 x 0.9 mm" in note and "0.4 x 0.3 mm" in note for note in given.warnings)


def test_frames_are_time(tmp_path):
    path = save(us_dataset(GREY, frame_ms=40.0), tmp_path / "a.dcm")
    cine = open_cine(path)
    assert (cine.count, cine.geometry.shape) == (3, (1, 240, 320))
    assert cine.times_s == pytest.approx((0.0, 0.04, 0.08))
    assert is_cine(path)
    np.testing.assert_array_equal(cine.frame(2).array[0, 0], GREY[2])
    with pytest.raises(DicomError, match="3 frames over time"):
        read_ultrasound(path)


def test_frame_times_of_a_vector_a_rate_or_none(tmp_path):
    data = us_dataset(GREY)
    del data.FrameTime
    data.FrameIncrementPointer, data.FrameTimeVector = 0x00181065, [0, 30, 50]
    assert open_cine(save(data, tmp_path / "a.dcm")).times_s == pytest.approx((0.0, 0.03, 0.08))
    del data.FrameTimeVector, data.FrameIncrementPointer
    data.CineRate = 20
    assert open_cine(save(data, tmp_path / "b.dcm")).times_s == pytest.approx((0.0, 0.05, 0.1))
    del data.CineRate
    cine = open_cine(save(data, tmp_path / "c.dcm"))
    assert cine.times_s == ()
    assert any("no usable frame times" in note for note in cine.warnings)


def test_damage_is_an_error_of_its_file(tmp_path):
    data = us_dataset(GREY)
    path = save(data, tmp_path / "a.dcm")
    whole = path.read_bytes()
    path.write_bytes(whole[: -GREY[0].size])
    with pytest.raises(DicomError, match="too short for 3 frames"):
        open_cine(path)
    data.compress(RLELossless, generate_instance_uid=False)
    path = save(data, tmp_path / "b.dcm")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DicomError, match=r"frame \d cannot be decoded"):
        _read(path)
    (tmp_path / "c.dcm").write_bytes(b"no file")
    with pytest.raises(DicomError, match="not a DICOM file"):
        open_cine(tmp_path / "c.dcm")
    assert not is_cine(tmp_path / "c.dcm")


def test_a_code_of_another_size_or_without_its_end_is_not_decoded(tmp_path):
    def cine(codes, name):
        data = us_dataset(SMOOTH[:1], photometric="YBR_RCT")
        return open_cine(save(data, tmp_path / name, syntax=JPEG2000Lossless, codes=codes))

    code = _code(SMOOTH[0], "JPEG2000", irreversible=False, mct=1, no_jp2=True)
    assert cine([code], "a.dcm").read(0).shape == (3, 1, 64, 96)
    with pytest.raises(DicomError, match="cut short"):
        cine([code[: len(code) // 2]], "b.dcm").read(0)
    at = code.index(b"\xff\x51") + 6  # width and height of the code
    bomb = code[:at] + (100_000).to_bytes(4, "big") * 2 + code[at + 8 :]
    with pytest.raises(DicomError, match="100000 x 100000 pixels"):
        cine([bomb], "c.dcm").read(0)


def test_colours_that_a_jpeg_code_cannot_hold_are_refused(tmp_path):
    code = _code(SMOOTH[0], "JPEG", quality=95, subsampling="4:2:0")
    bare = code[:2] + code[4 + int.from_bytes(code[4:6], "big") :]  # without the marker that names its colours

    def read(codes, kind):
        data = us_dataset(SMOOTH[:1], photometric=kind)
        return _read(save(data, tmp_path / "a.dcm", syntax=JPEGBaseline8Bit, codes=codes)).astype(int)

    for codes, kind in (([code], "RGB"), ([bare], "YBR_FULL_422")):
        assert np.abs(read(codes, kind) - SMOOTH[:1]).max() <= 8
    with pytest.raises(DicomError, match="YCbCr, the header says RGB"):
        read([bare], "RGB")
    kept = _code(SMOOTH[0], "JPEG", quality=95, keep_rgb=True)
    assert np.abs(read([kept], "RGB") - SMOOTH[:1]).max() <= 8


def test_random_damage_is_refused_or_harmless(tmp_path):
    data = us_dataset(np.ascontiguousarray(GREY[:, ::4, ::4]))
    data.compress(RLELossless, generate_instance_uid=False)
    whole = save(data, tmp_path / "a.dcm").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for at in rng.integers(132, 2500, 4):
            damaged[at] = rng.integers(256)
        path = tmp_path / "b.dcm"
        path.write_bytes(damaged)
        try:
            cine = open_cine(path)
            assert cine.read(0).shape == (*cine.read(0).shape[:2], *cine.geometry.shape[1:])
        except DicomError:
            refused += 1
    assert 20 < refused < 400


def test_one_frame_of_many_is_read_alone(tmp_path):
    frames = np.zeros((120, 256, 256), np.uint8)
    frames += np.arange(120, dtype=np.uint8)[:, None, None]
    cine = open_cine(save(us_dataset(frames), tmp_path / "a.dcm"))
    tracemalloc.start()
    try:
        seen = [int(image.array.max()) for image in replace(cine).frames()]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == list(range(120))
    assert peak < frames.nbytes / 4


def test_every_ultrasound_file_is_a_scan_of_its_own(tmp_path):
    for name, frames in (("a", GREY[:1]), ("b", GREY[1:2]), ("c", GREY)):
        data = us_dataset(frames)
        data.SeriesInstanceUID = "2.25.7"
        save(data, tmp_path / f"{name}.dcm")
    found, refused = find_series(tmp_path)
    assert refused == {}
    assert [(series.files[0].name, series.kind) for series in found] == [
        ("a.dcm", "ultrasound"),
        ("b.dcm", "ultrasound"),
        ("c.dcm", "ultrasound"),
    ]
    assert "3 frames over time" in found[2].summary
    np.testing.assert_array_equal(read_image([tmp_path / "b.dcm"]).array[0, 0], GREY[1])
    assert series_layout(found[2]).geometry == open_cine(tmp_path / "c.dcm").geometry
    with pytest.raises(DicomError, match="3 frames over time"):
        read_image([tmp_path / "c.dcm"])


def test_read_image_takes_colours_as_grey_and_a_spacing_where_there_is_none(tmp_path):
    path = save(us_dataset(TINT[:1], photometric="RGB", spacing_cm=None), tmp_path / "a.dcm")
    with pytest.raises(DicomError, match="no pixel spacing"):
        read_image([path], channels=("US",))
    image = read_image([path], channels=("US",), spacing_mm=(0.2, 0.3))
    assert image.geometry.spacing_mm == (1.0, 0.2, 0.3)
    luminance = np.rint(TINT[0] @ [0.299, 0.587, 0.114])
    assert np.abs(image.array[0, 0].astype(float) - luminance).max() <= 1
    Picture.fromarray(GREY[0]).save(tmp_path / "b.png")
    flat = read_image([tmp_path / "b.png"], spacing_mm=(0.2, 0.3))
    assert (flat.geometry.unit, flat.geometry.spacing_mm) == ("mm", (1.0, 0.2, 0.3))


def test_an_enhanced_ultrasound_volume_is_a_volume_in_the_frame_of_its_probe(tmp_path):
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 255, (5, 12, 16), dtype=np.uint8)
    data = us_dataset(voxels, spacing_cm=None)
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.6.2"
    data.FrameOfReferenceUID = "2.25.99"
    del data.FrameTime, data.FrameIncrementPointer
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.3, 0.2], 0.5
    orientation.ImageOrientationVolume = [0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationVolumeSequence = [measures], [orientation]
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], []
    for number in (3, 1, 0, 4, 2):
        place, group = Dataset(), Dataset()
        place.ImagePositionVolume = [10 + 0.5 * number, -2.0, 7.0]
        group.PlanePositionVolumeSequence = [place]
        data.PerFrameFunctionalGroupsSequence.append(group)
    image = read_image([save(data, tmp_path / "a.dcm")])
    np.testing.assert_array_equal(image.array[0], voxels[[2, 1, 4, 0, 3]])
    assert image.geometry.spacing_mm == pytest.approx((0.5, 0.3, 0.2))
    assert image.geometry.origin_mm == (10.0, -2.0, 7.0)
    np.testing.assert_allclose(image.geometry.direction, [[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    assert any("relative to the ultrasound probe" in note for note in image.warnings)
    assert not is_cine(tmp_path / "a.dcm")
