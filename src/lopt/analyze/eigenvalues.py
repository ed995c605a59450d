"""Extreme eigenvalues of matrices that are known by their products alone, through scipy's ARPACK."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Complex, Float

from lopt.errors import InputError

DENSE = 64  # rows up to which the whole matrix is formed
WIDTH = 24  # vectors that an iteration holds
MEMORY = 4.0  # GiB that they may take
Product = Callable[[np.ndarray], np.ndarray]


class Spectrum(NamedTuple):
    r"""The largest eigenvalues of a matrix, by modulus.

    Attributes:
        values: complex; NaN where the iteration did not converge.
        residuals: $\lVert J v - \lambda v \rVert / |\lambda|$ of each, with $\lVert v \rVert = 1$.
        products: with the matrix that were needed.
    """

    values: Complex[np.ndarray, " count"]
    residuals: Float[np.ndarray, " count"]
    products: int

    @property
    def radius(self) -> float:
        """The largest modulus; NaN where none was found."""
        moduli = np.abs(self.values)
        return float(moduli[np.isfinite(moduli)].max()) if np.isfinite(moduli).any() else float("nan")


def eigenvalues(
    product: Product,
    size: int,
    count: int = 4,
    *,
    tolerance: float = 1e-4,
    restarts: int = 60,
    width: int = WIDTH,
    start: Float[np.ndarray, " size"] | None = None,
) -> Spectrum:
    """The eigenvalues of largest modulus: all of a small matrix by LAPACK, those of a large one by Arnoldi's iteration.

    Args:
        product: `product(v)`.
        size: rows of the matrix.
        count: how many.
        tolerance: relative residual that is accepted.
        restarts: of the iteration, at most.
        width: vectors that it holds.
        start: vector of the iteration; random by default, always the same.

    Raises:
        InputError: for a product that is not finite.

    Examples:
        >>> import numpy as np
        >>> from lopt.analyze.eigenvalues import eigenvalues
        >>> turn = np.array([[0.0, -2.0], [2.0, 0.0]])
        >>> round(eigenvalues(lambda v: turn @ v, 2).radius, 6)
        2.0

    Source: Arnoldi 1951; implicit restarts: Lehoucq, Sorensen & Yang 1998.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, eigs

    done = 0

    def counted(v: np.ndarray) -> np.ndarray:
        nonlocal done
        done += 1
        return _finite(product(v))

    count = min(count, size)
    if size <= max(DENSE, count + 2):
        values, vectors = np.linalg.eig(np.stack([counted(e) for e in np.eye(size)], axis=1))
    else:
        operator = _operator(counted, size)
        try:
            found: Any = eigs(
                operator,
                count,
                v0=_start(size) if start is None else start,
                tol=tolerance,  # pyright: ignore[reportArgumentType] - scipy's default is the integer 0
                maxiter=restarts,
                ncv=min(size - 1, max(2 * count + 1, width)),
            )
            values, vectors = found
        except ArpackNoConvergence as error:
            values, vectors = error.eigenvalues, error.eigenvectors
    order = np.argsort(-np.abs(values), kind="stable")[:count]
    values, vectors = np.asarray(values[order], np.complex128), vectors[:, order]
    applied = [
        counted(v.real.copy()) + 1j * counted(v.imag.copy()) if v.imag.any() else counted(v.real.copy())
        for v in vectors.T
    ]
    residuals = [
        np.linalg.norm(a - x * v) / max(abs(x), np.finfo(float).tiny)
        for a, x, v in zip(applied, values, vectors.T, strict=True)
    ]
    missing = count - len(values)
    return Spectrum(
        np.concatenate([values, np.full(missing, complex("nan"))]),
        np.concatenate([np.asarray(residuals, np.float64), np.full(missing, np.nan)]),
        done,
    )


def symmetric_eigenvalues(
    product: Product, size: int, count: int = 1, *, tolerance: float = 1e-4
) -> Float[np.ndarray, " count"]:
    """The largest eigenvalues of a symmetric matrix, the largest first: of a large one by Lanczos' iteration, NaN where it did not converge.

    Args:
        product: `product(v)`.
        size: rows of the matrix.
        count: how many.
        tolerance: relative, of an eigenvalue.

    Raises:
        InputError: for a product that is not finite.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    count = min(count, size)
    if size <= max(DENSE, count + 1):
        matrix = np.stack([_finite(product(e)) for e in np.eye(size)], axis=1)
        return np.linalg.eigvalsh(0.5 * (matrix + matrix.T))[::-1][:count]
    operator = _operator(lambda v: _finite(product(v)), size)
    try:
        found = eigsh(
            operator,
            count,
            which="LA",
            v0=_start(size),
            tol=tolerance,  # pyright: ignore[reportArgumentType]
            ncv=min(size, max(2 * count + 1, WIDTH)),
            return_eigenvectors=False,
        )
    except ArpackNoConvergence as error:
        found = error.eigenvalues
    return np.concatenate([np.sort(found)[::-1], np.full(count - len(found), np.nan)])


def refuse_too_large(size: int, memory: float) -> None:
    """Refuse an iteration whose vectors do not fit.

    Args:
        size: rows of the matrix.
        memory: GiB that they may take.

    Raises:
        InputError: where they take more.
    """
    need = WIDTH * size * 8 / 2**30
    if size > DENSE and need > memory:
        raise InputError(
            f"The eigenvalues of {size:,} numbers need {need:.3g} GiB for {WIDTH} vectors; memory is {memory:g}."
        )


def _operator(product: Product, size: int) -> Any:
    from scipy.sparse.linalg import LinearOperator

    kind: Any = LinearOperator  # it makes an object of another class, which checkers do not see
    return kind((size, size), matvec=product, dtype=np.float64)


def _start(size: int) -> Float[np.ndarray, " size"]:
    return np.random.default_rng(0).standard_normal(size)


def _finite(product: np.ndarray) -> np.ndarray:
    if not np.isfinite(product).all():
        raise InputError("A product with the matrix is not finite; it has no eigenvalues to be found.")
    return product


__all__ = ["Spectrum", "eigenvalues", "symmetric_eigenvalues"]
