"""What happens to each DICOM element on de-identification: a list of what is kept; everything else with text goes.

Follows the order of the Basic Profile of DICOM PS3.15 Annex E as an aid, with a stricter default: an element with free
text that is not named here is removed, also where the profile would leave it. Compliance is not claimed.
"""

from __future__ import annotations

from typing import Literal

Action = Literal["keep", "remove", "empty", "pseudonym", "remap", "shift", "descend"]

PSEUDONYMS = ("PatientID", "PatientName")
"""Replaced by a keyed pseudonym: the same patient stays the same."""
EMPTIED = (
    "AccessionNumber",
    "PatientBirthDate",
    "PatientSex",
    "ReferringPhysicianName",
    "StudyID",
    "ContentCreatorName",
)
"""Must exist in a valid file, so they stay, empty."""
REMOVED = (
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PregnancyStatus",
    "SmokingStatus",
    "OriginalAttributesSequence",
    "ReferencedPatientSequence",
    "RequestAttributesSequence",
    "IconImageSequence",
    "DigitalSignaturesSequence",
    "DataSetTrailingPadding",
    "CodeMeaning",
)
"""Say something about the person, or repeat what was removed elsewhere."""
KEPT_TEXT = ("ConvolutionKernel", "Manufacturer", "ManufacturerModelName", "CodeValue", "CodingSchemeDesignator")
"""Text elements that describe the machine and its picture."""
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
TEXT_VRS = ("LO", "LT", "SH", "ST", "UC", "UT", "PN", "UR", "AE", "AS", "UN", "OB", "OW", "OD", "OF", "OL", "OV")
"""Value kinds that can hold any text, or any bytes."""
STANDARD_UIDS = "1.2.840.10008."
"""UIDs of the standard itself, such as SOP classes."""
CODED = "CS"
SAFE_CODES = (
    "SpecificCharacterSet",
    "ImageType",
    "Modality",
    "PatientPosition",
    "PhotometricInterpretation",
    "BodyPartExamined",
    "RescaleType",
    "ScanOptions",
    "RotationDirection",
    "ConversionType",
    "BurnedInAnnotation",
    "LossyImageCompression",
    "LossyImageCompressionMethod",
    "PresentationLUTShape",
    "PatientIdentityRemoved",
    "LongitudinalTemporalInformationModified",
    "Laterality",
    "ImageLaterality",
    "ScanningSequence",
    "SequenceVariant",
    "MRAcquisitionType",
    "InPlanePhaseEncodingDirection",
    "VariableFlipAngleFlag",
    "FilterType",
    "ExposureModulationType",
)
"""Coded strings whose values are defined by the standard; others are removed."""


def action_for(keyword: str, vr: str, private: bool, group: int) -> Action:
    """What to do with one element.

    Args:
        keyword: Name of the element in the standard, "" if unknown.
        vr: Its value representation.
        private: Of a vendor.
        group: First half of the tag.

    Example:
        >>> action_for("PatientName", "PN", False, 0x10), action_for("Rows", "US", False, 0x28)
        ('pseudonym', 'keep')
    """
    if private or not keyword or 0x5000 <= group <= 0x50FF or 0x6000 <= group <= 0x60FF or keyword in REMOVED:
        return "remove"
    if keyword in PSEUDONYMS:
        return "pseudonym"
    if keyword in EMPTIED:
        return "empty"
    if keyword in PIXELS or keyword in KEPT_TEXT:
        return "keep"
    by_kind: dict[str, Action] = {"SQ": "descend", "UI": "remap", "DA": "shift", "DT": "shift", "TM": "empty"}
    if vr in by_kind:
        return by_kind[vr]
    if vr == CODED:
        return "keep" if keyword in SAFE_CODES else "remove"
    return "remove" if vr.split(" ")[0] in TEXT_VRS and vr != "US or SS or OW" else "keep"
