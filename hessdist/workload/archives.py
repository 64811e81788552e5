"""The checksums of a file of torch.save, which PyTorch's own reader passes over."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

_PIECE = 2**22  # bytes


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
            records = [one for one in archive.infolist() if one.CRC and _is_stored(one)]
            whole = source.stat().st_size if isinstance(source, Path) else None
            if whole is not None and sum(one.file_size for one in records) > whole:
                return None  # records that overlap; the reader itself will tell
            return next((one.filename for one in records if not _is_whole(archive, one)), None)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):
        return None


def _is_stored(record: zipfile.ZipInfo) -> bool:
    # torch.save does not compress, and what does may be a bomb.
    return record.compress_type == zipfile.ZIP_STORED and record.file_size == record.compress_size


def _is_whole(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(record) as file:
            while file.read(_PIECE):
                pass
    except zipfile.BadZipFile:
        return False
    return True
