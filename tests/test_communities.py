import networkx as nx
import numpy as np
import pytest

from hsae.communities import communities, modularity, neighbour_graph
from hsae.streams import Stream


def test_a_latent_is_joined_with_its_nearest_neighbours_and_with_those_who_chose_it():
    coefficients = np.array(
        [[1.0, 0.9, 0.5, 0.1], [0.9, 1.0, 0.6, -0.3], [0.5, 0.6, 1.0, -0.2], [0.1, -0.3, -0.2, 1.0]]
    )
    edges = {(a, b): weight for a, b, weight in neighbour_graph(coefficients, 1).edges(data="weight")}
    assert edges == {(0, 1): 0.9, (1, 2): 0.6, (0, 3): 0.1}
    more = {(a, b) for a, b in neighbour_graph(coefficients, 3).edges}
    assert more == {(0, 1), (0, 2), (0, 3), (1, 2)}, "a negative coefficient joins nobody"


def test_a_graph_without_edges_is_refused():
    with pytest.raises(ValueError, match="`the co-activation graph` must be of at least one edge; not 0"):
        neighbour_graph(np.array([[1.0, -0.5], [-0.5, 1.0]]), 1)


def two_triangles() -> nx.Graph:
    return nx.Graph([(0, 2), (2, 4), (4, 0), (1, 3), (3, 5), (5, 1), (0, 1)])


def test_modularity_by_hand():
    # 7 edges, 3 of them within each cluster, whose degrees sum to 7 of 14: 6/7 - 2 (1/2)^2.
    assert modularity(two_triangles(), np.array([0, 1, 0, 1, 0, 1])) == pytest.approx(6 / 7 - 0.5)
    assert modularity(two_triangles(), np.zeros(6, int)) == pytest.approx(0)


def test_communities_are_the_cliques_the_largest_first():
    graph = two_triangles()
    graph.add_edges_from([(6, node) for node in (1, 3, 5)])
    assert communities(graph, Stream(0, "test")).tolist() == [1, 0, 1, 0, 1, 0, 0]
