"""A file for HDF5 to write to that never fails, and tells afterwards whether it did.

HDF5 does not survive a disk that is full: h5py 3.7 with HDF5 1.10 swallows the error when an object
is closed, so that a damaged file passes for a good one, or ends the process. This file takes every
write, keeps the first error, and leaves it to its owner to ask.
"""

from __future__ import annotations

from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any


class Unfailing:
    """A binary file, as h5py takes them in place of a name.

    Args:
        path: The file; it is made, or emptied.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._file = FileIO(path, "w+")
        self._failure: OSError | None = None

    def __enter__(self) -> Unfailing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def complain(self) -> None:
        """Say whether all is written.

        Raises:
            OSError: The first error.
        """
        if self._failure is not None:
            raise self._failure

    # -- what h5py calls ---------------------------------------------------------------------

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The present place."""
        return self._file.tell()

    def read(self, size: int) -> bytes:
        """Read; zeros where nothing was written. By this h5py knows a file."""
        buffer = bytearray(size)
        self.readinto(buffer)
        return bytes(buffer)

    def readinto(self, buffer: Any) -> int:
        """Read; zeros where nothing was written."""
        view = memoryview(buffer).cast("B")
        count = self._file.readinto(view) or 0
        view[count:] = bytes(len(view) - count)
        return len(view)

    def write(self, data: Any) -> int:
        """Write, or keep the error."""
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view) and self._failure is None:  # the system takes 2 GiB at a time
                done += self._file.write(view[done:]) or 0
        except OSError as error:
            self._failure = self._failure or error
        if done < len(view):
            self._file.seek(len(view) - done, 1)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the length, or keep the error."""
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._failure = self._failure or error
            return self._file.tell() if size is None else size

    def flush(self) -> None:
        """Nothing is held back here."""
