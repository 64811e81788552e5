"""How the documentation is built: MyST pages, API pages from docstrings, no network."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from hessdist import __version__  # noqa: E402

project = "hessdist"
author = "the hessdist authors"
copyright = "the hessdist authors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "inventories",
    "from_code",
    "from_docstrings",
]
exclude_patterns = ["_build", "_ext"]
nitpicky = False
smartquotes = False
default_role = "py:obj"  # `name` in a docstring

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_type_aliases = {"NDArray": "NDArray"}  # as the source has it, unexpanded
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries = False
intersphinx_timeout = 30

html_theme = "pydata_sphinx_theme"
html_title = f"hessdist {release}"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "footer_start": [],
    "footer_end": [],
}
