"""Width, font size, style and file formats of figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib import style as styles

from hessdist.errors import InputError, OutputError
from hessdist.results.outputs import Kind, require_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg")


@dataclass(frozen=True)
class Look:
    """The look of the figures of a paper.

    Args:
        width: The width in centimetres; the height keeps its proportion. None: as drawn, 17.8 cm.
        font_size: The font size in points; None: that of the style, usually 10.
        style: The name of a style of matplotlib's, or an .mplstyle file.
        formats: The formats of the files, in order.
        titled: True if figures have a title.

    Raises:
        InputError: A value is out of its range, or the style cannot be read.
    """

    width: float | None = None
    font_size: float | None = None
    style: str | None = None
    formats: Sequence[str] = ("png", "pdf")
    titled: bool = True

    def __post_init__(self) -> None:
        for name, value in (("--width", self.width), ("--font-size", self.font_size)):
            if value is not None and not 0 < value < 200:
                raise InputError(f"{name} {value:g} is out of range", "give a number below 200")
        for kind in self.formats:
            if kind not in FORMATS:
                raise InputError(
                    f"figures cannot be of format '{kind}'", f"use {', '.join(FORMATS)}"
                )
        try:
            with styles.context(self.style or "default"):
                pass
        except (OSError, ValueError, ImportError) as error:
            raise InputError(
                f"the style '{self.style}' cannot be read",
                "name an .mplstyle file, or one of matplotlib's: ggplot, grayscale, ...",
            ) from error

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply the font and the style to all that is drawn and saved in this context.

        Yields:
            Nothing.
        """
        with styles.context(self.style or "default"), mpl.rc_context():
            if self.font_size is not None:
                mpl.rcParams["font.size"] = self.font_size
            # Text stays text in vector files, and the same data give the same bytes.
            mpl.rcParams.update({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "x"})
            mpl.rcParams["text.usetex"] = False  # names of a result are no commands of TeX
            yield

    def save(self, figure: Figure, folder: Path, name: str) -> list[Path]:
        """Save a figure, drawn within `applied`, in each format, and return the paths of the files.

        Raises:
            InputError: A figure of this size and style cannot be drawn.
            OutputError: The folder cannot be written, or another file has the name of a figure.
        """
        if not self.titled:
            figure.suptitle("")
        if self.width is not None:
            width, height = figure.get_size_inches()
            inches = self.width / 2.54
            figure.set_size_inches(inches, height / width * inches)
        # No date in the file: the same data give the same bytes.
        undated: dict[str, dict[str, str | None]] = {
            "png": {"Software": None},
            "pdf": {"CreationDate": None},
            "svg": {"Date": None},
        }
        paths = [folder / f"{name}.{kind}" for kind in self.formats]
        for path, kind in zip(paths, self.formats, strict=True):
            require_output(path, Kind[kind.upper()], option="-o")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path, kind in zip(paths, self.formats, strict=True):
                figure.savefig(path, dpi=200, metadata=undated[kind])
        except ValueError as error:
            raise InputError(
                f"{paths[0]}: a figure cannot be drawn ({error})",
                "give a larger --width, or another --style",
            ) from error
        except OSError as error:
            raise OutputError(
                f"the figure {paths[0]} cannot be written ({error.strerror})",
                "choose a folder by -o",
            ) from error
        return paths
