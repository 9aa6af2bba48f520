"""How to distill, and what is told while it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from optimize.errors import InputError
from optimize.passes.training.outputs import Kind, ValueLoss


@dataclass(frozen=True)
class DistillOptions:
    """How to train.

    Attributes:
        epochs: passes over the training part; ``steps`` overrides it.
        steps: batches to train on.
        temperature: softens class scores.
        alpha: weight of the labels' cross-entropy, 0 to 1; the rest is the teacher's.
        features: weight of the hidden features' squared error; 0 for none.
        layers: modules whose features to compare, see :func:`features.pairs_of`.
        outputs: names of the outputs to compare; empty for all that both have in one shape.
        kind: of the outputs; ``auto`` tells it from the teacher's values.
        values: loss for outputs that are no classes.
        lr: peak learning rate of AdamW.
        weight_decay: of matrices and kernels; never of biases and norms.
        warmup: share of the steps over which the rate rises.
        clip: largest norm of the gradient.
        dropout: whether the student's dropout is on; a teacher's function is learnt better without.
        evaluations: how often to look at the held-out part.
        patience: evaluations without improvement before it stops; 0 for never.
        keep_zeros: whether weights that are zero at the start stay so, as after masking.
        seed: of the order and of whatever is random in the student.
    """

    epochs: float = 10.0
    steps: int | None = None
    temperature: float = 2.0
    alpha: float = 0.0
    features: float = 0.0
    layers: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    kind: Kind | Literal["auto"] = "auto"
    values: ValueLoss = "mse"
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip: float = 1.0
    dropout: bool = False
    evaluations: int = 20
    patience: int = 8
    keep_zeros: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Reject what cannot be meant."""
        length = self.steps or self.epochs
        checks = {
            "epochs or steps must be positive and finite": 0 < length < math.inf,
            "temperature must be positive and finite": 0 < self.temperature < math.inf,
            "alpha must lie between 0 and 1": 0 <= self.alpha <= 1,
            "lr must be positive and finite": 0 < self.lr < math.inf,
            "warmup must lie between 0 and 1": 0 <= self.warmup < 1,
            "evaluations must be at least 1": self.evaluations >= 1,
            "features must be at least 0 and finite": 0 <= self.features < math.inf,
        }
        for text, holds in checks.items():
            if not holds:
                raise InputError(f"distill: {text}")


@dataclass(frozen=True)
class Progress:
    """How far training is.

    Attributes:
        step: batches seen.
        steps: batches planned.
        loss: on the held-out part, now.
        best: the lowest so far.
        seconds_left: an estimate at the present speed.
    """

    step: int
    steps: int
    loss: float
    best: float
    seconds_left: float

    def __str__(self) -> str:
        return (
            f"step {self.step}/{self.steps}, held-out loss {self.loss:.4g} "
            f"(best {self.best:.4g}), {self.seconds_left:.0f} s left"
        )
