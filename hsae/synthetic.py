"""Data whose features and hierarchy are known: the ground truth that dictionaries are scored against (recovery.py).

A feature is a true unit, a latent a learned one. The settings are those of SynthSAEBench (sae_lens.synthetic): a forest
with exclusive children (Chanin et al. 2024, A is for Absorption, arXiv 2409.14507), firing rates after Zipf's law,
features that attract and repel each other, a bias, noise.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from hsae.config import check, check_positive

FACTORS = 4  # shared causes of the correlated roots
P_MAX = 0.5  # the most frequent features of a skewed distribution are cut off here


@dataclass
class SyntheticConfig:
    """A forest of features: `parents`, each with `children` of its own, and `singles` without relatives.

    A parent fires with probability `p_parent`, a single with `p_single`, and one of a parent's children with `p_child`
    when the parent does. With `zipf` above 0 these are means: the parents' probabilities, the singles', and the
    children's shares of p_child fall as rank^-zipf; what would exceed 0.5 is cut, so that the mean is lower then.

    The roots (parents and singles) are independent for `correlation` 0, and close to functions of 4 common causes as
    it nears 1. A feature that fires has the magnitude 1 + magnitude_std * |N(0, 1)|. The inputs have a constant part of
    norm `bias_norm` and noise of standard deviation `noise_std` on each coordinate. Directions are random, or, if
    `orthogonal`, orthonormal.
    """

    d_in: int
    parents: int
    children: int
    singles: int
    p_parent: float
    p_child: float
    p_single: float
    zipf: float
    correlation: float
    magnitude_std: float
    noise_std: float
    bias_norm: float
    orthogonal: bool

    def __post_init__(self) -> None:
        check_positive(self, ["d_in", "parents", "children"])
        for name in ("p_parent", "p_child", "p_single"):
            check(name, getattr(self, name), "above 0 and at most 1", 0 < getattr(self, name) <= 1)
        check("singles", self.singles, "0 or above", self.singles >= 0)
        for name in ("zipf", "magnitude_std", "noise_std", "bias_norm"):
            check(name, getattr(self, name), "finite and 0 or above", 0 <= getattr(self, name) < float("inf"))
        check("correlation", self.correlation, "0 or above and below 1", 0 <= self.correlation < 1)
        sizes = f"{self.features} features in {self.d_in} dimensions"
        check("orthogonal", self.orthogonal, f"false for {sizes}", not self.orthogonal or self.features <= self.d_in)

    @property
    def features(self) -> int:
        """Number of features: parents, then the first parent's children, the second's, ..., then singles."""
        return self.parents * (1 + self.children) + self.singles

    @property
    def p_roots(self) -> Float[Tensor, " root"]:
        """Probabilities with which the parents and the singles fire; in float64."""
        means = [(self.p_parent, self.parents), (self.p_single, self.singles)]
        return torch.cat([(p * n * self._shares(n)).clamp(max=max(p, P_MAX)) for p, n in means])

    @property
    def child_shares(self) -> Float[Tensor, " child"]:
        """How the firings of a parent's children divide among them; the sum is 1."""
        return self._shares(self.children)

    def _shares(self, n: int) -> Float[Tensor, " n"]:
        weights = torch.arange(1, n + 1, dtype=torch.float64) ** -self.zipf
        return weights / weights.sum()


@dataclass(frozen=True)
class Forest:
    """The ground truth that training and test samples share."""

    config: SyntheticConfig
    features: Float[Tensor, "feature d_in"]
    """Unit directions."""
    loadings: Float[Tensor, "root factor"]
    """Unit vectors: roots with like ones attract, with opposite ones repel each other."""
    bias: Float[Tensor, " d_in"]
    """The constant part of the inputs."""

    @property
    def parent_of(self) -> Int[Tensor, " feature"]:
        """Index of each feature's parent; -1 for the roots, which are the parents and the singles."""
        config = self.config
        parents_of_children = torch.arange(config.parents).repeat_interleave(config.children)
        return torch.cat([torch.full((config.parents,), -1), parents_of_children, torch.full((config.singles,), -1)])


@dataclass(frozen=True)
class SyntheticData:
    """Independent samples: what `training.fit` trains on (`Shuffled`), and the truth behind them."""

    acts: Float[Tensor, "n feature"]
    """True magnitudes, 0 where a feature is silent."""
    inputs: Float[Tensor, "n d_in"]
    """Sums of the features' directions times their magnitudes, plus bias and noise."""

    def __len__(self) -> int:
        return len(self.inputs)

    def x(self, rows: slice) -> Float[Tensor, "batch d_in"]:
        """Inputs at some rows."""
        return self.inputs[rows]

    def batches(self, size: int = 4096) -> Iterator[Float[Tensor, "batch d_in"]]:
        """All inputs, in their order."""
        return iter(self.inputs.split(size))

    def l0(self) -> float:
        """Mean number of features that fire."""
        return ((self.acts != 0).sum() / len(self)).item()


def ground_truth(config: SyntheticConfig, generator: torch.Generator) -> Forest:
    """Draw features, loadings and bias: uniform on their spheres, whatever the hierarchy."""
    features = torch.empty(config.features, config.d_in)
    if config.orthogonal:
        nn.init.orthogonal_(features, generator=generator)
    else:
        features = F.normalize(features.normal_(generator=generator))
    loadings = F.normalize(torch.randn(config.parents + config.singles, FACTORS, generator=generator))
    direction = F.normalize(torch.randn(config.d_in, generator=generator), dim=0)
    return Forest(config, features, loadings, config.bias_norm * direction)


def sample(forest: Forest, n: int, generator: torch.Generator) -> SyntheticData:
    """Draw `n` samples. A child fires only with its parent, and never together with a sibling."""
    config = forest.config
    roots = _sample_roots(forest, n, generator)
    parents, singles = roots[:, : config.parents], roots[:, config.parents :]
    with_child = parents & (torch.rand(n, config.parents, generator=generator) < config.p_child)
    which = torch.multinomial(config.child_shares, n * config.parents, replacement=True, generator=generator)
    is_drawn = which.view(n, config.parents, 1) == torch.arange(config.children)
    children = with_child.unsqueeze(2) & is_drawn
    fires = torch.cat([parents, children.flatten(1), singles], dim=1)
    magnitudes = torch.randn(n, config.features, generator=generator).abs_().mul_(config.magnitude_std).add_(1)
    acts = magnitudes.mul_(fires)
    noise = torch.randn(n, config.d_in, generator=generator)
    return SyntheticData(acts, torch.addmm(forest.bias, acts, forest.features).add_(noise, alpha=config.noise_std))


def _sample_roots(forest: Forest, n: int, generator: torch.Generator) -> Bool[Tensor, "n root"]:
    """Whether roots fire, by a Gaussian copula: their probabilities are the same for any correlation."""
    correlation = forest.config.correlation
    common = torch.randn(n, FACTORS, generator=generator) @ forest.loadings.T
    own = torch.randn(n, len(forest.loadings), generator=generator)
    z = own.mul_((1 - correlation) ** 0.5).add_(common, alpha=correlation**0.5)
    return z < torch.special.ndtri(forest.config.p_roots).float()
