"""Directives that write tables from the code, so that they cannot go stale.

`job-section`    the keys of a section of the job file, from the pydantic model
`job-example`    a job with every key at its default, compared with the model
`hdf5-datasets`  the datasets of a result, from the schema
`command`        usage and options of a command, from the command line's own parser

A section or a command that no page describes is a warning, so an error of `make docs`.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any, ClassVar

import typer
from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from hessdist.cli.app import app as command_line
from hessdist.config.job import job_model
from hessdist.results import schema

log = logging.getLogger(__name__)


def note_page(env: Any) -> None:
    """Have the present page read again at every build: it depends on the code."""
    env.__dict__.setdefault("hessdist_pages", set()).add(env.docname)


def outdated_pages(app: Any, env: Any, added: Any, changed: Any, removed: set[str]) -> set[str]:
    """Pages that `note_page` has seen in an earlier build."""
    return env.__dict__.get("hessdist_pages", set()) & env.found_docs


class MarkdownDirective(SphinxDirective):
    """A directive whose output is written in Markdown."""

    def run(self) -> list[nodes.Node]:
        note_page(self.env)
        return self.parse_text_to_nodes("\n".join(self.markdown()), allow_section_headings=True)

    def markdown(self) -> Iterator[str]:
        raise NotImplementedError

    def describes(self, kind: str, name: str) -> None:
        """Note that this page describes something."""
        described = self.env.__dict__.setdefault("hessdist_described", {})
        described.setdefault(kind, {})[name] = self.env.docname


def table(header: list[str], rows: list[list[str]], widths: str) -> Iterator[str]:
    """A table in MyST; cells are Markdown."""
    yield from ("::::{list-table}", ":header-rows: 1", f":widths: {widths}", "")
    for row in [header, *rows]:
        for number, cell in enumerate(row):
            yield f"{'  - ' if number else '* - '}{cell}"
    yield from ("::::", "")


def in_markdown(text: str) -> str:
    """A docstring's words: quoted names in literal type."""
    text = " ".join(text.split())
    literal = re.compile(r'"([^" ]+)"')
    pieces = literal.split(text)  # text, name, text, name, ...
    return "".join(
        f"`{piece}`" if number % 2 else re.sub(r"([_*|<\[])", r"\\\1", piece)
        for number, piece in enumerate(pieces)
    )


# -- the job file ----------------------------------------------------------------------------

WORDS = {
    "string": "text",
    "object": "table",
    "boolean": "true, false",
    "number": "number",
    "integer": "integer",
}
SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def type_of(key: dict[str, Any]) -> str:
    """A JSON schema's type in words."""
    if "anyOf" in key:
        return type_of(next(one for one in key["anyOf"] if one.get("type") != "null"))
    if "enum" in key:
        return ", ".join(f'`"{value}"`' for value in key["enum"])
    if key["type"] == "array":
        return f"list: {type_of(key['items'])}"
    if key.get("format") == "path":
        return "path"
    bounds = [
        f"{sign} {key[name]:g}"
        for name, sign in SIGNS.items()
        if name in key and abs(key[name]) < 2**63  # what fits into 64 bits goes without saying
    ]
    return f"{WORDS[key['type']]} {', '.join(bounds)}".strip()


def default_of(name: str, key: dict[str, Any], required: list[str]) -> str:
    """A key's default as TOML."""
    if name in required:
        return "required"
    return "not set" if key.get("default") is None else f"`{json.dumps(key['default'])}`"


def model_of(key: dict[str, Any]) -> str | None:
    """The model of a key that is a section."""
    ways = [key, *key.get("allOf", []), *key.get("anyOf", [])]
    found = [way["$ref"].rsplit("/", 1)[-1] for way in ways if "$ref" in way]
    return found[0] if found else None


def sections_of_the_job() -> dict[str, str]:
    """Sections of the job file, those inside of others too, and the names of their models."""
    whole = job_model().model_json_schema()

    def below(keys: dict[str, Any], before: str) -> Iterator[tuple[str, str]]:
        for name, key in keys.items():
            if model := model_of(key):
                inner = dict(below(whole["$defs"][model]["properties"], f"{before}{name}."))
                # A section of sections alone has no keys to describe.
                yield from inner.items() if inner else [(before + name, model)]

    return dict(below(whole["properties"], ""))


class JobSection(MarkdownDirective):
    """`{job-section} spectrum`; without an argument, the keys outside of sections."""

    optional_arguments = 1

    def markdown(self) -> Iterator[str]:
        whole, sections = job_model().model_json_schema(), sections_of_the_job()
        keys = {name: key for name, key in whole["properties"].items() if not model_of(key)}
        required = whole["required"]
        if self.arguments:
            name = self.arguments[0]
            if name not in sections:
                raise self.error(f"the job file has no section '{name}'")
            self.describes("section", name)
            model = whole["$defs"][sections[name]]
            yield in_markdown(model["description"])
            yield "The section is required." if name in required else ""
            yield ""
            keys, required = model["properties"], model.get("required", [])
        rows = [
            [
                f"`{name}`",
                type_of(key),
                default_of(name, key, required),
                in_markdown(key.get("description", "")),
            ]
            for name, key in keys.items()
        ]
        yield from table(["key", "type", "default", "meaning"], rows, "18 20 17 45")


class JobExample(SphinxDirective):
    """A job in TOML that has every key: values are the defaults, keys without one in comments."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        note_page(self.env)
        text = "\n".join(self.content)
        given, sections = tomllib.loads(text), sections_of_the_job()
        whole = job_model().model_json_schema()
        top, *parts = re.split(r"^(?=\[)", text, flags=re.MULTILINE)
        texts = {part[1 : part.index("]")]: part for part in parts}
        for name in given.keys() - whole["properties"].keys():
            raise self.error(f"the job file has no '{name}'")
        keys = {name: key for name, key in whole["properties"].items() if not model_of(key)}
        self._compare("", {k: v for k, v in given.items() if not isinstance(v, dict)}, keys, top)
        for name, title in sections.items():
            keys = whole["$defs"][title]["properties"]
            values = given
            for part in name.split("."):
                values = values.get(part, {})
            self._compare(f"{name}.", values, keys, texts.get(name, ""))
        block = nodes.literal_block(text, text, language="toml")
        self.set_source_info(block)
        return [block]

    def _compare(
        self, section: str, given: dict[str, Any], keys: dict[str, Any], text: str
    ) -> None:
        for name in given.keys() - keys.keys():
            raise self.error(f"the job file has no key '{section}{name}'")
        for name, key in keys.items():
            default = key.get("default", ...)  # a required key has none
            if default is None:
                if not re.search(rf"^# {name} =", text, re.MULTILINE):
                    raise self.error(f"the example lacks the comment '# {name} =' of '{section}'")
            elif name not in given:
                raise self.error(f"the example lacks '{section}{name}'")
            elif default is not ... and given[name] != default:
                raise self.error(f"'{section}{name}' is not the default, {default!r}")


# -- the HDF5 file ---------------------------------------------------------------------------

DTYPES = {"f8": "float64", "f4": "float32", "i8": "int64", "?": "bool"}
SYMBOLS = {"step": "S", "largest": "k", "smallest": "m", "parameter": "d"}


class Hdf5Datasets(MarkdownDirective):
    """`{hdf5-datasets} tables`, `vectors` or `scales`."""

    required_arguments = 1

    def markdown(self) -> Iterator[str]:
        what = self.arguments[0]
        if what == "scales":
            scales = {schema.STEP.name: schema.STEP.long_name, **schema.DIMENSIONS}
            rows = [[f"`{name}`", in_markdown(meaning)] for name, meaning in scales.items()]
            yield from table(["scale", "what it counts"], rows, "20 80")
            return
        fields = {"tables": schema.TABLES, "vectors": schema.VECTORS}[what]
        rows = [
            [
                f"`{field.name}`",
                f"({', '.join(SYMBOLS[name] for name in field.dimensions)})",
                DTYPES[field.dtype],
                f"`{field.units}`",
                in_markdown(field.long_name),
            ]
            for field in fields
        ]
        header = ["dataset", "dimensions", "type", "units", "long name"]
        yield from table(header, rows, "30 14 12 8 36")


# -- the command line ------------------------------------------------------------------------


def commands() -> dict[str, Any]:
    """Commands by name, as the parser has them."""
    return dict(typer.main.get_command(command_line).commands)  # type: ignore[attr-defined]


class Command(MarkdownDirective):
    """`{command} spectrum`."""

    required_arguments = 1
    header: ClassVar = ["argument", "meaning"]

    def markdown(self) -> Iterator[str]:
        name = self.arguments[0]
        if name not in commands():
            raise self.error(f"there is no command '{name}'")
        self.describes("command", name)
        command = commands()[name]
        words, rows = [], []
        for parameter in command.params:
            shown = parameter.metavar or ""
            if parameter.param_type_name == "argument":
                words.append(shown)
                spelled = f"`{shown}`"
            else:
                words.append(f"[{' '.join(filter(None, [parameter.opts[0], shown]))}]")
                spelled = ", ".join(f"`{option}`" for option in parameter.opts)
                spelled += f" `{shown}`" if shown else ""
            rows.append([spelled, in_markdown(parameter.help or "")])
        yield from ("```text", " ".join(["hessdist", name, *words]), "```", "")
        yield in_markdown(command.help or "")
        yield ""
        if rows:
            yield from table(self.header, rows, "35 65")


# -- nothing is left out ---------------------------------------------------------------------


def check_described(app: Any, env: Any) -> None:
    """Warn about sections and commands that no page describes."""
    described = env.__dict__.get("hessdist_described", {})
    for kind, names, page in (
        ("section", sections_of_the_job(), "job-file.md"),
        ("command", commands(), "commands.md"),
    ):
        for name in names:
            if name not in described.get(kind, {}):
                log.warning("no page describes the %s '%s': add it to docs/%s", kind, name, page)


def forget_page(app: Any, env: Any, docname: str) -> None:
    """What a page describes is found out anew when it is read again."""
    for names in env.__dict__.get("hessdist_described", {}).values():
        for name in [name for name, page in names.items() if page == docname]:
            del names[name]


def setup(app: Any) -> dict[str, bool]:
    """Sphinx's hook."""
    app.add_directive("job-section", JobSection)
    app.add_directive("job-example", JobExample)
    app.add_directive("hdf5-datasets", Hdf5Datasets)
    app.add_directive("command", Command)
    app.connect("env-get-outdated", outdated_pages)
    app.connect("env-purge-doc", forget_page)
    app.connect("env-check-consistency", check_described)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
