"""Offline intersphinx: inventories of the few foreign objects that these pages refer to.

`inventories.toml` lists them; they are written as `objects.inv` files into the build folder before
intersphinx reads them. With HESSDIST_DOCS_ONLINE set, the projects' own inventories are fetched.
"""

from __future__ import annotations

import os
import tomllib
import zlib
from pathlib import Path
from typing import Any

ONLINE = "HESSDIST_DOCS_ONLINE"


def inventory(project: str, objects: dict[str, str]) -> bytes:
    """An inventory in Sphinx's format, version 2.

    Args:
        project: Name of the project.
        objects: "domain:role name" to the page, relative to the project's base URL.

    Returns:
        The file's content.
    """
    head = (
        "# Sphinx inventory version 2\n"
        f"# Project: {project}\n"
        "# Version: \n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    lines = []
    for key, page in objects.items():
        role, name = key.split(" ", 1)
        lines.append(f"{name} {role} 1 {page} -\n")
    return head.encode() + zlib.compress("".join(lines).encode())


def write_inventories(app: Any, config: Any) -> None:
    """Fill `intersphinx_mapping` from `inventories.toml`."""
    projects = tomllib.loads((Path(app.confdir) / "inventories.toml").read_text(encoding="utf-8"))
    folder = Path(app.doctreedir) / "inventories"
    folder.mkdir(parents=True, exist_ok=True)
    mapping: dict[str, tuple[str, str | None]] = {}
    for name, project in projects.items():
        if os.environ.get(ONLINE):
            mapping[name] = (project["url"], None)
            continue
        path = folder / f"{name}.inv"
        path.write_bytes(inventory(name, project["objects"]))
        mapping[name] = (project["url"], str(path))
    config.intersphinx_mapping = mapping


def setup(app: Any) -> dict[str, bool]:
    """Sphinx's hook; intersphinx looks at its mapping in the same event, later."""
    app.connect("config-inited", write_inventories, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
