"""Clusterings of a dictionary's latents: by decoder direction, by co-activation and by parent."""

from dataclasses import dataclass

import networkx as nx
import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.sparse import csc_array, csr_array
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from hsae import coactivation, communities
from hsae.config import check, check_positive
from hsae.dendrogram import Dendrogram, cosine_distances, similarity_distances
from hsae.latent_classes import LABELLINGS, Text, latent_classes
from hsae.partition_indices import ami, number
from hsae.streams import Stream


@dataclass
class FeatureClusteringConfig:
    """Section `feature_clustering`: what counts, the co-activation graph, and how often chance is drawn.

    Of the test split `n_tokens` are used: clusterings, graphs and groups come from the first half of what is taken of
    each document, classes from the second. A latent lives if it is active on `min_active` tokens of the first, and has
    a class if that holds `min_share` of its activation on the second. It is selective if the class that it has on the
    first holds so much on the second.
    `n_neighbors`: edges of a latent. `n_null`: draws of each null; `n_resamples`: of the halves behind a standard
    error. `groups_shown`: the largest groups of the figures.
    """

    n_tokens: int
    min_active: int
    min_share: float
    n_neighbors: int
    n_null: int
    n_resamples: int
    groups_shown: int

    def __post_init__(self) -> None:
        check_positive(self, ["min_active", "n_neighbors"])
        check("n_tokens", self.n_tokens, "at least 2, to be halved", self.n_tokens >= 2)
        check("min_share", self.min_share, "in 0..1", 0 <= self.min_share <= 1)
        for name in ("n_null", "n_resamples", "groups_shown"):
            check(name, getattr(self, name), "2 or above", getattr(self, name) >= 2)


@dataclass(frozen=True)
class Features:
    """The living latents of a dictionary, and their clusterings."""

    latents: Int[ndarray, " living"]
    """Which latents of the dictionary they are."""
    W_dec: Float[ndarray, "living d_in"]
    acts: csr_array
    """Activations (token, living) on other tokens than those that they are clustered by: classes come from these."""
    clustered: csr_array
    """Activations (token, living) on the tokens that they are clustered by."""
    active: csc_array
    """1 where a latent is active (token, living), on the tokens that they are clustered by."""
    phi: Float[ndarray, "living living"]
    graph: nx.Graph
    """The co-activation graph (`communities.neighbour_graph`)."""
    trees: dict[str, Dendrogram]
    partitions: dict[str, Int[ndarray, " living"]]


def flat_features(
    halves: tuple[csr_array, csr_array],
    W_dec: Float[ndarray, "latent d_in"],
    n_clusters: int,
    config: FeatureClusteringConfig,
    stream: Stream,
) -> Features:
    """The living latents of one SAE, clustered without any parents.

    decoder_clusters: average linkage of the cosine distances of decoder directions, cut at `n_clusters`.
    coactivation_clusters: the same of 1 - phi. communities: Louvain's, of the co-activation graph. `halves` are
    activations (token, latent) of all latents on two halves of the tokens: those that cluster, and those that classes
    come from. On the same tokens, latents that are active together would have the same class by chance too. `stream` is
    that of Louvain's method. Raises ValueError if fewer than 2 latents live.
    """
    acts, others = halves
    latents = living(acts, config.min_active)
    check("the number of living latents", len(latents), "at least 2", len(latents) >= 2)
    W_dec = W_dec[latents]
    acts = acts[:, latents]
    active = coactivation.activity(acts)
    phi = coactivation.phi(active)
    graph = communities.neighbour_graph(phi, config.n_neighbors)
    trees = {
        "decoder": Dendrogram.average(cosine_distances(W_dec)),
        "coactivation": Dendrogram.average(similarity_distances(phi)),
    }
    partitions = {f"{name}_clusters": tree.cut(n_clusters) for name, tree in trees.items()}
    partitions["communities"] = communities.communities(graph, stream)
    return Features(latents, W_dec, others[:, latents], acts, active, phi, graph, trees, partitions)


def hsae_features(
    halves: tuple[csr_array, csr_array],
    W_dec1: Float[ndarray, "latent d_in"],
    W_dec2: Float[ndarray, "parent latent"],
    parents: dict[str, Int[ndarray, " latent"]],
    config: FeatureClusteringConfig,
    stream: Stream,
) -> Features:
    """The living level-1 latents, clustered as those of a flat SAE are, into as many clusters as there are groups.

    `parents` (-1: none), as `Graph.parents` gives them, by `decoder` and by whatever else, on the first half: they make
    the partitions groups_<by>. The tree of that name merges these groups further, by average linkage of the cosine
    distances of their parents' level-2 decoder rows; a latent without a parent is a group of its own, which points at
    itself.
    """
    latents = living(halves[0], config.min_active)
    groups = {by: parent_groups(parent[latents]) for by, parent in parents.items()}
    features = flat_features(halves, W_dec1, int(groups["decoder"].max(initial=0)) + 1, config, stream)
    for by, labels in groups.items():
        first = np.unique(labels, return_index=True)[1]
        parent = parents[by][latents[first]]
        rows = np.where(parent[:, None] >= 0, W_dec2[parent][:, latents], np.eye(len(latents))[first])
        features.trees[f"groups_{by}"] = Dendrogram.average(cosine_distances(rows), labels)
        features.partitions[f"groups_{by}"] = labels
    return features


def living(acts: csr_array, min_active: int) -> Int[ndarray, " living"]:
    """The latents that are active on at least `min_active` tokens."""
    return np.flatnonzero(
        np.bincount(acts.indices[acts.data > 0], minlength=acts.shape[1])  # pyright: ignore[reportOptionalSubscript]
        >= min_active
    )


def parent_groups(parents: Int[ndarray, " latent"]) -> Int[ndarray, " latent"]:
    """Labels from 0 of latents by their parent; one without a parent (-1) shares it with none."""
    distinct = np.where(parents >= 0, parents, parents.max(initial=0) + 1 + np.arange(len(parents)))
    return np.unique(distinct, return_inverse=True)[1]


def largest_groups(labels: Int[ndarray, " latent"], n: int) -> Int[ndarray, " latent"]:
    """The rank from 0 of each latent's group among the `n` largest; -1 for a latent of another group."""
    sizes = np.bincount(labels)
    rank = np.full(len(sizes), -1)
    largest = np.argsort(-sizes, kind="stable")[:n]
    rank[largest] = np.arange(len(largest))
    return rank[labels]


def embed(directions: Float[ndarray, "latent d"], stream: Stream) -> Float[ndarray, "latent 2"]:
    """Directions in the plane by t-SNE of their cosine distances (van der Maaten & Hinton 2008, JMLR 9)."""
    perplexity = min(30, (len(directions) - 1) / 3)
    tsne = TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=stream.number)
    # Threads add up their shares in whatever order they finish.
    with threadpool_limits(1):
        return tsne.fit_transform(directions)


def headline(
    groups: Int[ndarray, " latent"], acts: csr_array, text: Text, config: FeatureClusteringConfig
) -> dict[str, float | None]:
    """AMI of groups of latents with the character taxonomy, at each of LABELLINGS; of the living, selective latents.

    `groups` are those of all latents, -1 for one that is in none: the parents that `Graph.parents("decoder")` gives, of
    whatever model, best on other tokens. `acts` (token, latent) are the activations on the tokens of `text`.
    """
    latents = living(acts, config.min_active)
    labels = parent_groups(groups[latents])
    classes = latent_classes(acts[:, latents], text, "information", config.min_share)
    return {name: number(ami(labels, classes[name])) for name in LABELLINGS}
