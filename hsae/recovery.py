"""How well a dictionary recovers features and a hierarchy that are known (synthetic.py).

A latent is a learned unit, a feature a true one. Scores of directions, of activations and of parent-child edges compare
the two; which latent stands for which feature is decided by a matching, one to one, of greatest total similarity.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import shortest_path
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional as F

from hsae.config import check
from hsae.streams import Stream

TIE_BREAKS = 32

# Which latent stands for which feature


def assign(similarity: Float[Tensor, "latent feature"]) -> Int[Tensor, " feature"]:
    """Latent of each feature in the one-to-one matching of greatest total similarity (Kuhn 1955, Hungarian method).

    Surplus latents stand for nothing, and so do those whose similarity is 0. The features left over have -1.
    """
    similarity = similarity.detach().double().cpu()
    latents, features = map(torch.from_numpy, linear_sum_assignment(similarity.numpy(), maximize=True))
    alike = similarity[latents, features] > 0
    latent_of = torch.full((similarity.shape[1],), -1)
    latent_of[features[alike]] = latents[alike]
    return latent_of


def match(directions: Float[Tensor, "latent d_in"], features: Float[Tensor, "feature d_in"]) -> Int[Tensor, " feature"]:
    """Latent of each feature, by |cosine| of their directions (see `assign`)."""
    return assign(_abs_cosines(directions, features))


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


def absorption(
    acts: Float[Tensor, "n latent"],
    truth: Float[Tensor, "n feature"],
    latent_of: Int[Tensor, " feature"],
    parent_of: Int[Tensor, " feature"],
) -> float:
    """Share of the children's firings at which the child's latent is active and its parent's is not.

    The child's latent has then absorbed the parent (Chanin et al. 2024, A is for Absorption, arXiv 2409.14507): it says
    that the parent fires, which the parent's latent should. All samples and all children count, weighted by how often
    they fire; firings that the child's latent misses are no absorption. A feature without a latent (-1) is never seen.
    Raises ValueError if no child fires.
    """
    children = (parent_of >= 0).nonzero().squeeze(1)
    fires = truth[:, children] != 0
    check("firings of children", int(fires.sum()), "at least one", bool(fires.any()))
    seen = (acts != 0)[:, latent_of] & (latent_of >= 0)
    absorbed = fires & seen[:, children] & ~seen[:, parent_of[children]]
    return absorbed.sum().item() / fires.sum().item()


# Scores of edges


class EdgeScores(NamedTuple):
    """How well a ranking of candidate edges finds the true ones."""

    average_precision: float
    """Mean precision at the ranks of the true edges."""
    f1: float
    """F1 of as many top-ranked candidates as there are true edges; those that tie at the cut count by their share."""


def prevalence(parent_of: Int[Tensor, " feature"]) -> float:
    """Share of true edges among all ordered pairs of two different features: the precision of a random ranking."""
    n = len(parent_of)
    return (parent_of >= 0).sum().item() / (n * (n - 1))


def edge_scores(
    scores: Float[Tensor, "parent_latent child_latent"],
    parent_latent_of: Int[Tensor, " feature"],
    child_latent_of: Int[Tensor, " feature"],
    parent_of: Int[Tensor, " feature"],
) -> EdgeScores:
    """Rank all ordered pairs of two different features by the score of the latents that stand for them.

    `scores` is higher for likelier edges, -inf for impossible ones. In a dictionary of one level the same matching
    (`match`) serves for parents and children. In one of two levels `scores` is the level-2 decoder, and parents come
    from another matching, of level 2's latents. A pair that a feature without a latent (-1) is part of ranks last.
    """
    pairs, is_edge = _candidates(scores, parent_latent_of, child_latent_of, parent_of)
    different = ~torch.eye(len(parent_of), dtype=torch.bool)
    # Scikit-learn refuses infinite scores; ranks say all that matters.
    ranks = pairs[different].unique(return_inverse=True)[1]
    average_precision = average_precision_score(is_edge[different].numpy(), ranks.numpy())
    return EdgeScores(float(average_precision), _f1_at_top(ranks, is_edge[different]))


def ancestor_scores(
    scores: Float[Tensor, "parent_latent child_latent"],
    parent_latent_of: Int[Tensor, " feature"],
    child_latent_of: Int[Tensor, " feature"],
    parent_of: Int[Tensor, " feature"],
    stream: Stream,
) -> tuple[float, float]:
    """Precision and recall of the ancestor-descendant pairs that follow from the |E| best candidates for |E| edges.

    The pairs of a set of edges are its transitive closure, without those of a feature with itself. Arguments as in
    `edge_scores`; impossible pairs are never edges, though there be fewer than |E| others, and no pair at all has
    precision 0. Of the candidates that tie at the cut as many as fit are drawn by `stream`: the scores are means over
    32 draws.
    """
    pairs, is_edge = _candidates(scores, parent_latent_of, child_latent_of, parent_of)
    ancestors, generator = _closure(is_edge), stream.torch()
    found = []
    for _ in range(TIE_BREAKS):
        shuffled = torch.randperm(pairs.numel(), generator=generator)
        best = shuffled[pairs.flatten()[shuffled].topk(int(is_edge.sum())).indices]
        edges = torch.zeros_like(is_edge).flatten().index_fill_(0, best, True).view_as(is_edge)
        predicted = _closure(edges & (pairs > -torch.inf))
        hits = (predicted & ancestors).sum().item()
        found.append((hits / max(predicted.sum().item(), 1), hits / ancestors.sum().item()))
    precision, recall = torch.tensor(found, dtype=torch.float64).mean(0).tolist()
    return precision, recall


def _candidates(
    scores: Float[Tensor, "parent_latent child_latent"],
    parent_latent_of: Int[Tensor, " feature"],
    child_latent_of: Int[Tensor, " feature"],
    parent_of: Int[Tensor, " feature"],
) -> tuple[Float[Tensor, "feature feature"], Bool[Tensor, "feature feature"]]:
    """Scores of pairs of features, -inf for what cannot be an edge, and which pairs are edges."""
    assert not scores.isnan().any()
    index = torch.arange(len(parent_of))
    impossible = (parent_latent_of < 0)[:, None] | (child_latent_of < 0) | (index[:, None] == index)
    pairs = scores.double().cpu()[parent_latent_of][:, child_latent_of].masked_fill(impossible, -torch.inf)
    return pairs, index[:, None] == parent_of


def _closure(edges: Bool[Tensor, "feature feature"]) -> Bool[Tensor, "feature feature"]:
    """Whether a path leads from one feature to another."""
    steps = torch.from_numpy(shortest_path(edges.numpy(), unweighted=True))
    return steps.isfinite() & (steps > 0)


def _f1_at_top(ranks: Int[Tensor, " pair"], is_edge: Bool[Tensor, " pair"]) -> float:
    """F1 of the |E| pairs of highest rank: precision and recall are the same there."""
    n_edges = int(is_edge.sum())
    cut = ranks.topk(n_edges).values[-1]
    above, tied = ranks > cut, ranks == cut
    share = (n_edges - above.sum()) / tied.sum()
    return ((is_edge & above).sum() + share * (is_edge & tied).sum()).item() / n_edges


def _abs_cosines(
    directions: Float[Tensor, "latent d_in"], features: Float[Tensor, "feature d_in"]
) -> Float[Tensor, "latent feature"]:
    return (F.normalize(directions) @ F.normalize(features).T).abs()
