"""What the records of mechanisms have in common: their JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np


class Record:
    """A frozen dataclass of arrays; its subclasses add `sentence` and `plot`."""

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        raise NotImplementedError

    def to_json(self) -> str:
        """All of it as JSON, with the sentence; what is not finite is null, and a complex number is a pair."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # pyright: ignore[reportArgumentType]
        return json.dumps(_plain({"sentence": self.sentence, **fields}), indent=2) + "\n"


def _plain(thing: Any) -> Any:
    if isinstance(thing, dict):
        return {k: _plain(v) for k, v in thing.items()}
    if isinstance(thing, np.ndarray | np.generic):
        return _plain(thing.tolist())
    if isinstance(thing, list | tuple):
        return [_plain(x) for x in thing]
    if isinstance(thing, complex):
        return [_plain(thing.real), _plain(thing.imag)]
    return None if isinstance(thing, float) and not math.isfinite(thing) else thing
