"""The checksums of a file of torch.save, which PyTorch's own reader passes over."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

_PIECE = 2**22  # bytes
_RATIO = 100  # above it a record may be a bomb, which is not unpacked
_FOLDER = 0x10  # among the attributes of a record
_HEAD = b"PK\x03\x04"


def broken_record(source: Path | IO[bytes]) -> str | None:
    """Find a record of an archive whose bytes are not those that were written.

    Args:
        source: A file of torch.save, or its content.

    Returns:
        The record's name; None where all are whole, or where there are no checksums: a file of the
        older form, one written without them, or no archive at all.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            records = [one for one in archive.infolist() if one.CRC and not _may_be_bomb(one)]
            whole = source.stat().st_size if isinstance(source, Path) else None
            stored = sum(one.compress_size for one in records)
            if whole is not None and stored > whole:
                return "directory"  # of records that overlap
            return next((one.filename for one in records if not _is_whole(archive, one)), None)
    except Exception:  # a damaged directory fails in many ways
        return "directory" if _is_archive(source) else None


def _may_be_bomb(record: zipfile.ZipInfo) -> bool:
    # torch.save does not compress at all.
    return record.file_size > _RATIO * record.compress_size


def _is_whole(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bool:
    if record.external_attr & _FOLDER:  # of which PyTorch reads nothing, into memory as it is
        return False
    try:
        with archive.open(record) as file:
            while file.read(_PIECE):
                pass
    except Exception:  # of the checksum, or of what unpacks it
        return False
    return True


def _is_archive(source: Path | IO[bytes]) -> bool:
    if isinstance(source, Path):
        with source.open("rb") as file:
            return file.read(len(_HEAD)) == _HEAD
    source.seek(0)
    return source.read(len(_HEAD)) == _HEAD
