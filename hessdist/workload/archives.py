"""Checking the checksums of a file of torch.save, which PyTorch's own reader ignores."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO


def broken_record(source: Path | IO[bytes]) -> str | None:
    """Find a record of an archive whose bytes do not match their checksum.

    Args:
        source: The file of torch.save, or its content.

    Returns:
        The record's name; None if all records are whole, or if there are no checksums: a file of
        the older format, one written without them, or no archive at all.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            # torch.save does not compress: a record that unpacks to much more may be a bomb.
            records = [
                r for r in archive.infolist() if r.CRC and r.file_size <= 100 * r.compress_size
            ]
            size = source.stat().st_size if isinstance(source, Path) else None
            if size is not None and sum(r.compress_size for r in records) > size:
                return "directory"  # records overlap
            return next((r.filename for r in records if not _is_whole(archive, r)), None)
    except Exception:  # a damaged directory fails in many ways
        return "directory" if _is_archive(source) else None


def _is_whole(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bool:
    if record.external_attr & 0x10:  # a folder, from which PyTorch reads uninitialised memory
        return False
    try:
        with archive.open(record) as file:
            while file.read(2**22):
                pass
    except Exception:  # of the checksum or of unpacking
        return False
    return True


def _is_archive(source: Path | IO[bytes]) -> bool:
    head = b"PK\x03\x04"
    if isinstance(source, Path):
        with source.open("rb") as file:
            return file.read(len(head)) == head
    source.seek(0)
    return source.read(len(head)) == head
