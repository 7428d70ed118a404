"""Why a file is not used: one stable code each, and one sentence for hospital IT that names the fix.

The codes are those of the intake design that single images can reach, and a few that it lacked. No sentence
advises to remove data: the archive belongs to the hospital, and a file that is no use to a study may be a
patient's only copy.
"""

from enum import StrEnum


class Refusal(StrEnum):
    """The terminal state of a file that is not used. Unknown means refuse."""

    PERMISSION_DENIED = "PERMISSION_DENIED"
    READ_ERROR = "READ_ERROR"
    READ_TIMEOUT = "READ_TIMEOUT"
    NOT_DICOM = "NOT_DICOM"
    NOT_AN_IMAGE = "NOT_AN_IMAGE"
    NO_PIXELS = "NO_PIXELS"
    TRUNCATED = "TRUNCATED"
    UNREADABLE = "UNREADABLE"
    TOO_LARGE = "TOO_LARGE"
    TRANSFER_SYNTAX = "TRANSFER_SYNTAX"
    LOSSY_NOT_ALLOWED = "LOSSY_NOT_ALLOWED"
    MULTI_FRAME = "MULTI_FRAME"
    GEOMETRY_MISSING = "GEOMETRY_MISSING"
    MIXED_ORIENTATION = "MIXED_ORIENTATION"
    DUPLICATE_POSITION = "DUPLICATE_POSITION"
    SPACING_NONUNIFORM = "SPACING_NONUNIFORM"
    GANTRY_TILT = "GANTRY_TILT"
    SINGLE_SLICE = "SINGLE_SLICE"
    AMBIGUOUS_SERIES = "AMBIGUOUS_SERIES"
    SERIES_NOT_SELECTED = "SERIES_NOT_SELECTED"
    LOCALIZER = "LOCALIZER"
    DERIVED_SECONDARY = "DERIVED_SECONDARY"
    BURNED_IN = "BURNED_IN"
    MODALITY_MISMATCH = "MODALITY_MISMATCH"
    PHOTOMETRIC = "PHOTOMETRIC"
    RESCALE_MISSING = "RESCALE_MISSING"
    PATIENT_ID_MISSING = "PATIENT_ID_MISSING"
    LABEL_MISSING = "LABEL_MISSING"
    LABEL_UNKNOWN = "LABEL_UNKNOWN"
    LABEL_CONFLICT = "LABEL_CONFLICT"
    MASK_TYPE = "MASK_TYPE"
    MASK_GRID = "MASK_GRID"
    MASK_OVERLAP = "MASK_OVERLAP"
    UID_CONFLICT = "UID_CONFLICT"
    DUPLICATE = "DUPLICATE"
    DUPLICATE_PIXELS = "DUPLICATE_PIXELS"
    OVER_PATIENT_CAP = "OVER_PATIENT_CAP"
    WITHDRAWN = "WITHDRAWN"

    @property
    def explanation(self) -> str:
        """One sentence for hospital IT: what was found and what would change it."""
        return EXPLANATIONS[self]

    @property
    def counts_as_excluded(self) -> bool:
        """Whether this file was meant for the study and got lost (`plan.dataset.max_excluded_share`).

        Scouts, copies, reports and text files lie in every archive and say nothing about its quality.
        """
        return self not in BY_DESIGN


BY_DESIGN = frozenset(
    {
        Refusal.NOT_DICOM,
        Refusal.NOT_AN_IMAGE,
        Refusal.LOCALIZER,
        Refusal.SERIES_NOT_SELECTED,
        Refusal.DERIVED_SECONDARY,
        Refusal.MODALITY_MISMATCH,
        Refusal.DUPLICATE,
        Refusal.DUPLICATE_PIXELS,
        Refusal.OVER_PATIENT_CAP,
        Refusal.WITHDRAWN,
    }
)

EXPLANATIONS: dict[Refusal, str] = {
    Refusal.PERMISSION_DENIED: (
        "The agent's user may not read this file or folder: grant it read access and scan again."
    ),
    Refusal.READ_ERROR: (
        "The storage failed while this file was read: check the disk or network mount and scan again."
    ),
    Refusal.READ_TIMEOUT: (
        "Reading this file took longer than the limit and was given up: check the disk or network mount and scan again."
    ),
    Refusal.NOT_DICOM: "This is not a DICOM instance; nothing needs to be done unless it should be one.",
    Refusal.NOT_AN_IMAGE: (
        "This DICOM object is a report, plan, waveform, segmentation or similar; nothing needs to be done."
    ),
    Refusal.NO_PIXELS: "The image has a header and no pixel data: export it again with its pixels.",
    Refusal.TRUNCATED: (
        "The file ends before its pixel data does, or a part of the concatenation it belongs to is missing, as after a "
        "broken transfer: send it from the archive again."
    ),
    Refusal.UNREADABLE: (
        "The header is damaged or contradicts the pixel data: export the image from the archive again."
    ),
    Refusal.TOO_LARGE: (
        "The file or the image it declares is beyond the limits, or it is nested too deeply: "
        "raise the limit in the policy if this is a genuine image."
    ),
    Refusal.TRANSFER_SYNTAX: (
        "The pixel data is stored in a compression this agent does not read: let the archive export it as "
        "Explicit VR Little Endian, or as RLE, JPEG, JPEG-LS or JPEG 2000 without loss."
    ),
    Refusal.LOSSY_NOT_ALLOWED: ("The image was compressed with loss: export the original if the archive still has it."),
    Refusal.MULTI_FRAME: (
        "The object holds several frames or slices and this version reads single images: "
        "export it as single-frame images."
    ),
    Refusal.GEOMETRY_MISSING: (
        "The slice does not say where in the patient it lies: export it with Image Position, Image Orientation and "
        "Pixel Spacing."
    ),
    Refusal.MIXED_ORIENTATION: (
        "The slice lies at an angle to the rest of its series and makes no volume with it; nothing needs to be done "
        "if it is a scout or a reformatted view."
    ),
    Refusal.DUPLICATE_POSITION: (
        "Different slices lie at the same place and no tag tells them apart: export each phase, echo or "
        "reconstruction as a series of its own."
    ),
    Refusal.SPACING_NONUNIFORM: (
        "The slices do not lie at equal distances on one line, as when one is missing: "
        "send the whole series from the archive again."
    ),
    Refusal.GANTRY_TILT: (
        "The slices are stacked at an angle to their planes, as with a tilted gantry: export the series "
        "corrected for the tilt if the scanner offers it."
    ),
    Refusal.SINGLE_SLICE: (
        "One slice makes no volume: send the rest of its series from the archive if there is more of it."
    ),
    Refusal.AMBIGUOUS_SERIES: (
        "Several series of this study match the plan's rule and none is preferred: let the study's coordinator "
        "make the rule narrower."
    ),
    Refusal.SERIES_NOT_SELECTED: (
        "The plan's rule asks for another kind of series; nothing needs to be done unless this one is meant."
    ),
    Refusal.LOCALIZER: "This is a scout image used to plan a scan; nothing needs to be done.",
    Refusal.DERIVED_SECONDARY: (
        "This is a screen capture or an image computed after the examination; "
        "nothing needs to be done if the original image is in the archive too."
    ),
    Refusal.BURNED_IN: (
        "The pixels carry burned-in text, or an ultrasound does not declare that they carry none: have it "
        "checked, and let the archive set Burned In Annotation (0028,0301) to NO where that is true."
    ),
    Refusal.MODALITY_MISMATCH: (
        "The image is of a modality this study does not use, or its header contradicts itself about it; "
        "nothing needs to be done unless it belongs to the study."
    ),
    Refusal.PHOTOMETRIC: (
        "The image is in colour or uses a palette: export it as grey scale (MONOCHROME1 or MONOCHROME2)."
    ),
    Refusal.RESCALE_MISSING: (
        "The CT does not say how stored values become Hounsfield units, or only some slices of an MR series have a "
        "rescale: export it with Rescale Slope and Intercept."
    ),
    Refusal.PATIENT_ID_MISSING: (
        "Patient ID (0010,0020) is empty, so the image cannot be kept on one side of the split: "
        "let the de-identification assign a pseudonym instead of an empty value."
    ),
    Refusal.LABEL_MISSING: (
        "No row of the label table matches this image, or no mask this series: add one if it belongs to the study."
    ),
    Refusal.LABEL_UNKNOWN: (
        "The label of this image, or every segment of its mask, is none of the plan's classes: correct the row in the "
        "label table, or name the segments as the plan does."
    ),
    Refusal.LABEL_CONFLICT: (
        "Rows of the label table, segments of one name, or identical images, disagree about this label: correct the "
        "label table or the masks."
    ),
    Refusal.MASK_TYPE: (
        "The mask does not say of each voxel whether it belongs to a segment: export it as a BINARY segmentation, or "
        "as a NIfTI file of integers without a scale."
    ),
    Refusal.MASK_GRID: (
        "The voxels of the mask are not voxels of the series it belongs to: export it on the grid of that series, in "
        "its frame of reference and not resampled."
    ),
    Refusal.MASK_OVERLAP: (
        "Two segments of the study cover the same voxel, and a voxel has one class: let whoever drew them decide."
    ),
    Refusal.UID_CONFLICT: (
        "Two different images, or masks, carry the same SOP Instance UID, or two patients the Accession Number of the "
        "label table, so a label cannot be told to belong to one: export them again under their own UIDs, or let "
        "the table name studies by their UIDs."
    ),
    Refusal.DUPLICATE: "Another file holds the same instance and is used; nothing needs to be done.",
    Refusal.DUPLICATE_PIXELS: ("Another instance has exactly the same pixels and is used; nothing needs to be done."),
    Refusal.OVER_PATIENT_CAP: ("The plan takes no more images of one patient; nothing needs to be done."),
    Refusal.WITHDRAWN: (
        "The patient withdrew consent (silo-agent withdraw) before this scan; nothing needs to be done, and the file "
        "is not named here."
    ),
}
