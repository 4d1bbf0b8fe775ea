"""Coded concepts and display colours of classes: what DICOM SEG, RTSTRUCT and 3D Slicer show for a class name."""

import hashlib
import re
from dataclasses import dataclass

from medseg.types.labels import Code, Label

Rgb = tuple[int, int, int]
ANATOMY = Code("SCT", "91723000", "Anatomical Structure")
MORPHOLOGY = Code("SCT", "49755003", "Morphologically Abnormal Structure")
TISSUE = Code("SCT", "85756007", "Tissue")
SUBSTANCE = Code("SCT", "91720002", "Body Substance")
OBJECT = Code("SCT", "260787004", "Physical object")
_SIDES = {"left": Code("SCT", "7771000", "Left"), "right": Code("SCT", "24028007", "Right")}
_SIDE_WORDS = {"left": "left", "lt": "left", "l": "left", "right": "right", "rt": "right", "r": "right"}
_PRIVATE = "99MEDSEG"

# Concepts of SNOMED CT as the DICOM standard uses them: category, value, meaning, names a class may have.
_TABLE = (
    (ANATOMY, "91609006", "Mandible", "mandible|lower jaw"),
    (ANATOMY, "70925003", "Maxilla", "maxilla|upper jaw"),
    (ANATOMY, "89546000", "Skull", "skull|cranium"),
    (ANATOMY, "38199008", "Tooth", "tooth|teeth|upper teeth|lower teeth"),
    (ANATOMY, "53620006", "Temporomandibular joint", "temporomandibular joint|tmj"),
    (ANATOMY, "15924003", "Maxillary sinus", "maxillary sinus"),
    (ANATOMY, "55060009", "Frontal sinus", "frontal sinus"),
    (ANATOMY, "2095001", "Paranasal sinus", "paranasal sinus|sinuses"),
    (ANATOMY, "89187006", "Airway", "airway|airways"),
    (ANATOMY, "54066008", "Pharynx", "pharynx"),
    (ANATOMY, "4596009", "Larynx", "larynx"),
    (ANATOMY, "45289007", "Parotid gland", "parotid gland|parotid"),
    (ANATOMY, "69748006", "Thyroid", "thyroid|thyroid gland"),
    (ANATOMY, "12738006", "Brain", "brain"),
    (ANATOMY, "5366008", "Hippocampus", "hippocampus"),
    (ANATOMY, "42695009", "Thalamus", "thalamus"),
    (ANATOMY, "113305005", "Cerebellum", "cerebellum"),
    (ANATOMY, "119238007", "Brain stem", "brainstem|brain stem"),
    (ANATOMY, "40146001", "Cerebral cortex", "cerebral cortex"),
    (ANATOMY, "66720007", "Lateral ventricle", "lateral ventricle"),
    (ANATOMY, "389080008", "White matter", "white matter"),
    (ANATOMY, "389081007", "Gray matter", "gray matter|grey matter"),
    (ANATOMY, "81745001", "Eye", "eye|eyeball"),
    (ANATOMY, "18234004", "Optic nerve", "optic nerve"),
    (ANATOMY, "2748008", "Spinal cord", "spinal cord"),
    (ANATOMY, "61853006", "Vertebral canal", "spinal canal|vertebral canal"),
    (ANATOMY, "51282000", "Vertebra", "vertebra|vertebrae"),
    (ANATOMY, "421060004", "Vertebral column", "spine|vertebral column"),
    (ANATOMY, "54735007", "Sacrum", "sacrum"),
    (ANATOMY, "113197003", "Rib", "rib|ribs"),
    (ANATOMY, "56873002", "Sternum", "sternum"),
    (ANATOMY, "51299004", "Clavicle", "clavicle|clavicula"),
    (ANATOMY, "79601000", "Scapula", "scapula"),
    (ANATOMY, "85050009", "Humerus", "humerus"),
    (ANATOMY, "71341001", "Femur", "femur"),
    (ANATOMY, "12611008", "Tibia", "tibia"),
    (ANATOMY, "816092008", "Pelvis", "pelvis"),
    (TISSUE, "3138006", "Bone", "bone|bones"),
    (TISSUE, "91727004", "Muscle", "muscle|muscles"),
    (TISSUE, "55603005", "Fat", "fat|adipose tissue"),
    (TISSUE, "309312004", "Cartilage", "cartilage"),
    (ANATOMY, "39937001", "Skin", "skin"),
    (ANATOMY, "10200004", "Liver", "liver"),
    (ANATOMY, "28231008", "Gallbladder", "gallbladder|gall bladder"),
    (ANATOMY, "78961009", "Spleen", "spleen"),
    (ANATOMY, "15776009", "Pancreas", "pancreas"),
    (ANATOMY, "64033007", "Kidney", "kidney|kidneys"),
    (ANATOMY, "23451007", "Adrenal gland", "adrenal gland|adrenal"),
    (ANATOMY, "87953007", "Ureter", "ureter"),
    (ANATOMY, "89837001", "Urinary bladder", "urinary bladder|bladder"),
    (ANATOMY, "41216001", "Prostate", "prostate|prostate gland"),
    (ANATOMY, "35039007", "Uterus", "uterus"),
    (ANATOMY, "15497006", "Ovary", "ovary"),
    (ANATOMY, "78067005", "Placenta", "placenta"),
    (ANATOMY, "69695003", "Stomach", "stomach"),
    (ANATOMY, "32849002", "Esophagus", "esophagus|oesophagus"),
    (ANATOMY, "38848004", "Duodenum", "duodenum"),
    (ANATOMY, "30315005", "Small intestine", "small intestine|small bowel"),
    (ANATOMY, "14742008", "Large intestine", "large intestine|large bowel"),
    (ANATOMY, "71854001", "Colon", "colon"),
    (ANATOMY, "34402009", "Rectum", "rectum"),
    (ANATOMY, "39607008", "Lung", "lung|lungs"),
    (ANATOMY, "44567001", "Trachea", "trachea"),
    (ANATOMY, "80891009", "Heart", "heart"),
    (ANATOMY, "82471001", "Left atrium", "left atrium|atrium left"),
    (ANATOMY, "73829009", "Right atrium", "right atrium|atrium right"),
    (ANATOMY, "87878005", "Left ventricle of heart", "left ventricle|heart ventricle left"),
    (ANATOMY, "53085002", "Right ventricle of heart", "right ventricle|heart ventricle right"),
    (ANATOMY, "41801008", "Coronary artery", "coronary artery|coronary arteries"),
    (ANATOMY, "15825003", "Aorta", "aorta"),
    (ANATOMY, "64131007", "Inferior vena cava", "inferior vena cava|vena cava inferior"),
    (ANATOMY, "32764006", "Portal vein", "portal vein"),
    (ANATOMY, "76752008", "Breast", "breast"),
    (ANATOMY, "69536005", "Head", "fetal head"),
    (MORPHOLOGY, "4147007", "Mass", "mass|breast mass"),
    (MORPHOLOGY, "52988006", "Lesion", "lesion|lesions"),
    (MORPHOLOGY, "108369006", "Neoplasm", "tumor|tumour|neoplasm|cancer"),
    (MORPHOLOGY, "27925004", "Nodule", "nodule|nodules"),
    (MORPHOLOGY, "367643001", "Cyst", "cyst|cysts"),
    (MORPHOLOGY, "79654002", "Edema", "edema|oedema"),
    (MORPHOLOGY, "6574001", "Necrosis", "necrosis"),
    (MORPHOLOGY, "35566002", "Hematoma", "hematoma|haematoma"),
    (SUBSTANCE, "65216001", "Cerebrospinal fluid", "cerebrospinal fluid|csf"),
    (SUBSTANCE, "77012006", "Amniotic fluid", "amniotic fluid"),
    (OBJECT, "40388003", "Implant", "implant|implants"),
)
_BY_NAME = {
    name: (category, Code("SCT", value, meaning))
    for category, value, meaning, names in _TABLE
    for name in names.split("|")
}
_BY_CODE = {value: category for category, value, _, _ in _TABLE}
_COLOURS: tuple[Rgb, ...] = (
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48), (145, 30, 180),
    (70, 240, 240), (240, 50, 230), (210, 245, 60), (250, 190, 212), (0, 128, 128), (220, 190, 255),
    (170, 110, 40), (255, 250, 200), (128, 0, 0), (170, 255, 195), (128, 128, 0), (255, 215, 180),
    (0, 0, 117), (128, 128, 128),
)  # fmt: skip


@dataclass(frozen=True)
class Concept:
    """What a class is: its category, its type and, for one of a pair, the side."""

    category: Code
    kind: Code
    side: Code | None = None


def concept(label: Label) -> Concept:
    """The concept of a class: its own code, else that of its name, else a private code that holds the name.

    Case, separators and a side ("kidney_left", "Right Lung") are understood; nothing is guessed beyond that.

    >>> concept(Label("kidney_left", (1,))).kind.meaning, concept(Label("kidney_left", (1,))).side.meaning
    ('Kidney', 'Left')
    >>> concept(Label("condyle cap", (1,))).kind
    Code(scheme='99MEDSEG', value='CONDYLE-CAP', meaning='condyle cap')
    """
    if label.code is not None:
        return Concept(_BY_CODE.get(label.code.value, TISSUE), label.code)
    words = re.findall(r"[^\W_]+", label.name.casefold())
    known = _BY_NAME.get(" ".join(words))
    if known is not None:
        return Concept(*known)
    sides = {_SIDE_WORDS[word] for word in words if word in _SIDE_WORDS}
    known = _BY_NAME.get(" ".join(word for word in words if word not in _SIDE_WORDS))
    if known is not None and len(sides) == 1:
        return Concept(*known, _SIDES[sides.pop()])
    return Concept(TISSUE, Code(_PRIVATE, _private_value(label.name), plain_text(label.name)))


def colour(index: int) -> Rgb:
    """The display colour of class `index`, the same in every format; 20 distinct ones, then around again.

    >>> colour(0), colour(20) == colour(0)
    ((230, 25, 75), True)
    """
    return _COLOURS[index % len(_COLOURS)]


def plain_text(text: str, length: int = 64) -> str:
    """Text as a DICOM long string (LO) can hold it: no backslash, no control characters, at most `length`."""
    return " ".join(re.sub(r"[\\\x00-\x1f\x7f]", " ", text).split())[:length].strip() or "unnamed"


def _private_value(name: str) -> str:
    """At most 16 characters that tell one name from another."""
    value = re.sub(r"[^A-Z0-9]+", "-", name.upper()).strip("-")
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _-]{,15}", name) and value:
        return value
    return f"{value[:9]}-{hashlib.sha256(name.encode()).hexdigest()[:6].upper()}".lstrip("-")
