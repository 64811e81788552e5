"""The job file: TOML, read and validated."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import tomlkit
from pydantic import BaseModel, ValidationError
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import InlineTable

from hessdist.config.job import Job, job_model
from hessdist.errors import JobError


def load_job(path: Path, overrides: Sequence[str] = ()) -> tuple[Job, str]:
    """Read a job file.

    Args:
        path: The TOML file.
        overrides: Changes "section.key=value", the value in TOML or as a bare string.

    Returns:
        The job, and the TOML text with the overrides in it.

    Raises:
        JobError: The file cannot be read, it is not TOML, or a key or value is wrong.
    """
    document = _document(_read(path), str(path))
    for override in overrides:
        _override(document, override)
    return parse_job(document.as_string(), str(path))


def _read(path: Path) -> str:
    """Read the text of a job file; another file than a regular one might never end."""
    remedy = "give the path of a TOML file, such as jobs/lenet_mnist.toml"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            what = "a folder" if path.is_dir() else "no regular file"
            raise JobError(f"the job file {path} cannot be read (it is {what})", remedy)
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise JobError(f"the job file {path} cannot be read ({error.strerror})", remedy) from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path} is not TOML ({error})", "correct it there") from error


def _document(text: str, where: str) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(text)
    except (TOMLKitError, ValueError, OverflowError, RecursionError) as error:
        # Some values, such as a date of month 13, give Python's own errors.
        raise JobError(f"{where} is not TOML ({error})", "correct it there") from error


def parse_job(text: str, where: str) -> tuple[Job, str]:
    """Validate the TOML text of a job.

    Args:
        text: The text.
        where: The file that it comes from, for messages.

    Returns:
        The job and the text.

    Raises:
        JobError: It is not TOML, or a key or value is wrong; the message is about the first one.
    """
    try:
        return job_model().model_validate(_document(text, where).unwrap()), text
    except ValidationError as error:
        raise JobError(*_complaint(error, where)) from error


def _override(document: tomlkit.TOMLDocument, override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not last:
        raise JobError(f"--set {override} sets nothing", "write --set section.key=value")
    value = _value(override, text.strip())
    table: Any = document
    for section in sections:
        if section not in table:
            inline = isinstance(table, InlineTable)
            table[section] = tomlkit.inline_table() if inline else tomlkit.table()
        table = table[section]
        if not hasattr(table, "keys"):
            raise JobError(
                f"--set {override}: '{section}' is not a section", "see docs/job-file.md"
            )
    table[last] = value


def _value(override: str, text: str) -> Any:
    """The value of an override: TOML, or a bare word, which is a string."""
    try:
        override.encode()
    except UnicodeEncodeError as error:
        raise JobError(f"--set {override!a} is not UTF-8", "write the value in UTF-8") from error
    try:
        parsed = tomlkit.parse(f"x = {text}")
    except (TOMLKitError, ValueError, RecursionError):
        return text
    return parsed["x"] if len(parsed) == 1 else text


def _complaint(error: ValidationError, where: str) -> tuple[str, str]:
    """Return the first complaint of pydantic: what is wrong, and the remedy."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = get_close_matches(location[-1], known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
        return f"{where}: unknown key '{key}'", hint
    if first["type"] == "missing":
        what = "section" if len(location) == 1 else "key"
        return f"{where}: the {what} '{key}' is missing", "add it; see docs/job-file.md"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict | BaseModel) else f" (it is {first['input']!r})"
    return f"{where}: {key or 'job'}: {message}{given}", "correct it; see docs/job-file.md"


def _known_keys(location: Sequence[str]) -> list[str]:
    section: Any = job_model()
    for part in location:
        annotation = section.model_fields[part].annotation
        section = next((one for one in get_args(annotation) if one is not NoneType), annotation)
    return list(section.model_fields)
