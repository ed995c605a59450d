"""Evaluations as self-contained HTML pages."""

from lopt.evaluate.report.comparison import figure, page, verdict
from lopt.evaluate.report.frame import document

__all__ = [
    "document",
    "figure",
    "page",
    "verdict",
]
