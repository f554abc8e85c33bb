import networkx as nx
import numpy as np
import pytest
import torch
from scipy.sparse import csc_array, csr_array

from hsae import coactivation
from hsae.coactivation import activity, circular_shift, communities, independent, modularity, neighbour_graph, phi


@pytest.fixture
def on() -> np.ndarray:
    """On-off variables of six latents; the last is always on, the one before it never."""
    on = (np.random.default_rng(0).random((200, 6)) < [0.5, 0.3, 0.2, 0.4, 0, 2]).astype(np.float32)
    on[:, 1] = np.where(on[:, 0] > 0, on[:, 1], 0)
    return on


def test_sparse_activations_are_the_dense_ones_in_their_order():
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    acts = coactivation.sparse_acts(torch.relu, x.split(4))
    np.testing.assert_array_equal(acts.toarray(), x.relu().numpy())


def test_what_is_active_is_what_is_above_zero():
    acts = csr_array(np.array([[0.0, 2.5], [-1.0, 0.5]], np.float32))
    assert activity(acts).toarray().tolist() == [[0, 1], [0, 1]]


def test_phi_is_the_correlation_of_the_on_off_variables(on: np.ndarray):
    expected = np.eye(6)
    expected[:4, :4] = np.corrcoef(on[:, :4].T)
    np.testing.assert_allclose(phi(csc_array(on)), expected, atol=1e-12)


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
    assert communities(graph, seed=0).tolist() == [1, 0, 1, 0, 1, 0, 0]


def test_a_circular_shift_rolls_every_column_by_its_own_distance(on: np.ndarray):
    shifts = np.array([0, 1, 199, 57, 3, 100])
    expected = np.stack([np.roll(column, shift) for column, shift in zip(on.T, shifts, strict=True)], axis=1)
    np.testing.assert_array_equal(circular_shift(csc_array(on), shifts).toarray(), expected)


def test_independent_latents_have_lost_their_correlations_and_repeat(on: np.ndarray):
    active = csc_array(on)
    draws = list(independent(active, 20, np.random.default_rng(0)))
    again = list(independent(active, 20, np.random.default_rng(0)))
    np.testing.assert_array_equal(draws, again)
    assert not np.array_equal(draws[0], draws[1])
    assert phi(active)[0, 1] > 0.3
    assert abs(np.mean([draw[0, 1] for draw in draws])) < 0.05
