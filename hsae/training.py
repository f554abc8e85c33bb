"""The training loop of every autoencoder: it follows the gradients that it is given."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hsae import parallel
from hsae.checkpoint import NOWHERE, Checkpoints, Saved, restore, tensors_of
from hsae.config import check, check_positive
from hsae.progress import Progress
from hsae.streams import Stream

LOG_POINTS = 100
REVIVE_EVERY = 20
REVIVE_DOWN_TO = 0.3  # of the learning rate: what is revived later cannot settle any more

Curve = list[dict[str, float]]
"""The terms of a loss by step."""
Terms = dict[str, Tensor]
"""The terms of a loss, detached, by name."""
Gradients = Callable[[Float[Tensor, "batch d_in"]], Terms]
"""Computes the terms at a batch, and leaves the gradient of their sum in the parameters' `.grad`.

Where processes train together, it is called with a share of the batch: means over processes are those of the batch.
"""


@runtime_checkable
class Shuffled(Protocol):
    """What `fit` needs of its data: as many rows as `len` says, already shuffled, readable in slices.

    Data that are not in memory as a whole say by an attribute `rows_per_block` how many of them are at a time.
    """

    def __len__(self) -> int: ...

    def x(self, rows: slice) -> Float[Tensor, "batch d_in"]:
        """Inputs at some rows."""
        ...


@dataclass
class Phase:
    """Sections `phase1`, `phase2`, `phase3`: length (in passes over the tokens) and learning rate of a training phase.

    The learning rate is constant but for the last `decay_fraction` of the steps, over which it falls linearly to 0.
    Thresholds start high and come down over the first `anneal_fraction`. No epochs: the phase is skipped.
    """

    epochs: float
    batch_size: int
    lr: float
    decay_fraction: float
    anneal_fraction: float

    def __post_init__(self) -> None:
        check("epochs", self.epochs, "finite and 0 or above", 0 <= self.epochs < math.inf)
        check_positive(self, ["batch_size", "lr"])
        for name in ("decay_fraction", "anneal_fraction"):
            check(name, getattr(self, name), "in [0, 1]", 0 <= getattr(self, name) <= 1)

    def n_steps(self, data: Shuffled) -> int:
        """Number of optimizer steps on some data."""
        # Rounded first: 0.07 * 100 is a little more than 7.
        return math.ceil(round(self.epochs * Batches(data, self.batch_size, torch.Generator()).n, 6))


@runtime_checkable
class Trainable(Protocol):
    """What `fit` needs of a model beside being an nn.Module: a decoder that stays valid, annealing and revival."""

    def constrain(self) -> None:
        """Make the parameters valid again after an optimizer step."""
        ...

    def project_gradient(self) -> None:
        """Drop the part of the gradient that `constrain` would undo."""
        ...

    def anneal(self, left: float) -> None:
        """Set how much of the annealing is left, from 1 to 0."""
        ...

    def revive(self, x: Float[Tensor, "batch d_in"], dead_tokens: int, generator: torch.Generator) -> int:
        """Restart latents that were silent for `dead_tokens` tokens, and say how many they were."""
        ...


class Autograd:
    """Gradients of an objective of tensors, by autograd."""

    def __init__(self, model: nn.Module, objective: Callable[[Float[Tensor, "batch d_in"]], Terms]):
        self.model, self.objective = model, objective

    def __call__(self, x: Float[Tensor, "batch d_in"]) -> Terms:
        """The terms, detached. Raises ValueError if none of them depends on a parameter."""
        terms = self.objective(x)
        loss = torch.stack(list(terms.values())).sum()
        if not loss.requires_grad:
            raise ValueError("nothing to learn: the terms that reach the trained level all have weight 0.")
        self.model.zero_grad()
        loss.backward()
        return {name: term.detach() for name, term in terms.items()}


def memory(gradients: Gradients) -> dict[str, Tensor]:
    """The numbers by which gradients depend on earlier batches, if they do: what their attribute `memory` holds."""
    return getattr(gradients, "memory", {})


def fit(
    label: str,
    model: Trainable,
    data: Shuffled,
    gradients: Gradients,
    phase: Phase,
    stream: Stream,
    dead_tokens: int,
    checkpoints: Checkpoints = NOWHERE,
) -> Curve:
    """Minimise the sum of the terms whose `gradients` are given, with Adam, and return the curve.

    Parameters that need no gradient stay as they are, to the bit. Parts of `stream` order the batches and draw
    the tokens that dead latents are pointed at: whether latents die changes no order. Latents that were silent
    for `dead_tokens` tokens are revived (unless that is 0) until the learning rate has fallen to a third or so.
    The curve has at most 100 rows, each the mean of every term, and of their sum `loss`, over the steps since the last
    row, and the number of latents `revived` in them. Raises ValueError if the loss stops being finite.

    If `checkpoints` has one of this label, training goes on from there, to the same bits; they are kept by label.

    Several processes (hsae/parallel.py) share out each batch, which must be possible without a rest, and come to the
    same result, rounding apart. The first one keeps the checkpoints, whose files all must be able to read.
    """
    assert isinstance(model, nn.Module)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=phase.lr, fused=True)
    model.train()
    n_steps = phase.n_steps(data)
    checkpoints = checkpoints.of(label)
    batches, log = Batches(data, phase.batch_size, stream.of("order of batches").torch()), _Log()
    revival = stream.of("revival").torch()
    generators = {"order": batches.generator, "revival": revival}
    parallel.check_batch(batches.size)
    if saved := _last(checkpoints):
        restore(saved.tensors, model, optimizer, generators)
        batches.order = saved.tensors["order"]
        for name, number in memory(gradients).items():
            number.copy_(saved.tensors[f"memory.{name}"])
        log = _Log(**saved.state)
    start = saved.step if saved else 0
    with Progress(label, n_steps, start) as bar:
        for step in range(start, n_steps):
            lr = learning_rate(step, n_steps, phase)
            for group in optimizer.param_groups:
                group["lr"] = lr
            model.anneal(annealing_left(step, n_steps, phase))
            x = data.x(batches.rows(step))
            terms = parallel.averaged(model, gradients(parallel.share(x)))
            loss = log.add(terms)
            if not math.isfinite(loss):
                raise ValueError(f"{label}: the loss is {loss} at step {step + 1}; lower the phase's `lr`.")
            model.project_gradient()
            optimizer.step()
            model.constrain()
            if dead_tokens and step % REVIVE_EVERY == REVIVE_EVERY - 1 and lr >= REVIVE_DOWN_TO * phase.lr:
                log.revived += model.revive(x, dead_tokens, revival)
            if (step + 1) * LOG_POINTS // n_steps > step * LOG_POINTS // n_steps:
                log.end_row(step + 1, list(terms))
                parallel.check_alike(model)
            bar.advance(1, f"loss {log.curve[-1]['loss']:.4f}" if log.curve else "")
            if parallel.rank() == 0 and (checkpoints.due() or step + 1 == n_steps):
                numbers = {f"memory.{name}": number for name, number in memory(gradients).items()}
                tensors = tensors_of(model, optimizer, generators) | numbers | {"order": batches.order}
                checkpoints.save(step + 1, tensors, vars(log))
    model.anneal(0.0)
    model.eval()
    return log.curve


def _last(checkpoints: Checkpoints) -> Saved | None:
    """The last good checkpoint, which the first process chooses for all."""
    saved = checkpoints.load() if parallel.rank() == 0 else None
    step = parallel.first_says(saved.step if saved else 0)
    return checkpoints.of_step(step) if step and not saved else saved


class Batches:
    """Contiguous batches of shuffled tokens: every epoch the blocks in a fresh order, and each block's batches in one.

    No batch crosses blocks: the tokens at a block's end that fill none are left out, and so is a last block that is
    shorter than a batch. All are of one size, and there are `n` in an epoch. Raises ValueError if they are larger than
    a block.
    """

    def __init__(self, data: Shuffled, batch_size: int, generator: torch.Generator):
        n, block = len(data), getattr(data, "rows_per_block", len(data))
        self.size = max(min(batch_size, n), 1)
        check("batch_size", self.size, f"at most the tokens of a block (={block})", self.size <= block)
        firsts = [range(at, min(at + block, n) - self.size + 1, self.size) for at in range(0, n, block)]
        self.firsts = [of_block for of_block in firsts if of_block]
        self.n = sum(map(len, self.firsts))
        self.generator = generator
        self.order = torch.empty(0, dtype=torch.long)

    def rows(self, step: int) -> slice:
        """The batch of a step; steps are asked for one after the other."""
        if step % self.n == 0:
            blocks = [self.firsts[i] for i in torch.randperm(len(self.firsts), generator=self.generator)]
            orders = [torch.randperm(len(block), generator=self.generator) for block in blocks]
            self.order = torch.cat([block.start + self.size * o for block, o in zip(blocks, orders, strict=True)])
        first = int(self.order[step % self.n])
        return slice(first, first + self.size)


@dataclass
class _Log:
    """The curve, and what its next row comes of: the sums of the loss and its terms over `steps`; latents `revived`."""

    curve: Curve = field(default_factory=list)
    sums: list[float] = field(default_factory=list)
    steps: int = 0
    revived: int = 0

    def add(self, terms: Terms) -> float:
        """Add the terms of a step; returns the loss."""
        values = torch.stack(list(terms.values())).double()
        values = [values.sum().item(), *values.tolist()]
        self.sums = [a + b for a, b in zip(self.sums, values, strict=True)] if self.steps else values
        self.steps += 1
        return values[0]

    def end_row(self, step: int, names: list[str]) -> None:
        """End a row of the curve."""
        means = {name: total / self.steps for name, total in zip(["loss", *names], self.sums, strict=True)}
        self.curve.append({"step": step, **means, "revived": self.revived})
        self.steps, self.revived = 0, 0


def learning_rate(step: int, n_steps: int, phase: Phase) -> float:
    """Constant, then linear to zero over the last `decay_fraction` of the steps."""
    decay_steps = phase.decay_fraction * n_steps
    return phase.lr * min(1.0, (n_steps - step) / decay_steps if decay_steps else math.inf)


def annealing_left(step: int, n_steps: int, phase: Phase) -> float:
    """From 1 linearly to 0 over the first `anneal_fraction` of the steps."""
    anneal_steps = phase.anneal_fraction * n_steps
    return max(1 - step / anneal_steps, 0.0) if anneal_steps else 0.0
