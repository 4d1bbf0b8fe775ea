"""Which DICOM objects are images, and what the others are called."""

from typing import Literal

Kind = Literal["volume", "projection", "ultrasound"]

_STORAGE = "1.2.840.10008.5.1.4.1.1."
# Storage classes without an image of the patient, by the UID after _STORAGE; the longest match counts.
_NOT_IMAGES = {
    "9.": "a waveform",
    "11.": "a presentation state (PR)",
    "66": "raw data",
    "66.1": "a spatial registration (REG)",
    "66.2": "fiducials (FID)",
    "66.3": "a deformable registration (REG)",
    "66.4": "a segmentation (SEG)",
    "66.5": "a surface segmentation (SEG)",
    "66.6": "tractography results",
    "66.7": "a label map segmentation (SEG)",
    "67": "a real world value mapping (RWV)",
    "88.": "a structured report (SR)",
    "88.59": "a key object selection (KO)",
    "104.": "an encapsulated document (DOC)",
    "481.2": "a radiotherapy dose (RTDOSE)",
    "481.3": "a structure set (RTSTRUCT)",
    "481.4": "a radiotherapy record (RTRECORD)",
    "481.5": "a radiotherapy plan (RTPLAN)",
    "481.6": "a radiotherapy record (RTRECORD)",
    "481.7": "a radiotherapy record (RTRECORD)",
    "481.8": "a radiotherapy ion plan (RTPLAN)",
    "481.9": "a radiotherapy record (RTRECORD)",
    "481.10": "a radiotherapy object",
}
_NOT_IMAGE_MODALITIES = {
    "SEG": "a segmentation (SEG)",
    "RTSTRUCT": "a structure set (RTSTRUCT)",
    "RTPLAN": "a radiotherapy plan (RTPLAN)",
    "RTDOSE": "a radiotherapy dose (RTDOSE)",
    "RTRECORD": "a radiotherapy record (RTRECORD)",
    "SR": "a structured report (SR)",
    "KO": "a key object selection (KO)",
    "PR": "a presentation state (PR)",
    "REG": "a spatial registration (REG)",
    "FID": "fiducials (FID)",
    "RWV": "a real world value mapping (RWV)",
    "DOC": "an encapsulated document (DOC)",
    "PLAN": "a plan",
    "SMR": "a stereometric relationship",
    "ECG": "a waveform",
    "HD": "a waveform",
    "EPS": "a waveform",
    "RESP": "a waveform",
    "AU": "a waveform",
}
_DICOMDIR = "1.2.840.10008.1.3.10"
# Defined terms of the standard, retired ones among them: any other value is free text, which may name somebody.
_MODALITIES = frozenset(
    """AR ASMT AS AU BDUS BI BMD CD CF CP CR CS CT CTPROTOCOL DD DF DG DM DMS DOC DS DSA DX EC ECG EEG EMG EOG EPS ES FA
    FID FS GM HC HD IO IOL IVOCT IVUS KER KO LEN LP LS M3D MA MG MR MS NEARIR NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF
    OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV
    SEG SM SMR SR SRF ST STAIN TEXTUREMAP TG US VA VF VIDD XA XAPROTOCOL XC""".split()
)
_COLOURS = frozenset(
    """MONOCHROME1 MONOCHROME2 RGB HSV ARGB CMYK XYB YBR_FULL YBR_FULL_422 YBR_PARTIAL_422 YBR_PARTIAL_420 YBR_ICT
    YBR_RCT""".split()
) | {"PALETTE COLOR"}
_PROJECTIONS = frozenset({"CR", "DX", "PX", "IO", "MG", "RG", "XA", "RF", "RTIMAGE"})
_PANORAMAS = ("PANORAM", "PANOREX", "CEPH")
_SCOUTS = ("LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM", "SCANOGRAM")


def not_an_image(sop_class: str, modality: str) -> str | None:
    """Why an object holds no image of a patient, or None."""
    if sop_class == _DICOMDIR:
        return "is a DICOMDIR, an index of files"
    name = None
    if sop_class.startswith(_STORAGE):
        own = sop_class[len(_STORAGE) :]
        fitting = [key for key in _NOT_IMAGES if own == key or (own + ".").startswith(key.rstrip(".") + ".")]
        name = _NOT_IMAGES[max(fitting, key=len)] if fitting else None
    name = name or _NOT_IMAGE_MODALITIES.get(modality)
    return f"is {name}, no image" if name else None


def known_modality(value: str) -> str:
    """A modality that the standard defines, "" for none, "unknown" for any other text.

    >>> known_modality("CT"), known_modality(""), known_modality("DOE")
    ('CT', '', 'unknown')
    """
    return value if value in _MODALITIES or not value else "unknown"


def known_colours(value: str) -> str:
    """A photometric interpretation that the standard defines, "missing", or "unknown" for any other text."""
    return value if value in _COLOURS else "unknown" if value else "missing"


def no_plane(image_type: tuple[str, ...]) -> str | None:
    """Why an image is no plane of a volume, or None."""
    if "MOSAIC" in image_type:
        return "is a mosaic of many slices in one image, which is not read"
    if any(word in part for part in image_type for word in _SCOUTS):
        return "is a localizer (scout), no part of a volume"
    return None


def image_kind(modality: str, image_type: tuple[str, ...], *, placed: bool) -> Kind:
    """What an image shows; `placed` says whether it has a position in the patient.

    >>> image_kind("PX", ("DERIVED", "SECONDARY"), placed=False)
    'projection'
    """
    if modality in {"US", "IVUS"}:
        return "ultrasound"
    panorama = any(word in part for part in image_type for word in _PANORAMAS)
    if (modality in _PROJECTIONS or panorama) and not placed:
        return "projection"
    return "volume"
