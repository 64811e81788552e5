"""Paths of low loss between two solutions: section 4 of Sagun, Bottou and LeCun (2016)."""

from hessdist.studies.base import Needs, declare
from hessdist.studies.paths.settings import PathsSection

STUDIES = (declare(__name__, "paths", PathsSection, Needs(no_penalty=True)),)
