"""What can go wrong, each with its remedy and its exit status."""

from __future__ import annotations

from typing import Self


class HessdistError(Exception):
    """A failure that hessdist foresees: one line says what, where and the remedy.

    Args:
        what: What went wrong and where.
        remedy: What the user can do about it; appended after a semicolon.
    """

    exit_status = 1
    agreed = False
    """Whether all ranks raise it."""

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(what, remedy)

    def on_all_ranks(self) -> Self:
        """Mark the error as one that all ranks raise, and return it."""
        self.agreed = True
        return self

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}" if self.remedy else self.what


class InputError(HessdistError):
    """Bad input: the job file, the data, a checkpoint, an option, an output folder."""

    exit_status = 2


class JobError(InputError):
    """The job file or an override of it is wrong."""


class WorkloadError(InputError):
    """The model, the loss or a factory does not do what a workload needs."""


class DataError(InputError):
    """A data set is missing, truncated or does not fit the model."""


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, or of another model."""


class OutputError(InputError):
    """The result cannot be written, or something else is already there."""


class FullDiskError(OutputError):
    """The result cannot be written because the disk is full."""


class ResultError(InputError):
    """A result file is damaged, or is not one of ours."""


class UntrustedError(ResultError, ValueError):
    """A result file holds something that hessdist never writes, and that it does not read."""


class ReadingError(ResultError):
    """A result file cannot be read now; nothing says that it is damaged."""


class DependencyError(InputError):
    """A library that this step needs is missing or built in a way that cannot serve."""


class NumericalError(HessdistError):
    """A loss or a product is not finite."""


class SymmetryError(NumericalError):
    """An operator is not symmetric, beyond rounding."""

    exit_status = 2


class RankError(HessdistError):
    """An error on another rank that hessdist did not foresee."""


class Interrupted(HessdistError):  # noqa: N818 - as KeyboardInterrupt
    """Ctrl-C ended the program at once."""

    exit_status = 130


class Stopped(HessdistError):  # noqa: N818 - no error, as StopIteration is none
    """A signal asked for an end, and all ranks agreed to it; what is done is on disk."""

    exit_status = 75
