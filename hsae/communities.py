"""The graph that phi coefficients of latents make, and its communities."""

import networkx as nx
import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from hsae.config import check
from hsae.streams import Stream


def neighbour_graph(phi: Float[ndarray, "latent latent"], n_neighbors: int) -> nx.Graph:
    """Each latent joined with those of the `n_neighbors` largest phi coefficients that are above 0, their weights.

    An edge stands where either of the two has chosen the other. Thinned so, observed and null graphs have about as many
    edges. Raises ValueError if there is no edge.
    """
    others = np.where(np.eye(len(phi), dtype=bool), 0, phi.clip(min=0))
    nearest = np.argsort(-others, axis=1, kind="stable")[:, :n_neighbors]
    chosen = np.zeros_like(others)
    np.put_along_axis(chosen, nearest, np.take_along_axis(others, nearest, 1), 1)
    graph = nx.from_numpy_array(np.maximum(chosen, chosen.T))
    check("the co-activation graph", graph.number_of_edges(), "of at least one edge", graph.number_of_edges() > 0)
    return graph


def communities(graph: nx.Graph, stream: Stream) -> Int[ndarray, " latent"]:
    """Community of every node by the Louvain method (Blondel et al. 2008, arXiv 0803.0476), the largest is 0."""
    labels = np.empty(len(graph), dtype=int)
    found = nx.community.louvain_communities(graph, seed=stream.number)
    for label, members in enumerate(sorted(found, key=lambda members: (-len(members), min(members)))):
        labels[list(members)] = label
    return labels


def modularity(graph: nx.Graph, labels: Int[ndarray, " latent"]) -> float:
    """Share of the edges' weight that lies within clusters, less what the nodes' degrees alone would put there."""
    return nx.community.modularity(
        graph, [set(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)]
    )
