from dataclasses import replace

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image as Picture
from pydicom.encaps import encapsulate, encapsulate_extended, fragment_frame, generate_frames
from pydicom.uid import (
    HTJ2K,
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medseg.errors import DicomError
from medseg.io import dicom_frames
from medseg.io.dicom_frames import check_frames, stored_frame
from medseg.io.dicom_headers import read_header
from medseg.io.images import read_image
from tests.dicom_slices import ORIGIN, stored, write_slice

# (arange(120).reshape(12, 10) * 31) % 4096 as unsigned and, less 2000, as signed 16 bits, written by OpenJPH 0.26
HTJ2K_HEAD = "ff4fff51002940000000000a0000000c00000000000000000000000a0000000c00000000000000000001"
HTJ2K_BODY = (
    "0101ff50000800020000000aff52000c00020001000504044001ff5c00132088909090909090909090909090888888ff64001700014f7065"
    "6e4a50482056657220302e32362e332eff90000a00000000006f0001ff93c000{}7740000c00012c0001300fa01877400bcf403877400c0"
    "0011c00013002b7300adad00423400c000124000154028e274007295ab5cc05281feb600c0002ae00015c03ce73ce7d82fd7e00b77006aa"
    "a51a346cdf410464201ecb800ffd9"
)
HTJ2K_UNSIGNED = bytes.fromhex(HTJ2K_HEAD + "0f" + HTJ2K_BODY.format("26fbf4050"))
HTJ2K_SIGNED = bytes.fromhex(HTJ2K_HEAD + "8f" + HTJ2K_BODY.format("269bfc028"))


def check_and_read(path, frame=0):
    header = read_header(path)
    check_frames(header)
    return stored_frame(header, frame)


def write_packed(path, codes, syntax, shape, *, dtype=np.uint16, offsets=True, **changes):
    """A file that holds compressed frames as they are."""
    blank = np.zeros(shape, dtype)
    bits = dtype().itemsize * 8
    options = {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1, **changes}
    ds = pydicom.dcmread(write_slice(path, blank, ORIGIN, **options))
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = codes if isinstance(codes, bytes) else encapsulate(codes, has_bot=offsets)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    ds.save_as(path)
    return path


def packed(folder, pixels, compressor):
    """The code stream and syntax that GDCM, or pydicom, makes of one plane."""
    if compressor in {"RLE", "JPEGLS"}:
        syntax = RLELossless if compressor == "RLE" else JPEGLSLossless
        return packed_by_pydicom(pixels, syntax), syntax
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(folder / "itk.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(sitk.GetImageFromArray(pixels))
    ds = pydicom.dcmread(folder / "itk.dcm")
    return next(generate_frames(ds.PixelData, number_of_frames=1)), ds.file_meta.TransferSyntaxUID


@pytest.mark.parametrize(
    ("compressor", "syntax", "dtype"),
    [
        *(("JPEG", JPEGLosslessSV1, dtype) for dtype in (np.uint16, np.int16)),  # GDCM does not write it in 8 bits
        *(("JPEGLS", JPEGLSLossless, dtype) for dtype in (np.uint8, np.uint16, np.int16)),
        *(("JPEG2000", JPEG2000Lossless, dtype) for dtype in (np.uint8, np.uint16, np.int16)),
        *(("RLE", RLELossless, dtype) for dtype in (np.uint8, np.uint16, np.int16)),
    ],
)
def test_lossless_compression_gives_back_every_value(tmp_path, dtype, compressor, syntax):
    info = np.iinfo(dtype)
    pixels = np.random.default_rng(3).integers(info.min, info.max + 1, (23, 17)).astype(dtype)
    code, made = packed(tmp_path, pixels, compressor)
    assert made == syntax
    path = write_packed(tmp_path / "a.dcm", [code], syntax, pixels.shape, dtype=dtype)
    assert np.array_equal(check_and_read(path), pixels)


def packed_by_pydicom(pixels, syntax):
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    ds.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    bits = pixels.dtype.itemsize * 8
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW"
    ds.compress(syntax)
    return next(generate_frames(ds.PixelData, number_of_frames=1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("samples", [1, 3])
def test_run_lengths_of_any_depth(tmp_path, dtype, samples):
    shape = (9, 8) if samples == 1 else (9, 8, 3)
    pixels = np.random.default_rng(4).integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    colour = {} if samples == 1 else {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}
    planar = {} if samples == 1 else {"PlanarConfiguration": 1}
    path = write_packed(
        tmp_path / "a", [packed_by_pydicom(pixels, RLELossless)], RLELossless, shape, dtype=dtype, **colour, **planar
    )
    found = check_and_read(path)
    assert np.array_equal(found if samples == 1 else np.moveaxis(found, 0, -1), pixels)


def test_baseline_jpeg_is_close(tmp_path):
    pixels = np.add.outer(np.arange(40), np.arange(48) * 2).astype(np.uint8)
    Picture.fromarray(pixels).save(tmp_path / "a.jpg", quality=100)
    code = (tmp_path / "a.jpg").read_bytes()
    path = write_packed(tmp_path / "a.dcm", [code], JPEGBaseline8Bit, pixels.shape, dtype=np.uint8)
    assert np.abs(check_and_read(path).astype(int) - pixels).max() <= 2


def test_colours_in_jpeg_become_rgb(tmp_path):
    rows, columns = np.mgrid[:32, :32] * 4
    pixels = np.stack([rows, columns, 255 - rows], axis=-1).astype(np.uint8)
    Picture.fromarray(pixels).save(tmp_path / "a.jpg", quality=100, subsampling=0)
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL", "PlanarConfiguration": 0}
    code = (tmp_path / "a.jpg").read_bytes()
    path = write_packed(tmp_path / "a.dcm", [code], JPEGBaseline8Bit, pixels.shape, dtype=np.uint8, **colour)
    assert np.abs(np.moveaxis(check_and_read(path), 0, -1).astype(int) - pixels).max() <= 6


def test_high_throughput_jpeg_2000(tmp_path):
    expected = np.arange(120).reshape(12, 10) * 31 % 4096
    path = write_packed(tmp_path / "u.dcm", [HTJ2K_UNSIGNED], HTJ2KLossless, (12, 10))
    assert np.array_equal(check_and_read(path), expected)
    path = write_packed(tmp_path / "s.dcm", [HTJ2K_SIGNED], HTJ2K, (12, 10), dtype=np.int16)
    assert np.array_equal(check_and_read(path), expected - 2000)


def test_an_unknown_transfer_syntax_is_named(tmp_path):
    path = write_packed(tmp_path / "a.dcm", [b"\0" * 100], MPEG2MPML, (9, 11))
    with pytest.raises(
        DicomError, match=r"a\.dcm: transfer syntax MPEG2 .*1\.2\.840\.10008\.1\.2\.4\.100.* is not supp"
    ):
        check_and_read(path)


@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("pieces", [1, 3])
def test_frames_in_fragments_with_and_without_offset_table(tmp_path, offsets, pieces):
    frames = stored(4, 0, 4000, np.uint16)
    codes = [packed(tmp_path, frame, "JPEGLS")[0] for frame in frames]
    body = encapsulate(codes, fragments_per_frame=pieces, has_bot=offsets)
    path = write_packed(tmp_path / "a.dcm", body, JPEGLSLossless, frames[0].shape, NumberOfFrames=4)
    for number, frame in enumerate(frames):
        assert np.array_equal(check_and_read(path, number), frame)


def test_one_frame_in_many_fragments(tmp_path):
    frame = stored(1, 0, 4000, np.uint16)[0]
    code, syntax = packed(tmp_path, frame, "JPEG")
    assert len(list(fragment_frame(code, 5))) == 5
    body = encapsulate([code], fragments_per_frame=5)
    path = write_packed(tmp_path / "a.dcm", body, syntax, frame.shape)
    assert np.array_equal(check_and_read(path), frame)


def test_an_extended_offset_table_is_no_obstacle(tmp_path):
    frames = stored(3, 0, 4000, np.uint16)
    codes = [packed(tmp_path, frame, "JPEGLS")[0] for frame in frames]
    body, table, lengths = encapsulate_extended(codes)
    options = {"NumberOfFrames": 3, "ExtendedOffsetTable": table, "ExtendedOffsetTableLengths": lengths}
    path = write_packed(tmp_path / "a.dcm", body, JPEGLSLossless, frames[0].shape, **options)
    assert np.array_equal(check_and_read(path, 2), frames[2])


def test_fragments_that_belong_to_no_frame_are_refused(tmp_path):
    code, syntax = packed(tmp_path, stored(1, 0, 4000, np.uint16)[0], "JPEGLS")
    path = write_packed(tmp_path / "a.dcm", [code, code, code], syntax, (9, 11), NumberOfFrames=2)
    with pytest.raises(DicomError, match=r"3 fragments .* 2 frames"):
        check_and_read(path)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEGLS", "JPEG2000", "RLE", "baseline"])
def test_cut_code_streams_are_refused_or_right(tmp_path, compressor):
    """Never half an image: the encapsulation is whole, the stream in it is not."""
    pixels = np.random.default_rng(5).integers(0, 250, (64, 64)).astype(np.uint16)
    dtype = np.uint8 if compressor == "baseline" else np.uint16
    if compressor == "baseline":
        Picture.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.jpg")
        code, syntax = (tmp_path / "a.jpg").read_bytes(), JPEGBaseline8Bit
    else:
        code, syntax = packed(tmp_path, pixels, compressor)
    for share in (0.02, 0.5, 0.95, 0.99):
        cut = code[: int(len(code) * share)]
        path = write_packed(tmp_path / "a.dcm", [cut], syntax, pixels.shape, dtype=dtype)
        with pytest.raises(DicomError, match=r"a\.dcm"):
            check_and_read(path)


def test_a_cut_file_is_refused(tmp_path):
    code, syntax = packed(tmp_path, stored(1, 0, 4000, np.uint16)[0], "JPEGLS")
    whole = write_packed(tmp_path / "a.dcm", [code], syntax, (9, 11)).read_bytes()
    path = tmp_path / "cut.dcm"
    for missing in (9, 40, len(code) + 20):
        path.write_bytes(whole[:-missing])
        with pytest.raises(DicomError, match=r"cut\.dcm: pixel data are truncated"):
            check_and_read(path)


def test_a_stream_of_another_size_is_refused_before_it_is_decoded(tmp_path):
    code, syntax = packed(tmp_path, np.zeros((9, 11), np.uint16), "JPEG2000")
    path = write_packed(tmp_path / "a.dcm", [code], syntax, (9, 12))
    with pytest.raises(DicomError, match="compressed image is 9 x 11, its header says 9 x 12"):
        check_and_read(path)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_a_few_bytes_cannot_claim_gigabytes(tmp_path, syntax):
    path = write_packed(tmp_path / "a.dcm", [b"\xff\xd8\xff" + b"\0" * 60], syntax, (9, 11), Rows=65535, Columns=65535)
    with pytest.raises(DicomError, match="bytes cannot hold an image of 65535 x 65535"):
        check_frames(read_header(path))
    plain = write_slice(tmp_path / "plain.dcm", stored()[0], ORIGIN, Rows=65535, Columns=65535)
    with pytest.raises(DicomError, match="pixel data are truncated: 198 bytes of 8589672450"):
        check_frames(read_header(plain))
    many = write_slice(tmp_path / "many.dcm", stored()[0], ORIGIN, NumberOfFrames=2_000_000_000)
    with pytest.raises(DicomError, match="truncated"):
        check_frames(read_header(many))


def test_a_matrix_smaller_than_its_pixels_is_refused_padding_is_not(tmp_path):
    small = write_slice(tmp_path / "small.dcm", stored()[0] + 1, ORIGIN, Rows=8)
    with pytest.raises(DicomError, match=r"holds 198 bytes of pixels where Rows \(0028,0010\) and .* say 176"):
        check_and_read(small)
    plane = stored()[0]
    padded = write_slice(tmp_path / "padded.dcm", plane, ORIGIN, PixelData=plane.tobytes() + b"\0" * 30)
    assert np.array_equal(check_and_read(padded), plane)


@pytest.mark.parametrize("shape", [(3, 3, 3), (2, 4, 3)])
def test_bytes_in_big_endian_words(tmp_path, shape):
    pixels = np.arange(2 * np.prod(shape), dtype=np.uint8).reshape(2, *shape)
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, "NumberOfFrames": 2}
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    ds = pydicom.dcmread(write_slice(tmp_path / "a", pixels[0], ORIGIN, **colour, **bits))
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    ds.PixelData = np.frombuffer(pixels.tobytes(), np.uint16).byteswap().tobytes()
    ds["PixelData"].VR = "OW"
    pydicom.dcmwrite(tmp_path / "a", ds, implicit_vr=False, little_endian=False)
    header = read_header(tmp_path / "a")
    for frame in (0, 1):
        assert np.array_equal(np.moveaxis(stored_frame(header, frame), 0, -1), pixels[frame])


def test_deflated_and_float_pixels(tmp_path):
    values = np.random.default_rng(6).normal(size=(9, 11)).astype(np.float32)
    path = write_slice(tmp_path / "f.dcm", stored()[0], ORIGIN, PixelData=None, FloatPixelData=values.tobytes())
    ds = pydicom.dcmread(path)
    ds.BitsAllocated = ds.BitsStored = 32
    ds.HighBit = 31
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(path, ds, implicit_vr=False, little_endian=True)
    assert np.array_equal(check_and_read(path), values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"BitsAllocated": 12}, r"BitsAllocated \(0028,0100\) is 12"),
        ({"BitsStored": 20}, "do not fit"),
        ({"HighBit": 30}, "do not fit"),
        ({"SamplesPerPixel": 4}, r"SamplesPerPixel \(0028,0002\) is 4"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is PALETTE COLOR"),
        ({"PhotometricInterpretation": None}, "is missing"),
    ],
)
def test_layouts_that_make_no_volume_name_the_tag(tmp_path, change, words):
    with pytest.raises(DicomError, match=words):
        check_frames(read_header(write_slice(tmp_path / "a.dcm", stored()[0], ORIGIN, **change)))


def test_a_stream_deeper_than_its_header_is_refused(tmp_path):
    code, syntax = packed(tmp_path, stored(1, 0, 60000, np.uint16)[0], "JPEG2000")
    path = write_packed(tmp_path / "a.dcm", [code], syntax, (9, 11), BitsStored=12, HighBit=11)
    with pytest.raises(DicomError, match="decodes to values beyond BitsStored"):
        read_image([path])


def test_a_compressed_value_has_no_place_above_its_high_bit(tmp_path):
    code, syntax = packed(tmp_path, stored(1, 0, 4000, np.uint16)[0], "JPEGLS")
    with pytest.raises(DicomError, match="do not fit"):
        check_and_read(write_packed(tmp_path / "a.dcm", [code], syntax, (9, 11), BitsStored=12, HighBit=15))


def test_a_file_cut_after_its_header_was_read(tmp_path):
    path = write_slice(tmp_path / "a.dcm", stored()[0], ORIGIN)
    header = read_header(path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DicomError, match="truncated"):
        stored_frame(header, 0)
    path.unlink()
    with pytest.raises(DicomError, match="cannot be read"):
        stored_frame(header, 0)


def test_the_bound_is_that_of_the_densest_real_images(tmp_path, monkeypatch):
    """An empty slice packs well and is read; only what is both large and denser than 1 : 1000 is refused."""
    pixels = np.zeros((512, 512), np.uint16)
    code, syntax = packed(tmp_path, pixels, "JPEGLS")
    path = write_packed(tmp_path / "a.dcm", [code], syntax, pixels.shape)
    assert not check_and_read(path).any()
    monkeypatch.setattr(dicom_frames, "_SMALL", 1000)
    with pytest.raises(DicomError, match="cannot hold"):
        check_frames(replace(read_header(path)))
