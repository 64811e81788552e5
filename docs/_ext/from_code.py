"""Directives that write tables from the code, so that they cannot go stale.

`job-section`      the keys of a section of the job file, from the pydantic model
`hdf5-datasets`    the datasets of a result, from the schema
`command`          usage and options of a command, from the command line's own parser
`collective-calls` which public calls are collective, from the docstrings
`rooms`            API pages of the inner modules, room by room

A section, or a command, that no page describes is a warning, so an error of `make docs`.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
import tokenize
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import typer
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import hessdist
from hessdist.cli import app as command_line
from hessdist.job import Job
from hessdist.results import schema

PACKAGE = Path(hessdist.__file__).parent
PUBLIC = {home: name for name, home in hessdist._HOMES.items()}
log = logging.getLogger(__name__)


class MarkdownDirective(SphinxDirective):
    """A directive whose output is written in Markdown."""

    def run(self) -> list[nodes.Node]:
        text = "\n".join(self.markdown())
        return self.parse_text_to_nodes(text, allow_section_headings=True)

    def markdown(self) -> Iterator[str]:
        raise NotImplementedError

    def describes(self, kind: str, name: str) -> None:
        """Note that this page describes something; what nothing describes is warned about."""
        described = self.env.__dict__.setdefault("hessdist_described", {})
        described.setdefault(kind, {})[name] = self.env.docname


def table(header: list[str], rows: list[list[str]], widths: str = "auto") -> Iterator[str]:
    """A table in MyST; cells are Markdown."""
    yield "::::{list-table}"
    yield ":header-rows: 1"
    yield f":widths: {widths}"
    yield ""
    for row in [header, *rows]:
        for number, cell in enumerate(row):
            yield f"{'* - ' if number == 0 else '  - '}{cell}"
    yield "::::"
    yield ""


# -- the job file ----------------------------------------------------------------------------


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
    words = {
        "string": "text",
        "object": "table",
        "boolean": "true, false",
        "number": "number",
        "integer": "integer",
    }[key["type"]]
    signs = {
        "minimum": "≥",
        "exclusiveMinimum": ">",
        "maximum": "≤",
        "exclusiveMaximum": "<",
    }
    bounds = [
        f"{sign} {key[name]:g}" for name, sign in signs.items() if abs(key.get(name, 2**63)) < 2**63
    ]
    return " ".join([words, ", ".join(bounds)]).strip()


def default_of(name: str, key: dict[str, Any], required: list[str]) -> str:
    if name in required:
        return "required"
    if key.get("default") is None:
        return "not set"
    return f"`{json.dumps(key['default'])}`"


def in_markdown(text: str) -> str:
    """A docstring's words: quoted names in literal type."""
    text = " ".join(text.split()).replace("_", r"\_").replace("*", r"\*")
    return re.sub(r'"([^" ]+)"', lambda match: "`" + match[1].replace("\\", "") + "`", text)


class JobSection(MarkdownDirective):
    """`{job-section} spectrum`; without an argument, the keys outside of sections."""

    optional_arguments = 1

    def markdown(self) -> Iterator[str]:
        whole = Job.model_json_schema()
        if self.arguments:
            name = self.arguments[0]
            if name not in whole["properties"]:
                raise self.error(f"the job file has no section '{name}'")
            self.describes("section", name)
            reference = whole["properties"][name]
            title = (reference.get("$ref") or reference["allOf"][0]["$ref"]).rsplit("/", 1)[-1]
            section = whole["$defs"][title]
            yield in_markdown(section["description"])
            if name in whole["required"]:
                yield "This section is required."
            yield ""
        else:
            own = {k: v for k, v in whole["properties"].items() if "$ref" not in v}
            section = {"properties": own, "required": whole["required"]}
        required = section.get("required", [])
        rows = [
            [
                f"`{name}`",
                type_of(key),
                default_of(name, key, required),
                in_markdown(key.get("description", "")),
            ]
            for name, key in section["properties"].items()
        ]
        yield from table(["key", "type", "default", "meaning"], rows, "15 20 15 50")


def sections_of_the_job() -> list[str]:
    return [name for name, key in Job.model_json_schema()["properties"].items() if "$ref" in key]


# -- the HDF5 file ---------------------------------------------------------------------------

DTYPES = {"f8": "float64", "f4": "float32", "i8": "int64", "?": "bool"}


class Hdf5Datasets(MarkdownDirective):
    """`{hdf5-datasets} tables`, `vectors` or `scales`."""

    required_arguments = 1
    symbols: ClassVar = {"step": "S", "largest": "k", "smallest": "m", "parameter": "d"}

    def markdown(self) -> Iterator[str]:
        what = self.arguments[0]
        if what == "scales":
            fields = [(schema.STEP.name, schema.STEP.long_name), *schema.DIMENSIONS.items()]
            rows = [[f"`{name}`", in_markdown(meaning)] for name, meaning in fields]
            yield from table(["scale", "what it counts"], rows, "20 80")
            return
        fields = {"tables": schema.TABLES, "vectors": schema.VECTORS}[what]
        rows = [
            [
                f"`{field.name}`",
                "(" + ", ".join(self.symbols[name] for name in field.dimensions) + ")",
                DTYPES[field.dtype],
                f"`{field.units}`",
                in_markdown(field.long_name).replace("|", r"\|"),
            ]
            for field in fields
        ]
        header = ["dataset", "dimensions", "type", "units", "long name"]
        yield from table(header, rows, "30 14 12 8 36")


# -- the command line ------------------------------------------------------------------------


class Command(MarkdownDirective):
    """`{command} spectrum`."""

    required_arguments = 1

    def markdown(self) -> Iterator[str]:
        name = self.arguments[0]
        commands = typer.main.get_command(command_line).commands
        if name not in commands:
            raise self.error(f"there is no command '{name}'")
        self.describes("command", name)
        command = commands[name]
        words, rows = [], []
        for parameter in command.params:
            shown = parameter.metavar or ""
            if parameter.param_type_name == "argument":
                words.append(shown)
                rows.append([f"`{shown}`", in_markdown(parameter.help or "")])
                continue
            spelled = ", ".join(f"`{option}`" for option in parameter.opts)
            words.append(f"[{parameter.opts[0]}{' ' if shown else ''}{shown}]")
            rows.append([
                spelled + (f" `{shown}`" if shown else ""),
                in_markdown(parameter.help or ""),
            ])
        yield "```text"
        yield " ".join(["hessdist", name, *words])
        yield "```"
        yield ""
        yield in_markdown(command.help or "")
        yield ""
        if rows:
            yield from table(["argument", "meaning"], rows, "35 65")


def check_described(app: Any, env: Any) -> None:
    """Warn about sections and commands that no page describes."""
    described = env.__dict__.get("hessdist_described", {})
    commands = list(typer.main.get_command(command_line).commands)
    for kind, names in (("section", sections_of_the_job()), ("command", commands)):
        for name in names:
            if name not in described.get(kind, {}):
                page = {"section": "job-file.md", "command": "commands.md"}[kind]
                log.warning("no page describes the %s '%s': add it to docs/%s", kind, name, page)


# -- docstrings ------------------------------------------------------------------------------


def modules() -> Iterator[tuple[str, Path]]:
    """Names and files of the package's modules, in the order of the folders."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[-1] == "__main__":
            continue
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def public_calls(path: Path) -> Iterator[tuple[str, str]]:
    """Names and docstrings of a module's public functions, classes and methods."""

    def look(body: list[ast.stmt], before: str) -> Iterator[tuple[str, str]]:
        for node in body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            yield before + node.name, ast.get_docstring(node) or ""
            if isinstance(node, ast.ClassDef):
                yield from look(node.body, f"{before}{node.name}.")

    yield from look(ast.parse(path.read_text(encoding="utf-8")).body, "")


def collectivity(docstring: str) -> str:
    """The sentence or clause of a docstring that says whether a call is collective."""
    found = re.search(r"([^.;]*\b[Cc]ollective\b[^.;]*)", " ".join(docstring.split()))
    return found[1].strip() if found else ""


class CollectiveCalls(MarkdownDirective):
    """Two tables: collective calls, and those that say that they are not."""

    def markdown(self) -> Iterator[str]:
        rows: dict[bool, list[list[str]]] = {True: [], False: []}
        for module, path in modules():
            for name, docstring in public_calls(path):
                said = collectivity(docstring)
                if not said:
                    continue
                public = PUBLIC.get(module) == name.split(".")[0]
                full = f"hessdist.{name}" if public else f"{module}.{name}"
                role = "func" if "." not in name and name[0].islower() else "obj"
                call = f"{{py:{role}}}`{name} <{full}>`"
                where = "`hessdist`" if public else f"`{module.removeprefix('hessdist.')}`"
                collective = not re.search(r"\bnot collective\b", said, re.IGNORECASE)
                note = "" if said.lower() in {"collective", "not collective"} else in_markdown(said)
                if name.split(".")[-1][0].isupper() and not note:
                    note = "making it is"
                rows[collective].append([call, where, note])
        for collective, heading in ((True, "Collective"), (False, "Not collective")):
            yield f"**{heading}:**"
            yield ""
            yield from table(["call", "module", "its docstring says"], rows[collective], "35 25 40")


# -- API pages -------------------------------------------------------------------------------

FIRST = ("hessdist.job", "hessdist.ranks", "hessdist.assembly")


class Rooms(MarkdownDirective):
    """Every module of every room, less what the option `elsewhere` names."""

    option_spec: ClassVar = {"elsewhere": directives.unchanged}

    def markdown(self) -> Iterator[str]:
        elsewhere = self.options.get("elsewhere", "").split()
        found = [name for name, _ in modules() if name not in (*elsewhere, "hessdist")]
        rooms = [name for name in found if (PACKAGE.parent / name.replace(".", "/")).is_dir()]
        alone = [name for name in found if name.count(".") == 1 and name not in rooms]
        alone.sort(key=lambda name: (name not in FIRST, FIRST.index(name) if name in FIRST else 0))
        yield "## Beside the rooms"
        yield ""
        for name in alone:
            yield from self._module(name, elsewhere)
        for room in rooms:
            yield f"## `{room}`"
            yield ""
            yield from self._automodule(room, [])
            for name in found:
                if name.startswith(f"{room}."):
                    yield from self._module(name, elsewhere)

    def _module(self, name: str, elsewhere: list[str]) -> Iterator[str]:
        yield f"### `{name}`"
        yield ""
        yield from self._automodule(name, elsewhere)

    def _automodule(self, name: str, elsewhere: list[str]) -> Iterator[str]:
        yield "```{eval-rst}"
        yield f".. automodule:: {name}"
        left_out = [one.removeprefix(f"{name}.") for one in elsewhere if one.startswith(f"{name}.")]
        yield f"   :exclude-members: {', '.join(['model_config', *left_out])}"
        yield "```"
        yield ""


def comments_of_fields(cls: type) -> dict[str, str]:
    """The comment behind each field of a class: shapes and meanings stand there."""
    source = textwrap.dedent(inspect.getsource(cls))
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    return {
        node.target.id: comments[node.lineno]
        for node in definition.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.lineno in comments
    }


def describe_field(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Give a field without a docstring the comment that stands behind it."""
    if what != "attribute" or any(line.strip() for line in lines):
        return
    owner, _, field = name.rpartition(".")
    module, _, cls = owner.rpartition(".")
    try:
        found = getattr(__import__(module, fromlist=[cls]), cls)
        comment = comments_of_fields(found).get(field) if inspect.isclass(found) else None
    except (ImportError, AttributeError, OSError, TypeError):
        return
    if comment:
        lines[:] = [comment]


def escape_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """|λ| is an absolute value in docstrings, not a substitution of reStructuredText."""
    lines[:] = [line.replace("|", r"\|") for line in lines]


def forget_page(app: Any, env: Any, docname: str) -> None:
    """What a page described, it is about to describe anew."""
    for names in env.__dict__.get("hessdist_described", {}).values():
        for name in [name for name, page in names.items() if page == docname]:
            del names[name]


def setup(app: Any) -> dict[str, bool]:
    """Sphinx's hook."""
    app.add_directive("job-section", JobSection)
    app.add_directive("hdf5-datasets", Hdf5Datasets)
    app.add_directive("command", Command)
    app.add_directive("collective-calls", CollectiveCalls)
    app.add_directive("rooms", Rooms)
    app.connect("autodoc-process-docstring", describe_field)
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("env-purge-doc", forget_page)
    app.connect("env-check-consistency", check_described)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
