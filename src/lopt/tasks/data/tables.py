"""Small tables of real data that come with scikit-learn."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from lopt.errors import InputError, needs_extra
from lopt.names import unknown


class Rows(NamedTuple):
    """Standardised features, a row an example, and what is to be predicted: a class or a number."""

    features: Float[Array | np.ndarray, "examples features"]
    targets: Int[Array | np.ndarray, " examples"] | Float[Array | np.ndarray, " examples"]


class Table(NamedTuple):
    """A tabular data set; the splits are disjoint, and all are standardised by the means and deviations of the training rows."""

    train: Rows
    valid: Rows
    test: Rows
    classes: int  # 1 where the target is a number


def breast_cancer() -> Table:
    """Breast cancer (Wisconsin, diagnostic): 569 tumours, 30 features of their cell nuclei, malignant or benign. Split 341/114/114."""
    with needs_extra("data"):
        from sklearn.datasets import load_breast_cancer

    return _split(*load_breast_cancer(return_X_y=True), classes=2)


def wine() -> Table:
    """Wine: 178 wines, 13 chemical features, three cultivars. Split 106/36/36."""
    with needs_extra("data"):
        from sklearn.datasets import load_wine

    return _split(*load_wine(return_X_y=True), classes=3)


def diabetes() -> Table:
    """Diabetes (Efron et al. 2004): 442 patients, 10 features, progression of the disease after a year, standardised too. Split 266/88/88."""
    with needs_extra("data"):
        from sklearn.datasets import load_diabetes

    features, targets = load_diabetes(return_X_y=True, scaled=False)
    return _split(np.asarray(features), np.asarray(targets), classes=1)


def _split(features: np.ndarray, targets: np.ndarray, classes: int) -> Table:
    """60, 20 and 20 per cent by a fixed permutation."""
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(targets))
    held = round(0.2 * len(order))
    parts = np.split(order, [len(order) - 2 * held, len(order) - held])

    def standardised(numbers: np.ndarray) -> np.ndarray:
        known = numbers[parts[0]]
        return ((numbers - known.mean(0)) / known.std(0)).astype(np.float32)

    x, y = standardised(features), standardised(targets) if classes == 1 else targets.astype(np.int32)
    train, valid, test = (Rows(x[p], y[p]) for p in parts)
    return Table(train, valid, test, classes)


# Tables by name.
TABLES: dict[str, Callable[[], Table]] = {"breast_cancer": breast_cancer, "diabetes": diabetes, "wine": wine}


@functools.cache
def table(name: str) -> Table:
    """A data set of `TABLES` by its name.

    Raises:
        InputError: for an unknown name, with the nearest ones.
    """
    if name not in TABLES:
        raise InputError(unknown("table", name, TABLES))
    return TABLES[name]()
