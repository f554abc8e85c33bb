"""Hierarchies that are read off a flat dictionary after its training: edge scores for `recovery.edge_scores`.

A score is higher for likelier pairs of a parent and a child, -inf for impossible ones.
"""

import torch
from jaxtyping import Float
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor
from torch.nn import functional as F

from hsae import untrained, variants
from hsae.config import check
from hsae.gradients import level_gradients
from hsae.recovery import coactivation
from hsae.streams import Stream
from hsae.training import Phase, fit

META_STEPS = 2000
META_LR = 3e-3
REVIVE_AFTER = 100  # steps without activity


def conditional_probability(
    parents: Float[Tensor, "n parent"], children: Float[Tensor, "n child"]
) -> Float[Tensor, "parent child"]:
    """(P(parent active | child active) - P(parent active)) / (1 - P(parent active)) of every pair of latents.

    What is active nearly always is likely whatever else is: 1 is all that is possible, 0 what independence gives. -inf
    unless the parent is the more frequent of the two. In a dictionary of one level parents and children are the same.
    """
    n_parents, n_children = ((acts != 0).sum(0).double() for acts in (parents, children))
    p = n_parents[:, None] / len(parents)
    given = coactivation(parents, children) / n_children.clamp(min=1)
    return _more_frequent((given - p) / (1 - p).clamp(min=1e-6), n_parents, n_children)


def decoder_cosine(
    directions: Float[Tensor, "latent d_in"], acts: Float[Tensor, "n latent"]
) -> Float[Tensor, "parent child"]:
    """Cosine of every pair of latents; -inf unless the parent is the more frequent one.

    It shows hierarchy where a child's latent has absorbed its parent's direction (Chanin et al. 2024, A is for
    Absorption, arXiv 2409.14507).
    """
    unit = F.normalize(directions.double())
    n_active = (acts != 0).sum(0).double()
    return _more_frequent(unit @ unit.T, n_active, n_active)


def agglomerative(
    directions: Float[Tensor, "latent d_in"], acts: Float[Tensor, "n latent"], n_clusters: int
) -> Float[Tensor, "parent child"]:
    """Cosine of the pairs whose parent is the most frequent latent of the child's cluster; -inf for all others.

    The clusters are those of the living latents by average linkage of cosine distances (Sokal & Michener 1958). Raises
    ValueError unless `n_clusters` is in 1..living latents.
    """
    n_active = (acts != 0).sum(0)
    living = n_active.nonzero().squeeze(1)
    check("n_clusters", n_clusters, f"in 1..living latents (={len(living)})", 1 <= n_clusters <= len(living))
    unit = F.normalize(directions.detach().double())
    scores = torch.full((len(unit), len(unit)), -torch.inf, dtype=torch.float64, device=unit.device)
    clustering = AgglomerativeClustering(n_clusters, metric="cosine", linkage="average")
    labels = torch.from_numpy(clustering.fit_predict(unit[living].cpu().numpy()))
    for label in range(n_clusters):
        members = living[(labels == label).to(living.device)]
        parent = members[n_active[members].argmax()]
        children = members[members != parent]
        scores[parent, children] = unit[children] @ unit[parent]
    return scores


class _Rows:
    """Shuffled data as `training.fit` reads it."""

    def __init__(self, x: Float[Tensor, "n d_in"]):
        self._x = x

    def __len__(self) -> int:
        return len(self._x)

    def x(self, rows: slice) -> Float[Tensor, "batch d_in"]:
        return self._x[rows]


def meta_sae(
    directions: Float[Tensor, "latent d_in"], n_latents: int, k: int, stream: Stream
) -> tuple[Float[Tensor, "parent d_in"], Float[Tensor, "parent child"]]:
    """Directions of `n_latents` parents, and how much of each is in each latent of the dictionary.

    A meta-SAE is a sparse autoencoder whose data are the unit decoder rows of another: what several rows have in common
    becomes a latent of it (Bussmann et al. 2024, Showing SAE Latents Are Not Atomic Using Meta-SAEs; Leask et al. 2025,
    arXiv 2502.04878). This one is a BatchTopK with `k` active latents per row; its decoder rows are the parents'
    directions, its activations the scores. What all rows have in common is its bias. From few rows, training ends in
    a local optimum that depends on `stream`. Raises ValueError unless k is in 1..n_latents.
    """
    x = _unit_rows(directions)
    model = variants.drawn("batchtopk", x.shape[1], n_latents, k=k, beta=0.0, stream=stream.of("weights")).to(x.device)
    phase = Phase(epochs=META_STEPS, batch_size=len(x), lr=META_LR, decay_fraction=0.2, anneal_fraction=0.0)
    fit("meta-SAE", model, _Rows(x), level_gradients(model), phase, stream, dead_tokens=REVIVE_AFTER * len(x))
    with torch.no_grad():
        return model.W_dec.clone(), model.encode(x).T


def untrained_meta_sae(
    directions: Float[Tensor, "latent d_in"], n_latents: int, k: int, stream: Stream
) -> tuple[Float[Tensor, "parent d_in"], Float[Tensor, "parent child"]]:
    """What `meta_sae` returns, of one that has learned nothing: chance."""
    x = _unit_rows(directions)
    model = untrained.flat("batchtopk", n_latents, k, x, stream)
    return model.W_dec.clone(), model.encode(x).T


def _unit_rows(directions: Float[Tensor, "latent d_in"]) -> Float[Tensor, "latent d_in"]:
    return F.normalize(directions.detach().float()).contiguous()


def _more_frequent(
    scores: Float[Tensor, "parent child"], n_parents: Float[Tensor, " parent"], n_children: Float[Tensor, " child"]
) -> Float[Tensor, "parent child"]:
    return scores.masked_fill(n_parents[:, None] <= n_children, -torch.inf)
