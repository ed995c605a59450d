"""Evaluations as self-contained HTML pages."""

from lopt.evaluate.report._sections import Provenance
from lopt.evaluate.report.bench import benchmark_page
from lopt.evaluate.report.comparison import figure, page, verdict
from lopt.evaluate.report.frame import document

__all__ = [
    "Provenance",
    "benchmark_page",
    "document",
    "figure",
    "page",
    "verdict",
]
