"""What is read from docstrings and sources: API pages, and which calls are collective.

`collective-calls`  two tables of calls, by what their docstrings say
`rooms`             API pages of the inner modules, room by room

The rest are hooks of autodoc: the comment behind a field documents it, |λ| is an absolute value,
and short names in annotations (nn.Module, NDArray) find their targets.
"""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from dataclasses import is_dataclass
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

from docutils.parsers.rst import directives
from from_code import MarkdownDirective, commands, in_markdown, table
from sphinx.ext.intersphinx import missing_reference
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.nodes import make_refnode

import hessdist

PACKAGE = Path(hessdist.__file__).parent
PUBLIC = {f"{home}.{name}": f"hessdist.{name}" for name, home in hessdist._HOMES.items()}


def modules() -> Iterator[tuple[str, Path]]:
    """Names and files of the package's modules, by name."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[-1] != "__main__":
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def public(body: list[ast.stmt], before: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Dotted names and nodes of public functions, classes and methods."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield before + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{before}{node.name}.")


# -- collective calls ------------------------------------------------------------------------


class CollectiveCalls(MarkdownDirective):
    """Two tables: calls that are collective, and those whose docstrings say that they are not."""

    def markdown(self) -> Iterator[str]:
        rows: dict[bool, list[list[str]]] = {True: [], False: []}
        for module, path in modules():
            for name, node in public(ast.parse(path.read_text(encoding="utf-8")).body):
                docstring = " ".join((ast.get_docstring(node) or "").split())
                found = re.search(r"[^.;]*\b[Cc]ollective\b[^.;]*", docstring)
                if not found or "whether" in found[0]:  # a class leaves it to its methods
                    continue
                said = found[0].strip()
                full = PUBLIC.get(f"{module}.{name}", f"{module}.{name}")
                home = full.removesuffix(f".{name}").removeprefix("hessdist.")
                rows["not collective" not in said.lower()].append([
                    f"{{py:obj}}`{name} <{full}>`",
                    f"`{home}`",
                    in_markdown(said[0].lower() + said[1:]),
                ])
        for collective, title in ((True, "Collective"), (False, "Not collective")):
            yield f"**{title}:**"
            yield ""
            yield from table(["call", "module", "its docstring says"], rows[collective], "35 25 40")


# -- API pages -------------------------------------------------------------------------------


# The way the data go; other rooms come after these.
WAY = [
    f"hessdist.{room}"
    for room in ("config", "parallel", "workload", "curvature", "spectrum", "landscape")
]


class Rooms(MarkdownDirective):
    """Every module of every room, less the modules and names of the option `elsewhere`."""

    option_spec: ClassVar = {"elsewhere": directives.unchanged}

    def markdown(self) -> Iterator[str]:
        self._elsewhere = self.options.get("elsewhere", "").split()
        found = {name: path for name, path in modules() if name not in self._elsewhere}
        del found["hessdist"]
        rooms = [name for name, path in found.items() if path.name == "__init__.py"]
        rooms.sort(key=lambda name: (*[one != name for one in WAY], name))
        yield from ("## Beside the rooms", "")
        for name in found:
            if name not in rooms and name.count(".") == 1:
                yield from self._module(name, "###")
        for room in rooms:
            yield from self._module(room, "##")
            for name in found:
                if name.rpartition(".")[0] == room and name not in rooms:
                    yield from self._module(name, "###")

    def _module(self, name: str, level: str) -> Iterator[str]:
        yield from (f"{level} `{name}`", "", "```{eval-rst}", f".. automodule:: {name}")
        own = [one for one in self._elsewhere if one.rpartition(".")[0] == name]
        if own:
            yield f"   :exclude-members: {', '.join(one.rpartition('.')[2] for one in own)}"
        yield from ("```", "")


def fields_from_comments(app: Any) -> None:
    """Let the comment behind a class's field count as its documentation: shapes stand there."""
    for module, path in modules():
        source = path.read_text(encoding="utf-8")
        comments = {
            token.start[0]: token.string.removeprefix("#").strip()
            for token in tokenize.generate_tokens(StringIO(source).readline)
            if token.type == tokenize.COMMENT and "type:" not in token.string
        }
        analyzer = ModuleAnalyzer.for_module(module)
        analyzer.analyze()
        for (cls, _), lines in analyzer.attr_docs.items():
            if not cls:  # tables of the module: said in words
                lines += [":meta hide-value:", ""]
        for name, definition in public(ast.parse(source).body):
            for node in definition.body if isinstance(definition, ast.ClassDef) else ():
                if (
                    isinstance(node, ast.AnnAssign)
                    and isinstance(node.target, ast.Name)
                    and node.lineno in comments
                ):
                    analyzer.attr_docs.setdefault(
                        (name, node.target.id), [comments[node.lineno], ""]
                    )


COLON = "\ue000"  # stands for a colon where napoleon would take the words before it for a type


def before_napoleon(app: Any, what: str, name: str, obj: Any, options: Any, lines: Any) -> None:
    """The first line of a field's docstring may hold a colon and has no type in it."""
    if what in {"attribute", "data", "property"} and lines:
        lines[0] = lines[0].replace(":", COLON)


def after_napoleon(app: Any, what: str, name: str, obj: Any, options: Any, lines: Any) -> None:
    """|λ| is no substitution, "d." no list, and `.bin` no name of Python's."""
    for number, line in enumerate(lines):
        text = line.replace("|", r"\|").replace(COLON, ":")
        text = re.sub(r"(^\s*|: )(\w)\.$", r"\1\\\2.", text)
        if text.count("`") % 2 == 0:  # else a quotation goes on in the next line
            text = re.sub(r"(?<![`:])`([^`]+)`(?!`)", as_role_or_literal, text)
        lines[number] = text


def as_role_or_literal(quoted: re.Match[str]) -> str:
    """A name stays as it is, for the default role to resolve; anything else is literal."""
    return quoted[0] if re.fullmatch(r"[A-Za-z][\w.]*", quoted[1]) else f"``{quoted[1]}``"


def signature_of_record(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """A dataclass without arguments of its own is described by its fields, as is a job."""
    documented = "Args:" in (getattr(obj, "__doc__", None) or "")
    if what == "class" and (is_dataclass(obj) or hasattr(obj, "model_fields")) and not documented:
        return "", ""
    return None


def leave_out(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Sections of the job file have a page of their own, and so have commands."""
    section = isinstance(obj, type) and obj.__name__.endswith("Section")
    command = getattr(obj, "__module__", "").startswith("hessdist.cli.") and name in commands()
    return True if section or command or name == "model_config" else None


# -- names in annotations --------------------------------------------------------------------

FULL_NAMES = {
    "NDArray": "numpy.typing.NDArray",
    "np.bool_": "numpy.bool",
    "Tensor": "torch.Tensor",
    "torch._tensor.Tensor": "torch.Tensor",
    "nn.Module": "torch.nn.Module",
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch.optim.optimizer.Optimizer": "torch.optim.Optimizer",
    "MPI.Comm": "mpi4py.MPI.Comm",
    "Path": "pathlib.Path",
    "pathlib._local.Path": "pathlib.Path",
    "Any": "typing.Any",
    "Literal": "typing.Literal",
    "Callable": "collections.abc.Callable",
    "Iterator": "collections.abc.Iterator",
    "Mapping": "collections.abc.Mapping",
    "Sequence": "collections.abc.Sequence",
}


def resolve_short_name(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Find what an annotation means by a name that it imports."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    full = FULL_NAMES.get(target, re.sub(r"^np\.", "numpy.", target))
    full = re.sub(r"^h5py\..*\.(\w+)$", r"h5py.\1", full)  # wherever a build has its modules
    if full != target:
        node["reftarget"], node["reftype"] = full, "obj"
        return missing_reference(app, env, node, content)
    objects = env.domains.python_domain.objects
    found = [name for name in objects if name.endswith(f".{target}")]
    if len(found) != 1 or not target[0].isupper():
        return None
    entry = objects[found[0]]
    return make_refnode(
        app.builder, node["refdoc"], entry.docname, entry.node_id, content, found[0]
    )


def setup(app: Any) -> dict[str, bool]:
    """Sphinx's hook."""
    app.add_directive("collective-calls", CollectiveCalls)
    app.add_directive("rooms", Rooms)
    app.connect("builder-inited", fields_from_comments)
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", after_napoleon, priority=600)
    app.connect("autodoc-process-signature", signature_of_record)
    app.connect("autodoc-skip-member", leave_out)
    app.connect("missing-reference", resolve_short_name, priority=400)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
