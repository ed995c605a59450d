"""The record of how stable a training was, its verdict, its figure and its file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from lopt.checkpoint import write_bytes, write_text
from lopt.evaluate.report.page import panels, png_of

DIVERGED = 2.0  # a loss above so many times that at the start


@dataclasses.dataclass(frozen=True)
class Certificate:
    r"""How stable a training was, at its checkpoints, and what that says.

    At each checkpoint the joint step of parameters and optimizer state is linearised. `sharpness` is the largest eigenvalue of the Hessian of the loss.
    `critical_sharpness` is the largest one at which the linearised step would not overshoot, were the Hessian multiplied by one factor. Their ratio
    is the `margin`. Then the
    training goes on for 40 steps, to see what really happens.

    Three verdicts are kept apart, because a step that overshoots is not a training that diverges:

    - **unstable from step k**: the training diverged. From the checkpoint k on its loss, after the 40 steps, was not finite or more than twice the
      loss at the start.
    - **at the edge**: it did not, and at some checkpoint the margin was below 1. A rule that divides by the size of its own gradients takes bounded
      steps: along
      the sharpest direction it steps to and fro across the valley and stays there. A network trained by gradient descent does so as well, for its
      curvature falls as the steps grow.
    - **stable**: the margin was above 1 at all checkpoints.

    Attributes:
        optimizer: the rule.
        horizon: steps of the training.
        tolerance: an `overshoot` up to $1 + \mathrm{tolerance}$ counts as stable.
        initial_loss: at the start.
        steps: of the checkpoints.
        loss: before each of these steps.
        loss_after: mean of the last ten of the 40 steps from there.
        sharpness: $\lambda_{\max}(\nabla^2 f)$.
        critical_sharpness: infinite where the step is stable at any curvature up to 10,000 times the present one.
        margin: the second over the first; below 1 the linearised step is unstable.
        overshoot: the largest modulus of the eigenvalues of the step that are not near the positive real axis; see `overshoot`.
        spectral_radius: the largest modulus of all of them.
        exponent: the Lyapunov exponent over the second half of the 40 steps, per step. Where it is far below $\log$ `overshoot`, the overshoot does not last.
        noise_amplification: how far noise moves the parameters, beside a random walk; see `noise_amplification`.
        residual: relative, of the eigenvalue behind the spectral radius; NaN where Arnoldi's iteration did not converge.
    """

    optimizer: str
    horizon: int
    tolerance: float
    initial_loss: float
    steps: Int[np.ndarray, " checkpoints"]
    loss: Float[np.ndarray, " checkpoints"]
    loss_after: Float[np.ndarray, " checkpoints"]
    sharpness: Float[np.ndarray, " checkpoints"]
    critical_sharpness: Float[np.ndarray, " checkpoints"]
    margin: Float[np.ndarray, " checkpoints"]
    overshoot: Float[np.ndarray, " checkpoints"]
    spectral_radius: Float[np.ndarray, " checkpoints"]
    exponent: Float[np.ndarray, " checkpoints"]
    noise_amplification: Float[np.ndarray, " checkpoints"]
    residual: Float[np.ndarray, " checkpoints"]

    @property
    def diverged_at(self) -> Bool[np.ndarray, " checkpoints"]:
        """Where the training has diverged."""
        return ~(self.loss_after - self.initial_loss <= (DIVERGED - 1.0) * abs(self.initial_loss))

    @property
    def overshoots_at(self) -> Bool[np.ndarray, " checkpoints"]:
        """Where the linearised step is unstable."""
        return self.overshoot > 1.0 + self.tolerance

    @property
    def unstable_from(self) -> int | None:
        """The step of the first checkpoint from which on the training had diverged, to the last; `None` where it had not at the last."""
        diverged = self.diverged_at
        if not diverged[-1]:
            return None
        kept = np.flatnonzero(~diverged)
        return int(self.steps[kept[-1] + 1 if len(kept) else 0])

    @property
    def stable(self) -> bool:
        """Whether the training did not diverge: stable, or at the edge."""
        return self.unstable_from is None

    @property
    def least_margin(self) -> float:
        """The smallest margin of all checkpoints that have one; NaN where none has."""
        known = self.margin[~np.isnan(self.margin)]
        return float(known.min()) if len(known) else float("nan")

    @property
    def verdict(self) -> str:
        """In one sentence."""
        if not self.stable:
            where = f"Unstable from step {self.unstable_from} of {self.horizon}"
            return f"{where}: the loss is above {DIVERGED:g} times that at the start, or not finite."
        unknown = int(np.isnan(self.overshoot).sum())
        if unknown:
            where = f"{unknown} of {len(self.steps)} checkpoints"
            return f"Not certified: the training did not diverge to step {self.horizon}, but no eigenvalues were found at {where}."
        over = int(self.overshoots_at.sum())
        margin = f"smallest margin {self.least_margin:.3g}"
        if over:
            where = f"{over} of {len(self.steps)} checkpoints"
            return f"At the edge to step {self.horizon}, {margin}: steps overshoot at {where}, and the training did not diverge."
        return f"Stable to step {self.horizon}, {margin}."

    def to_json(self) -> str:
        """All of it as JSON; what is not finite is null."""
        found: dict[str, Any] = {"verdict": self.verdict, "stable": self.stable, "unstable_from": self.unstable_from}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value = [x if np.isfinite(x) else None for x in value.tolist()]
            found[field.name] = value if not isinstance(value, float) or np.isfinite(value) else None
        return json.dumps(found, indent=2) + "\n"

    def plot(self) -> Any:
        """Sharpness and critical sharpness, overshoot and spectral radius, exponent: a matplotlib figure."""
        fig, (axes,) = panels(3, width=3.7, height=3.4)
        axes[0].plot(self.steps, self.sharpness, "o-", color="#0072b2", label="sharpness")
        axes[0].plot(self.steps, self.critical_sharpness, "s--", color="#d55e00", label="critical sharpness")
        axes[0].set(title="curvature of the loss", yscale="log")
        axes[1].plot(self.steps, self.overshoot, "o-", color="#0072b2", label="overshoot")
        axes[1].plot(self.steps, self.spectral_radius, "^:", color="#cc79a7", label="spectral radius")
        axes[1].axhline(1.0, color="0.5", lw=0.8, ls=":")
        axes[1].set(title="eigenvalues of the training step")
        axes[2].plot(self.steps, self.exponent, "o-", color="#0072b2", label="Lyapunov exponent")
        with np.errstate(divide="ignore"):
            axes[2].plot(self.steps, np.log(self.overshoot), "s--", color="#d55e00", label="log overshoot")
        axes[2].axhline(0.0, color="0.5", lw=0.8, ls=":")
        axes[2].set(title="growth of perturbations, per step")
        for a in axes:
            a.set_xlabel("step")
            a.legend(frameon=False)
        return fig


def write_certificate(certificate: Certificate, folder: Path) -> list[Path]:
    """`certificate.json` and `certificate.png` in a folder, by write-then-rename."""
    folder.mkdir(parents=True, exist_ok=True)
    text, image = folder / "certificate.json", folder / "certificate.png"
    write_text(text, certificate.to_json())
    write_bytes(image, png_of(certificate.plot()))
    return [text, image]


__all__ = ["Certificate", "write_certificate"]
