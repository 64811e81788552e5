"""The common parts of figures, tables and the page."""
