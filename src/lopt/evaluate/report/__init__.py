"""Evaluations as self-contained HTML pages."""

from lopt.evaluate.report._markdown import summary_markdown
from lopt.evaluate.report._sections import Provenance
from lopt.evaluate.report.archived import Report, archive_report
from lopt.evaluate.report.bench import benchmark_page
from lopt.evaluate.report.comparison import comparison_page, figure, verdict
from lopt.evaluate.report.page import document

__all__ = [
    "Provenance",
    "Report",
    "archive_report",
    "benchmark_page",
    "comparison_page",
    "document",
    "figure",
    "summary_markdown",
    "verdict",
]
