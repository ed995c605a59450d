"""Small convolutional networks, none of which meta-training has seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from lopt.errors import InputError
from lopt.evaluate.scores.statistics import mean_interval
from lopt.names import unknown
from lopt.reproduce.claims import Claim
from lopt.reproduce.scale._versus import BASELINES, SMALL_MLPS, WEIGHTS, WITH_MLPS, learned_optimizer, versus
from lopt.tasks import MissingDataError, TaskName, create
from lopt.tasks.corpora.wichrowska import FILTERS

NETWORKS: dict[str, TaskName] = {
    f"{label}, {activation}": TaskName(
        "conv_net", {"images": data, "filters": FILTERS, "activation": activation, "batch_size": 64}
    )
    for label, data in (("digits", "digits"), ("Fashion-MNIST", "fashion_14"))
    for activation in ("relu", "sigmoid")
}
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
NEAR = 0.05  # of the way from the start to the best baseline, at most left to go


def networks(
    key: PRNGKeyArray,
    *,
    weights: str | Path = WEIGHTS,
    names: Sequence[str] = tuple(NETWORKS),
    steps: int = 1000,
    seeds: int = 3,
    learning_rates: Sequence[float] = RATES,
) -> Claim:
    r"""Conv nets beside RMSProp and Adam, each tuned for the network. Judged by what is left of the way to the better of the two,

    $$\frac{\ell - \ell_\text{best}}{\ell_0 - \ell_\text{best}}$$

    with mean final training losses, and $\ell_0$ the loss at the start.

    Args:
        key: draws starts and minibatches, the same for all.
        weights: the saved optimizer, by name or path; its meta-training must not hold networks.
        names: of `NETWORKS`.
        steps: of a training.
        seeds: trainings of a network.
        learning_rates: of the grids.

    Raises:
        InputError: for the name of no network, or weights that the claim does not fit.

    Source: Wichrowska et al. 2017, section 5.2: MNIST there.
    """
    return _networks(key, _WORDS, weights, names, steps, seeds, learning_rates, may_have_seen=False)


def networks_with_mlps(
    key: PRNGKeyArray,
    *,
    weights: str | Path = WITH_MLPS,
    names: Sequence[str] = tuple(NETWORKS),
    steps: int = 1000,
    seeds: int = 3,
    learning_rates: Sequence[float] = RATES,
) -> Claim:
    """The same as `networks` for weights whose meta-training may hold the small MLPs of the corpus, as that of the release of 2017 does.

    Args:
        key: as for `networks`.
        weights: the saved optimizer, by name or path.
        names: as for `networks`.
        steps: as for `networks`.
        seeds: as for `networks`.
        learning_rates: as for `networks`.

    Raises:
        InputError: as for `networks`.

    Source: the second arm is ours; the corpus of the release holds the small MLPs, though the paper says that there was no network.
    """
    return _networks(key, _WORDS_WITH_MLPS, weights, names, steps, seeds, learning_rates, may_have_seen=True)


_CRITERION = f"On every network it leaves at most {NEAR:.0%} of the way from the start to the better of the two, mean final training losses over seeds."
_WORDS = (
    "networks",
    "(b) Level with tuned RMSProp and Adam on conv nets, though it has seen no network",
    "On small conv nets with sigmoid and ReLU it matches or beats RMSProp and Adam, though no problem of its meta-training was a neural network.",
    _CRITERION,
)
_WORDS_WITH_MLPS = (
    "networks_with_mlps",
    "(b) Level with them on conv nets, after a meta-training with small MLPs",
    "Ours: with the small MLPs of the corpus in its meta-training it matches or beats RMSProp and Adam on small conv nets.",
    _CRITERION,
)


def _networks(
    key: PRNGKeyArray,
    words: tuple[str, str, str, str],
    weights: str | Path,
    names: Sequence[str],
    steps: int,
    seeds: int,
    learning_rates: Sequence[float],
    *,
    may_have_seen: bool,
) -> Claim:
    for name in names:
        if name not in NETWORKS:
            raise InputError(unknown("network", name, NETWORKS))
    if not names:
        raise InputError(f"names is empty; name at least one of {', '.join(NETWORKS)}.")
    learned, card = learned_optimizer(weights)
    seen = [str(t["name"]) for t in card.tasks if str(t["name"]).split("/")[-1].startswith(SMALL_MLPS)]
    if seen and not may_have_seen:
        return Claim(*words, f"Not run: the meta-training of these weights held a network, {seen[0]}.", None, {})
    try:
        tasks = {name: create(NETWORKS[name]) for name in names}
    except MissingDataError as error:
        return Claim(*words, f"Not run: {error}", None, {})
    found: dict[str, Any] = {}
    for i, (name, task) in enumerate(tasks.items()):
        own = jax.random.fold_in(key, i)
        result = versus(learned, task, steps=steps, key=own, seeds=seeds, learning_rates=learning_rates)
        found[name] = result._asdict() | {"left": result.left}
    near = [name for name, f in found.items() if f["left"] <= NEAR]
    rows = [
        {
            "network": name,
            "at the start": f"{f['first'].mean():.3f}",
            "learned": str(mean_interval(f["learned"])),
            **{rival: f"{mean_interval(f['tuned'][rival])} at {f['rates'][rival]:g}" for rival in BASELINES},
            "left of the way": f"{f['left']:.3f}",
        }
        for name, f in found.items()
    ]
    return Claim(
        *words,
        f"It does on {len(near)} of {len(found)} networks ({', '.join(near) or 'none'}). Left of the way: "
        + ", ".join(f"{name} {f['left']:.3f}" for name, f in found.items())
        + ".",
        len(near) == len(found),
        {"steps": steps, "networks": found},
        rows,
    )


__all__ = ["NETWORKS", "networks", "networks_with_mlps"]
