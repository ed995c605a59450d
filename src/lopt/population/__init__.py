"""Populations of optimizers that train themselves, or that others train."""

from __future__ import annotations

from lopt.population.cycle import Member, Population, Rules, Selection, begin, cycle
from lopt.population.evolve import Diverged, Report, best, evolve
from lopt.population.lineage import Lineage

__all__ = [
    "Diverged",
    "Lineage",
    "Member",
    "Population",
    "Report",
    "Rules",
    "Selection",
    "begin",
    "best",
    "cycle",
    "evolve",
]
