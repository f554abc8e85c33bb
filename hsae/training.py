"""The training loop of every autoencoder: what it minimises is the caller's function of a batch."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hsae.config import check, check_positive
from hsae.progress import Progress

LOG_POINTS = 100


@dataclass
class Phase:
    """Sections `phase1`, `phase2`, `phase3`: length and learning rate of a training phase.

    The learning rate is constant but for the last `decay_fraction` of the steps, over which it falls linearly to 0.
    """

    epochs: int
    batch_size: int
    lr: float
    decay_fraction: float

    def __post_init__(self) -> None:
        check_positive(self, ["epochs", "batch_size", "lr"])
        check("decay_fraction", self.decay_fraction, "in [0, 1]", 0 <= self.decay_fraction <= 1)


@runtime_checkable
class Shuffled(Protocol):
    """What `fit` needs of its data: as many rows as `len` says, already shuffled, readable in slices."""

    def __len__(self) -> int: ...

    def x(self, rows: slice) -> Float[Tensor, "batch d_in"]:
        """Inputs at some rows."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """What `fit` needs of a model beside being an nn.Module: a decoder that stays valid."""

    def constrain(self) -> None:
        """Make the parameters valid again after an optimizer step."""
        ...

    def project_gradient(self) -> None:
        """Drop the part of the gradient that `constrain` would undo."""
        ...


def fit(
    label: str,
    model: Trainable,
    data: Shuffled,
    objective: Callable[[Float[Tensor, "batch d_in"]], dict[str, Tensor]],
    phase: Phase,
    seed: int,
) -> list[dict[str, float]]:
    """Minimise the sum of the terms that `objective` returns, with Adam, and return the curve.

    Parameters that need no gradient stay as they are, to the bit. `seed` orders the batches. The curve has at most 100
    rows, each the mean of every term, and of their sum `loss`, over the steps since the last row. Raises ValueError if
    the loss stops being finite.
    """
    assert isinstance(model, nn.Module)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=phase.lr, fused=True)
    n_steps = phase.epochs * max(len(data) // phase.batch_size, 1)
    curve, sums, since = [], None, 0
    with Progress(label, n_steps) as bar:
        for step, rows in enumerate(_batches(len(data), phase, seed)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, n_steps, phase)
            terms = objective(data.x(rows))
            loss = torch.stack(list(terms.values())).sum()
            if not loss.isfinite():
                raise ValueError(f"{label}: the loss is {loss.item()} at step {step + 1}; lower `{label}.lr`.")
            if not loss.requires_grad:
                raise ValueError(
                    f"{label}: nothing to learn: the terms that reach the trained level all have weight 0."
                )
            optimizer.zero_grad()
            loss.backward()
            model.project_gradient()
            optimizer.step()
            model.constrain()
            values = torch.stack([loss.detach(), *(term.detach() for term in terms.values())]).double()
            sums, since = values if sums is None else sums + values, since + 1
            if (step + 1) * LOG_POINTS // n_steps > step * LOG_POINTS // n_steps:
                means = (sums / since).tolist()
                curve.append({"step": step + 1, **dict(zip(["loss", *terms], means, strict=True))})
                sums, since = None, 0
            bar.advance(1, f"loss {curve[-1]['loss']:.4f}" if curve else "")
    return curve


def learning_rate(step: int, n_steps: int, phase: Phase) -> float:
    """Constant, then linear to zero over the last `decay_fraction` of the steps."""
    decay_steps = phase.decay_fraction * n_steps
    return phase.lr * min(1.0, (n_steps - step) / decay_steps if decay_steps else math.inf)


def _batches(n_tokens: int, phase: Phase, seed: int) -> Iterator[slice]:
    """Contiguous batches of the shuffled tokens, in a fresh order every epoch, without the incomplete last one."""
    generator = torch.Generator().manual_seed(seed)
    size = min(phase.batch_size, n_tokens)
    for _ in range(phase.epochs):
        for index in torch.randperm(n_tokens // size, generator=generator).tolist():
            yield slice(index * size, (index + 1) * size)
