"""Papers, their claims measured at the scale of one machine. One folder a paper."""

from __future__ import annotations

from lopt.reproduce.claims import Claim, Report, write_report

__all__ = ["Claim", "Report", "write_report"]
