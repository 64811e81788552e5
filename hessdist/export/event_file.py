"""Event files of TensorBoard, written without torch and TensorFlow, and added to as a run grows.

Records are added to a file that has records of the same result, so that a TensorBoard that reads
it shows them at once. A file that has anything else is written anew as a whole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from hessdist.errors import OutputError
from hessdist.export.points import Point
from hessdist.present.spectrum_histogram import SpectrumHistogram
from hessdist.printable import printable
from hessdist.results.files import unwritable, write_bytes
from hessdist.results.outputs import EXPORT_WRITER, Kind, require_output
from hessdist.workload.optional import import_library

NAME = "events.out.tfevents.hessdist"
"""The name of our event file in the folder of a result; TensorBoard reads files with `tfevents`."""


class EventFile:
    """The event file of a result.

    Args:
        folder: The folder that TensorBoard shows as one run.
        fingerprint: The fingerprint of the result's job.
        option: The option that names the folder, for messages.

    Raises:
        DependencyError: The package tensorboard cannot be imported.
        OutputError: The folder has another file of this name.
    """

    def __init__(self, folder: Path, fingerprint: str, option: str) -> None:
        protos = "tensorboard.compat.proto"
        self._event: Any = import_library(f"{protos}.event_pb2", "tensorboard").Event
        self._summary: Any = import_library(f"{protos}.summary_pb2", "tensorboard").Summary
        records = import_library("tensorboard.summary.writer.record_writer", "tensorboard")
        self._records: Any = records.RecordWriter
        self.path, self._option = folder / NAME, option
        require_output(self.path, Kind.EVENTS, option=option)
        writer = {"writer": f"{EXPORT_WRITER} {fingerprint}"}
        self._source: bytes = self._event(source_metadata=writer).SerializeToString()

    def scalars(self, point: Point) -> bytes:
        """Return the record of a checkpoint's numbers, rounded to single precision."""
        values = [
            self._summary.Value(tag=printable(name), simple_value=value)
            for name, value in point.scalars.items()
        ]
        return self._record(point.step, point.time, values)

    def histogram(self, found: SpectrumHistogram, time: float) -> bytes:
        """Return the record of a histogram, with its own bins and counts."""
        edges, counts = found.edges.tolist(), found.counts.tolist()
        bins = {
            "min": edges[0],
            "max": edges[-1],
            "num": sum(counts),
            "sum": found.total,
            "sum_squares": found.squares,
            "bucket_limit": edges[1:],
            "bucket": counts,
        }
        value = self._summary.Value(tag=printable(found.name), histo=bins)
        return self._record(found.step, time, [value])

    def update(self, wanted: Sequence[bytes]) -> None:
        """Bring the file up to date. Not collective.

        Args:
            wanted: All records that it has to have. Records that it has are left as they are.

        Raises:
            OutputError: The file cannot be written, or it is no event file of ours.
        """
        if not wanted:
            return
        require_output(self.path, Kind.EVENTS, option=self._option)
        there, end = self._read()
        if there[1:2] == [self._source] and set(there[2:]) <= set(wanted):
            missing = [record for record in wanted if record not in set(there)]
            if missing:
                self._append(self._framed(missing), end)
            return
        begin = self._event.FromString(wanted[0]).wall_time  # where TensorBoard begins to count
        version = self._event(wall_time=begin, file_version="brain.Event:2").SerializeToString()
        content = self._framed([version, self._source, *wanted])
        write_bytes(self.path, content, self._option)

    def _record(self, step: int, time: float, values: list[Any]) -> bytes:
        summary = self._summary(value=values)
        record: bytes = self._event(step=step, wall_time=time, summary=summary).SerializeToString()
        return record

    def _framed(self, records: Sequence[bytes]) -> bytes:
        """Return records with their lengths and checksums, as the file has them."""
        content = BytesIO()
        writer = self._records(content)
        for record in records:
            writer.write(record)
        return content.getvalue()

    def _read(self) -> tuple[list[bytes], int]:
        """Return the whole records of the file, and where the last one of them ends."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return [], 0
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be read ({error.strerror})",
                f"correct its permissions, or change {self._option}",
            ) from error
        records, end = [], 0
        for begin, length in _places(content):
            records.append(content[begin : begin + length])
            end = begin + length + 4
        return records, end

    def _append(self, content: bytes, end: int) -> None:
        """Put records behind the last whole one. A kill may have left a part of another one."""
        try:
            with self.path.open("r+b") as file:
                file.truncate(end)
                file.seek(end)
                file.write(content)
        except OSError as error:
            failure = unwritable(self.path, error, self._option)
            raise failure from error


def _places(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield where each whole record begins, and its length: length, checksum, record, checksum."""
    place = 0
    while place + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        if place + 12 + length + 4 > len(content):
            return
        yield place + 12, length
        place += 12 + length + 4
