"""A file that h5py writes to and that reports write errors only at the end.

HDF5 does not survive a full disk: h5py 3.7 with HDF5 1.10 swallows the error when an object is
closed, so that a damaged file passes for a good one, or it ends the process. This file accepts
every write, keeps the first error, and raises it when its owner asks for it.
"""

from __future__ import annotations

from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any


class DeferredErrors:
    """A binary file object that h5py accepts in place of a file name.

    Args:
        path: The file; it is created or emptied.

    Raises:
        OSError: The file cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self._file = FileIO(path, "w+")
        self._failure: OSError | None = None

    def __enter__(self) -> DeferredErrors:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def raise_error(self) -> None:
        """Raise the first write error, if there was one.

        Raises:
            OSError: The first error that a write had.
        """
        if self._failure is not None:
            raise self._failure

    # -- methods that h5py calls---------------------------------------------------------------

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the position."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the present position."""
        return self._file.tell()

    def read(self, size: int) -> bytes:
        """Read bytes; zeros where nothing was written. h5py recognises a file by this method."""
        buffer = bytearray(size)
        self.readinto(buffer)
        return bytes(buffer)

    def readinto(self, buffer: Any) -> int:
        """Read bytes into a buffer; zeros where nothing was written."""
        view = memoryview(buffer).cast("B")
        count = self._file.readinto(view) or 0
        view[count:] = bytes(len(view) - count)
        return len(view)

    def write(self, data: Any) -> int:
        """Write, or keep the first error."""
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
        """Set the length, or keep the first error."""
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._failure = self._failure or error
            return self._file.tell() if size is None else size

    def flush(self) -> None:
        """Do nothing: writes are not buffered."""
