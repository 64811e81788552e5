"""Checking the checksums of a file of torch.save, which PyTorch's own reader ignores."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

_MOST_TIMES = 100
"""How often its own size an archive may unpack to; torch.save itself does not compress."""


def fault_of(source: Path | IO[bytes]) -> str | None:
    """Find out whether an archive is damaged: every record is compared with its checksum.

    The records are read as a stream, a few MiB at a time.

    Args:
        source: The file of torch.save, or its content.

    Returns:
        What is wrong; None if all records are whole, or if there are no checksums: a file of the
        older format, one written without them, or no archive at all.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            records = [record for record in archive.infolist() if record.file_size]
            fault = _fault_of_sizes(records, _size(source))
            if fault is not None or not any(record.CRC for record in records):
                return fault
            broken = next((r.filename for r in records if not _is_whole(archive, r)), None)
    except Exception:  # a damaged directory fails in many ways
        return "its directory of records cannot be read" if _is_archive(source) else None
    return None if broken is None else f"the checksum of its record {broken!a} does not match"


def _fault_of_sizes(records: list[zipfile.ZipInfo], size: int) -> str | None:
    """Refuse an archive whose records overlap, or unpack to far more than there is."""
    if sum(record.compress_size for record in records) > size:
        return "its records overlap"
    unpacked = sum(record.file_size for record in records)
    if unpacked > max(_MOST_TIMES * size, 2**30):
        return f"its {size / 2**20:.1f} MiB would unpack to {unpacked / 2**30:.1f} GiB"
    return None


def _size(source: Path | IO[bytes]) -> int:
    return source.stat().st_size if isinstance(source, Path) else source.seek(0, 2)


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
