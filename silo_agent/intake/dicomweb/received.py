"""Whether what an archive sent is the instance that was asked for. Everything else is for `read_image` to decide."""

from io import BytesIO
from pathlib import Path

from pydicom.filereader import read_dataset, read_partial

from silo_agent.intake.encoding import DEFLATED
from silo_agent.intake.image import NotUsable, looks_like_dicom, quiet
from silo_agent.intake.refusals import Refusal

_TRANSFER_SYNTAX_UID, _SOP_INSTANCE_UID = 0x00020010, 0x00080018
_BEFORE_META, _MAGIC = 132, b"DICM"  # PS3.10 section 7.1
_START_BYTES = 1024 * 1024  # the UID stands among the first elements


def judge_received(path: Path, sop_uid: str) -> Refusal | None:
    """READ_ERROR for what is no DICOM file, UID_CONFLICT for another instance. Raises `OSError` of our own disk.

    No DICOM file is no NOT_DICOM here: an archive holds nothing else, so this one got lost and counts as lost.
    A file without a SOP Instance UID, or that cannot be read so far, is left to `read_image`, which refuses it.
    """
    with path.open("rb") as file:
        try:
            looks_like_dicom(file)
        except NotUsable:
            return Refusal.READ_ERROR
        file.seek(0)
        start = file.read(_START_BYTES)
    return Refusal.UID_CONFLICT if _sop_uid_of(start) not in {"", sop_uid} else None


def _sop_uid_of(start: bytes) -> str:
    """From the first bytes of a file; "" where they do not tell, or only after being inflated."""
    try:
        with quiet():
            if _transfer_syntax_of(start) in DEFLATED:
                return ""
            ds = read_partial(
                BytesIO(start),
                stop_when=lambda tag, _vr, _length: int(tag) > _SOP_INSTANCE_UID,
                force=True,
                specific_tags=[_SOP_INSTANCE_UID],
            )
            return str(ds.get("SOPInstanceUID", "")).strip(" \0")
    except Exception:  # noqa: BLE001 - what pydicom raises on damaged bytes has no common root and no list
        return ""


def _transfer_syntax_of(start: bytes) -> str:
    has_preamble = start[:_BEFORE_META].endswith(_MAGIC) and len(start) > _BEFORE_META
    meta = read_dataset(
        BytesIO(start[_BEFORE_META:] if has_preamble else start),
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag.group != 2,
        specific_tags=[_TRANSFER_SYNTAX_UID],
    )
    return str(meta.get("TransferSyntaxUID", "")).strip(" \0")
