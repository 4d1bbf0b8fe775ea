"""Ultrasound phantoms: a sector of known opening with moving speckle, text, calipers and a grey bar; as DICOM."""

from dataclasses import dataclass

import numpy as np
import pydicom
from PIL import Image as Picture
from PIL import ImageDraw
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from scipy import ndimage

US_MULTI_FRAME, US_SINGLE = "1.2.840.10008.5.1.4.1.1.3.1", "1.2.840.10008.5.1.4.1.1.6.1"


@dataclass(frozen=True)
class Sector:
    """A curved array: apex (y, x), radii of its near and far edge in pixels, half opening in degrees."""

    apex: tuple[float, float] = (-40.0, 160.0)
    near: float = 70.0
    far: float = 260.0
    half_angle: float = 32.0
    shape: tuple[int, int] = (240, 320)

    def mask(self):
        y, x = np.indices(self.shape)
        dy, dx = y - self.apex[0], x - self.apex[1]
        radius, angle = np.hypot(dy, dx), np.degrees(np.arctan2(dx, dy))
        return (radius >= self.near) & (radius <= self.far) & (np.abs(angle) <= self.half_angle)


def sector_frames(sector=Sector(), count=8, *, seed=0, background=0):
    """uint8 (count, y, x): speckle that changes, a dark cyst that grows, shadows, and all that scanners burn in."""
    rng = np.random.default_rng(seed)
    inside = sector.mask()
    y, x = np.indices(sector.shape)
    cy, cx = sector.apex[0] + 0.62 * (sector.near + sector.far), sector.apex[1] + 10
    burned = _burned_in(sector.shape)
    frames = []
    for number in range(count):
        speckle = ndimage.gaussian_filter(rng.rayleigh(1.0, sector.shape), 1.0) * 70
        cyst = np.hypot(y - cy, x - cx) < 18 + number
        shadow = np.abs(x - sector.apex[1] + 45) < 7
        tissue = np.where(cyst, 0.03, np.where(shadow & (y > 80), 0.05, 1.0)) * speckle
        frame = np.where(inside, np.clip(tissue, 1, 255), background)
        frames.append(np.where(burned > 0, burned, frame).astype(np.uint8))
    return np.stack(frames)


def _burned_in(shape):
    """Text, a depth ruler, a grey bar, calipers outside and inside of the fan; the same on every frame."""
    rows, columns = shape
    picture = Picture.new("L", (columns, rows))
    draw = ImageDraw.Draw(picture)
    for line, text in enumerate(("DOE^JANE 1970-01-01", "HOSPITAL", "2D 54%", "Gn 60")):
        draw.text((2, 2 + 12 * line), text, fill=230)
    draw.text((columns - 70, 2), "MI 1.1 TIS 0.4", fill=230)
    draw.text((4, rows - 14), "65 bpm", fill=255)
    for tick in range(20, rows - 20, 15):
        draw.line((columns - 6, tick, columns - 2, tick), fill=255)
    for level in range(60):
        draw.line((columns - 22, 40 + level, columns - 14, 40 + level), fill=255 - 4 * level)
    for y, x in ((rows - 30, 20), (110, columns // 2 - 30), (110, columns // 2 + 30)):
        draw.line((x - 4, y, x + 4, y), fill=255)
        draw.line((x, y - 4, x, y + 4), fill=255)
    return np.asarray(picture)


def us_dataset(frames, *, photometric="MONOCHROME2", spacing_cm=0.05, region=None, frame_ms=40.0):
    """A data set for `frames` (n, y, x) or (n, y, x, 3), without compression; one 2D region in cm, over everything."""
    count, rows, columns = frames.shape[:3]
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = US_MULTI_FRAME if count > 1 else US_SINGLE
    data.SOPInstanceUID, data.StudyInstanceUID, data.SeriesInstanceUID = (generate_uid() for _ in range(3))
    data.Modality, data.PatientName, data.PatientID = "US", "Doe^Jane", "Q4711Z"
    data.PatientBirthDate = data.PatientSex = data.StudyID = data.AccessionNumber = ""
    data.StudyDate, data.StudyTime, data.ReferringPhysicianName = "20260101", "101010", ""
    data.SeriesNumber = data.InstanceNumber = 1
    data.Manufacturer = "Phantom"
    data.Rows, data.Columns, data.SamplesPerPixel = rows, columns, 1 if frames.ndim == 3 else 3
    data.PhotometricInterpretation = photometric
    bits = 8 * frames.dtype.itemsize
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits, bits - 1, 0
    if frames.ndim == 4:
        data.PlanarConfiguration = 0
    if count > 1:
        data.NumberOfFrames = count
        data.FrameIncrementPointer = 0x00181063
        data.FrameTime = frame_ms
    if spacing_cm:
        data.SequenceOfUltrasoundRegions = [us_region(region or (0, 0, columns - 1, rows - 1), spacing_cm)]
    data.PixelData = frames.tobytes()
    return data


def us_region(box, spacing_cm, *, kind=1, spatial=1):
    """A region: box (x0, y0, x1, y1), pixel size in cm along both axes."""
    region = pydicom.Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = spatial, kind, 0
    x0, y0, x1, y1 = box
    region.RegionLocationMinX0, region.RegionLocationMinY0 = x0, y0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = x1, y1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = spacing_cm
    return region


def save(data, path, *, syntax=None, codes=None):
    """Write the data set; with `codes`, the encoded frames under the transfer syntax `syntax`."""
    if codes is not None:
        data.file_meta.TransferSyntaxUID = syntax
        data.PixelData = encapsulate(codes)
        data["PixelData"].VR = "OB"
    data.save_as(path, enforce_file_format=True)
    return path
