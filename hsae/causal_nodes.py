"""Nodes that are candidates for a cause: ranked by attribution, and what they are compared with."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae import causal
from hsae.causal import Basis, Runs
from hsae.config import check
from hsae.streams import Stream

NEURONS, LEVEL1, LEVEL2 = "neurons", "level1", "level2"
UNTRAINED = {LEVEL1: "untrained level1", LEVEL2: "untrained level2"}  # what training has to be better than
MATCHED, RANDOM, DIFFERENCE = "matched random latents", "random directions", "difference of means"
NEAREST = 10  # latents among which a matched one is drawn


@dataclass(frozen=True)
class Choice:
    """Nodes of a basis, those first that discovery says matter most."""

    basis: Basis
    order: Int[Tensor, " chosen"]
    difference: Float[Tensor, " node"]
    """How much more of every node there is after the prompt, all positions together, in the order of the basis."""

    @property
    def promoted(self) -> int:
        """The first node of which there is more after the prompt: one to steer with, as latents are never negative."""
        more = self.order[self.difference[self.order] > 0]
        return int(more[0] if len(more) else self.order[0])


def choose(basis: Basis, runs: Runs, gradient: Float[Tensor, "pair pos d_in"]) -> Choice:
    """Rank the nodes of a basis by their mean attribution."""
    codes = runs.codes(basis)
    scores = causal.attribution(codes, basis, gradient).mean(0)
    return Choice(basis, scores.argsort(descending=True, stable=True), codes.sum(1).mean(0))


def promoted_by_chance(
    n: int, draws: int, runs: Runs, gradient: Float[Tensor, "pair pos d_in"], stream: Stream
) -> Float[Tensor, "draw d_in"]:
    """The direction that is `promoted` of `n` random ones, drawn anew time after time: what such a choice gives anyway.

    A direction's node is the coordinate along it. Its attribution, the sum of (difference . direction) (gradient .
    direction), is a quadratic form in the direction: thousands of directions cost one small product.
    """
    difference = runs.difference()
    form = torch.einsum("npi,npj->ij", difference, gradient) / len(runs)
    more = difference.sum(1).mean(0)
    found = []
    for draw in range(draws):
        random = torch.randn(n, len(form), generator=stream.of(draw).torch()).to(form)
        directions = random / random.norm(dim=1, keepdim=True)
        order = ((directions @ form) * directions).sum(1).argsort(descending=True, stable=True)
        found.append(directions[Choice(linear_basis(directions), order, directions @ more).promoted])
    return torch.stack(found)


def liveliness(basis: Basis, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "node 2"]:
    """Log frequency and log mean activation of every latent on `x`: what matched ones have in common."""
    acts = basis.encode(x)
    frequency, mean = (acts != 0).double().mean(0), acts.double().mean(0)
    return torch.stack([frequency.clamp(min=1e-6).log(), mean.clamp(min=1e-6).log()], 1).cpu()


def matched(
    order: Int[Tensor, " node"], lively: Float[Tensor, "node 2"], n: int, stream: Stream
) -> Int[Tensor, " chosen"]:
    """Random latents instead of the first `n`: each is like one of them in how often and how strongly it is active.

    Drawn, without replacement, among the ten nearest by `liveliness` that are not among the first n themselves. Raises
    ValueError if `n` is more than half of the latents.
    """
    check("n", n, f"at most half of the latents (={len(lively)})", 2 * n <= len(lively))
    first = order[:n].cpu()
    free = torch.ones(len(lively), dtype=torch.bool)
    free[first] = False
    generator = stream.torch()
    drawn = []
    for node in first.tolist():
        distances = (lively - lively[node]).norm(dim=1).masked_fill(~free, torch.inf)
        nearest = distances.topk(min(NEAREST, int(free.sum())), largest=False).indices
        drawn.append(int(nearest[torch.randint(len(nearest), (1,), generator=generator)]))
        free[drawn[-1]] = False
    return order.new_tensor(drawn)


def linear_basis(directions: Float[Tensor, "node d_in"]) -> Basis:
    """Orthonormal directions as nodes: codes are coordinates along them, and nothing is left over if they span all."""
    return Basis(lambda x: x @ directions.T, directions)


def rival_bases(x: Float[Tensor, "token d_in"], stream: Stream) -> dict[str, Basis]:
    """Coordinates of the residual stream, its principal components on `x`, and random orthonormal directions.

    `stream` draws the random ones. Neurons are coordinates of the residual stream itself, as in MIB (Mueller et al.
    2025, arXiv 2504.13151).
    """
    centred = x - x.mean(0)
    components = torch.linalg.eigh(centred.T @ centred).eigenvectors.T.flip(0)
    random = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=stream.torch()))[0].to(x)
    directions = {NEURONS: torch.eye(x.shape[1], device=x.device), "PCA": components, RANDOM: random}
    return {name: linear_basis(rows) for name, rows in directions.items()}


def difference_of_means(runs: Runs) -> Basis:
    """One direction: the mean difference at the last position."""
    mean = runs.difference()[:, -1].mean(0)
    return linear_basis((mean / mean.norm())[None])
