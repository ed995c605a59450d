"""Papers, their claims measured at the scale of one machine. One folder and one row a paper."""

from __future__ import annotations

import importlib

from lopt.errors import InputError
from lopt.names import unknown
from lopt.reproduce.claims import Claim, ClaimSpec, Paper, Report, measure

# The one place where papers get their names: a module with a `Paper` named `PAPER`.
PAPERS: dict[str, str] = {
    "scale": "lopt.reproduce.scale",
    "pathologies": "lopt.reproduce.pathologies",
    "stability": "lopt.reproduce.stability",
    "tasks": "lopt.reproduce.tasks",
    "self-training": "lopt.reproduce.self_training",
    "mechanisms": "lopt.reproduce.mechanisms",
    "neighbours": "lopt.reproduce.neighbours",
}


def find_paper(name: str) -> Paper:
    """The paper of this name.

    Args:
        name: a key of `PAPERS`.

    Raises:
        InputError: for an unknown name, with the nearest ones.

    Examples:
        >>> from lopt.reproduce import find_paper
        >>> list(find_paper("pathologies").claims)[:2]
        ['landscape', 'explosion']
    """
    if name not in PAPERS:
        raise InputError(unknown("paper", name, PAPERS))
    return importlib.import_module(PAPERS[name]).PAPER


__all__ = ["PAPERS", "Claim", "ClaimSpec", "Paper", "Report", "find_paper", "measure"]
