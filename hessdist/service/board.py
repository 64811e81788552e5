"""The event file of TensorBoard that a sweep keeps up to date, checkpoint by checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hessdist.config.job import Job
from hessdist.errors import HessdistError
from hessdist.export.event_file import EventFile
from hessdist.export.points import Point, folder_name, scalars_of
from hessdist.present.labels import matrix_name
from hessdist.results.files import unwritable
from hessdist.results.parts import read_row
from hessdist.results.writer import part_path, parts_of
from hessdist.service import locks

_State = tuple[int, int, int]  # of a file: when it was written, its size, its inode


class Board:
    """Adds the numbers of each finished checkpoint to an event file.

    Sweeps that share a result share its event file as well. A file that cannot be written does not
    end a sweep: a line says so, once, and `hessdist export` writes the file afterwards.

    Args:
        job: The job; without `service.tensorboard` nothing is written.
        line: Writes a line to the console.

    Raises:
        DependencyError: The package tensorboard cannot be imported.
        OutputError: The folder cannot be made, or another file has the name of the event file.
    """

    def __init__(self, job: Job, line: Callable[[str], None]) -> None:
        self._path, self._fingerprint, self._line = job.output.path, job.fingerprint(), line
        self._matrix = matrix_name(job.spectrum.operator, job.spectrum.metric)
        self._points: dict[Path, tuple[_State, Point]] = {}
        self._file: EventFile | None = None
        if (folder := job.service.tensorboard) is not None:
            place = folder / folder_name(self._path)
            self._file = EventFile(place, self._fingerprint, "--tensorboard")
            try:
                place.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                failure = unwritable(place, error, "--tensorboard")
                raise failure from error
            self._line(f"TensorBoard: {self._file.path}")

    def add(self, step: int) -> None:
        """Add a checkpoint that is finished, unless it is there. Not collective."""
        if self._file is None:
            return
        part = part_path(self._path, step, self._fingerprint)
        known = self._points.get(part)
        if known is None or known[0] != _state(part):
            self.update()

    def update(self) -> None:
        """Bring the event file up to date with all finished checkpoints. Not collective."""
        if self._file is None:
            return
        parts = parts_of(self._path, self._fingerprint)
        for part in parts:
            self._read(part)
        points = [self._points[part][1] for part in parts if part in self._points]
        try:
            with locks.holding(locks.index_lock(self._path)):
                self._file.update([self._file.scalars(point) for point in points])
        except HessdistError as error:
            self._line(
                f"warning: {error.what}; no more is written for TensorBoard, "
                "use `hessdist export` afterwards"
            )
            self._file = None

    def _read(self, part: Path) -> None:
        """Read the numbers of a checkpoint, if its file has changed."""
        state = _state(part)
        known = self._points.get(part)
        if state is None or (known is not None and known[0] == state):
            return
        self._points.pop(part, None)
        try:
            row, time = read_row(part), part.stat().st_mtime
        except (HessdistError, OSError, KeyError, RuntimeError, ValueError):
            return  # it is damaged, and will be solved again
        self._points[part] = state, Point(row["step"], time, scalars_of(row, self._matrix))


def _state(part: Path) -> _State | None:
    try:
        status = part.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
