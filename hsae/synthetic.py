"""Data whose features and hierarchy are known, and how well a dictionary recovers them.

A latent is a learned unit, a feature a true one. Scores of directions, of activations and of parent-child edges compare
the two; which latent stands for which feature is decided by a matching, one to one, of greatest total similarity.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional as F

from hsae.config import check, check_positive


@dataclass
class SyntheticConfig:
    """A forest of features: `parents`, each with `children` of its own, and `singles` without relatives.

    `p_parent` and `p_single` are the probabilities with which a parent and a single fire, `p_child` the one with which
    one of its children fires when a parent does. A feature that fires has the magnitude 1 + magnitude_std * |N(0, 1)|.
    """

    d_in: int
    parents: int
    children: int
    singles: int
    p_parent: float
    p_child: float
    p_single: float
    magnitude_std: float

    def __post_init__(self) -> None:
        check_positive(self, ["d_in", "parents", "children"])
        for name in ("p_parent", "p_child", "p_single"):
            check(name, getattr(self, name), "above 0 and at most 1", 0 < getattr(self, name) <= 1)
        check("singles", self.singles, "0 or above", self.singles >= 0)
        check("magnitude_std", self.magnitude_std, "finite and 0 or above", 0 <= self.magnitude_std < float("inf"))

    @property
    def features(self) -> int:
        """Number of features: parents, then the first parent's children, the second's, ..., then singles."""
        return self.parents * (1 + self.children) + self.singles


@dataclass(frozen=True)
class Forest:
    """The ground truth that training and test samples share."""

    config: SyntheticConfig
    features: Float[Tensor, "feature d_in"]
    """Unit directions."""

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
    """Sums of the features' directions times their magnitudes."""

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
    """Features in random directions, uniform on the sphere and independent of the hierarchy."""
    return Forest(config, F.normalize(torch.randn(config.features, config.d_in, generator=generator)))


def sample(forest: Forest, n: int, generator: torch.Generator) -> SyntheticData:
    """Draw `n` samples.

    Roots fire independently. A child fires only with its parent, and never together with a sibling.
    """
    config = forest.config
    parents = torch.rand(n, config.parents, generator=generator) < config.p_parent
    with_child = parents & (torch.rand(n, config.parents, generator=generator) < config.p_child)
    which = torch.randint(config.children, (n, config.parents, 1), generator=generator)
    children = with_child.unsqueeze(2) & (which == torch.arange(config.children))
    singles = torch.rand(n, config.singles, generator=generator) < config.p_single
    fires = torch.cat([parents, children.flatten(1), singles], dim=1)
    magnitudes = torch.randn(n, config.features, generator=generator).abs_().mul_(config.magnitude_std).add_(1)
    acts = magnitudes.mul_(fires)
    return SyntheticData(acts, acts @ forest.features)


# Which latent stands for which feature


def assign(similarity: Float[Tensor, "latent feature"]) -> Int[Tensor, " feature"]:
    """Latent of each feature in the one-to-one matching of greatest total similarity (Kuhn 1955, Hungarian method).

    Surplus latents stand for nothing; where there are fewer latents than features, the features left over have -1.
    """
    latents, features = linear_sum_assignment(similarity.detach().double().cpu().numpy(), maximize=True)
    latent_of = torch.full((similarity.shape[1],), -1)
    latent_of[torch.from_numpy(features)] = torch.from_numpy(latents)
    return latent_of


def match(directions: Float[Tensor, "latent d_in"], features: Float[Tensor, "feature d_in"]) -> Int[Tensor, " feature"]:
    """Latent of each feature, by |cosine| of their directions (see `assign`)."""
    return assign(_abs_cosines(directions, features))


def match_roots(
    acts: Float[Tensor, "n latent"], truth: Float[Tensor, "n feature"], parent_of: Int[Tensor, " feature"]
) -> Int[Tensor, " feature"]:
    """Latent of each root, by the F1 of their activations (see `assign`); -1 for features that have a parent.

    For level 2, whose latents have no direction in the space of the features.
    """
    roots = parent_of < 0
    latent_of = torch.full_like(parent_of, -1)
    latent_of[roots] = assign(f1_scores(acts, truth[:, roots]))
    return latent_of


# Scores of directions


def mcc(directions: Float[Tensor, "latent d_in"], features: Float[Tensor, "feature d_in"]) -> float:
    """Mean correlation coefficient: mean |cosine| over the pairs of `match` (O'Neill et al. 2024, arXiv 2411.13117).

    Fewer latents than features are not held against the dictionary: a feature without a latent makes no pair.
    """
    cosines = _abs_cosines(directions, features)
    latent_of = assign(cosines)
    matched = (latent_of >= 0).nonzero().squeeze(1)
    return cosines[latent_of[matched], matched].double().mean().item()


def uniqueness(directions: Float[Tensor, "latent d_in"], features: Float[Tensor, "feature d_in"]) -> float:
    """Number of features that are some latent's best by |cosine|, over the number of latents.

    As in sae_lens.synthetic: 1 if no two latents share their best feature; more latents than features cannot reach 1.
    """
    return len(_abs_cosines(directions, features).argmax(1).unique()) / len(directions)


# Scores of activations


def coactivation(a: Float[Tensor, "n left"], b: Float[Tensor, "n right"]) -> Float[Tensor, "left right"]:
    """Number of samples on which both are active (not zero), for every pair of columns; in float64."""
    both = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64, device=a.device)
    # Chunks bound the memory, and keep the counts of a float32 product exact.
    for left, right in zip(a.split(16384), b.split(16384), strict=True):
        both += (left != 0).float().T @ (right != 0).float()
    return both


def f1_scores(acts: Float[Tensor, "n latent"], truth: Float[Tensor, "n feature"]) -> Float[Tensor, "latent feature"]:
    """F1 = 2 * both active / (latent active + feature active) of every latent as a detector of every feature.

    0 where both are silent; in float64.
    """
    latents, features = (acts != 0).sum(0).double(), (truth != 0).sum(0).double()
    return 2 * coactivation(acts, truth) / (latents[:, None] + features).clamp(min=1)


def activation_f1(
    acts: Float[Tensor, "n latent"],
    truth: Float[Tensor, "n feature"],
    directions: Float[Tensor, "latent d_in"],
    features: Float[Tensor, "feature d_in"],
) -> float:
    """F1 of each latent against the feature nearest to it by |cosine|, averaged over latents.

    As in sae_lens.synthetic: a dead latent counts as 0.
    """
    nearest = _abs_cosines(directions, features).argmax(1, keepdim=True)
    return f1_scores(acts, truth).gather(1, nearest).mean().item()


def best_f1(acts: Float[Tensor, "n latent"], truth: Float[Tensor, "n feature"]) -> float:
    """F1 of each feature's best latent, averaged over features: for level 2, whose latents have no direction.

    Several features may have the same best latent.
    """
    return f1_scores(acts, truth).amax(0).mean().item()


# Scores of edges


class EdgeScores(NamedTuple):
    """How well a ranking of candidate edges finds the true ones."""

    average_precision: float
    """Mean precision at the ranks of the true edges."""
    f1: float
    """F1 of as many top-ranked candidates as there are true edges; those that tie at the cut count by their share."""


def conditional_probability(acts: Float[Tensor, "n latent"]) -> Float[Tensor, "parent child"]:
    """P(parent active | child active) of every pair of latents; -inf unless the parent is the more frequent one."""
    n_active = (acts != 0).sum(0).double()
    return _more_frequent(coactivation(acts, acts) / n_active.clamp(min=1), n_active)


def decoder_cosine(
    directions: Float[Tensor, "latent d_in"], acts: Float[Tensor, "n latent"]
) -> Float[Tensor, "parent child"]:
    """Cosine of every pair of latents; -inf unless the parent is the more frequent one.

    It shows hierarchy where a child's latent has absorbed its parent's direction (Chanin et al. 2024, A is for
    Absorption, arXiv 2409.14507).
    """
    unit = F.normalize(directions.double())
    return _more_frequent(unit @ unit.T, (acts != 0).sum(0).double())


def edge_scores(
    scores: Float[Tensor, "parent_latent child_latent"],
    parent_latent_of: Int[Tensor, " feature"],
    child_latent_of: Int[Tensor, " feature"],
    parent_of: Int[Tensor, " feature"],
) -> EdgeScores:
    """Rank all ordered pairs of two different features by the score of the latents that stand for them.

    `scores` is higher for likelier edges, -inf for impossible ones. In a dictionary of one level the same matching
    (`match`) serves for parents and children. In one of two levels `scores` is the level-2 decoder, and parents come
    from `match_roots`. A pair that a feature without a latent (-1) is part of ranks last.
    """
    assert not scores.isnan().any()
    pairs = scores.double().cpu()[parent_latent_of][:, child_latent_of]
    pairs = pairs.masked_fill((parent_latent_of < 0)[:, None] | (child_latent_of < 0), -torch.inf)
    index = torch.arange(len(parent_of))
    different = index[:, None] != index
    pairs, is_edge = pairs[different], (index[:, None] == parent_of)[different]
    # Scikit-learn refuses infinite scores; ranks say all that matters.
    ranks = pairs.unique(return_inverse=True)[1]
    average_precision = average_precision_score(is_edge.numpy(), ranks.numpy())
    return EdgeScores(float(average_precision), _f1_at_top(ranks, is_edge))


def _f1_at_top(ranks: Int[Tensor, " pair"], is_edge: Bool[Tensor, " pair"]) -> float:
    """F1 of the |E| pairs of highest rank: precision and recall are the same there."""
    n_edges = int(is_edge.sum())
    cut = ranks.topk(n_edges).values[-1]
    above, tied = ranks > cut, ranks == cut
    share = (n_edges - above.sum()) / tied.sum()
    return ((is_edge & above).sum() + share * (is_edge & tied).sum()).item() / n_edges


def _more_frequent(
    scores: Float[Tensor, "parent child"], n_active: Float[Tensor, " latent"]
) -> Float[Tensor, "parent child"]:
    return scores.masked_fill(n_active[:, None] <= n_active, -torch.inf)


def _abs_cosines(
    directions: Float[Tensor, "latent d_in"], features: Float[Tensor, "feature d_in"]
) -> Float[Tensor, "latent feature"]:
    return (F.normalize(directions) @ F.normalize(features).T).abs()
