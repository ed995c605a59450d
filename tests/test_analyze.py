"""Every analysis answers with finite arrays, the same for the same key, for optimizers with and without integers in their state."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import lopt
from lopt.analyze import ANALYSES as KNOWN
from lopt.analyze import dynamics
from lopt.errors import InputError
from lopt.optimizers import SGD, Adam
from registry import ANALYSES, AnalysisRow

TASK = lopt.tasks.NoisyQuadratic(spectrum=[1.0, 0.5])


def test_every_analysis_has_a_row() -> None:
    assert {row.name for row in ANALYSES} == set(KNOWN)


@pytest.mark.parametrize("optimizer", [SGD(learning_rate=0.1), Adam(learning_rate=0.1)], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("row", ANALYSES, ids=lambda row: row.name)
def test_an_analysis_is_a_frozen_record_whose_arrays_are_finite(row: AnalysisRow, optimizer: lopt.Optimizer) -> None:
    if row.remembers and isinstance(optimizer, SGD):
        with pytest.raises(InputError, match="keeps nothing for a parameter"):
            KNOWN[row.name](optimizer, TASK, key=jax.random.key(0), **row.fields)
        return
    found, again = (KNOWN[row.name](optimizer, TASK, key=jax.random.key(0), **row.fields) for _ in range(2))
    names = [field.name for field in dataclasses.fields(found)]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(found, names[0], None)
    assert any(isinstance(getattr(found, name), np.ndarray) for name in names)
    for name in names:
        value = getattr(found, name)
        if isinstance(value, np.ndarray):
            assert np.isfinite(value).all() or name == "fixed_point"  # NaN where there is none
        np.testing.assert_array_equal(value, getattr(again, name))


def test_dynamics_of_gradient_descent_are_those_of_the_curvature() -> None:
    found = dynamics(SGD(learning_rate=0.1), TASK, jax.random.key(0), length=5)
    np.testing.assert_allclose(found.jacobians, np.broadcast_to(np.diag([0.9, 0.95]), (1, 5, 2, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.moduli, 0.95, rtol=1e-5)
    products = np.log([np.hypot(0.9**t, 0.95**t) for t in range(1, 6)])
    np.testing.assert_allclose(found.growth[0], products, rtol=1e-4)


@pytest.mark.parametrize("field", ["length", "starts"])
def test_numbers_below_one_are_refused(field: str) -> None:
    with pytest.raises(InputError, match=f"{field} is 0; it must be at least 1"):
        dynamics(SGD(), TASK, jax.random.key(0), **{"length": 2, field: 0})
