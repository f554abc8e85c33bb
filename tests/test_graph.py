import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from hsae.graph import Graph, edges, measure
from hsae.hierarchical import HierarchicalSAE
from hsae.sae import SAE

N_PARENTS, N_CHILDREN = 3, 5


@pytest.fixture
def model() -> HierarchicalSAE:
    """Its h1 is x where x is positive; its third parent is never active, and nor is its last child."""
    model = HierarchicalSAE(SAE(N_CHILDREN, N_CHILDREN), SAE(N_CHILDREN, N_PARENTS, nonnegative=True))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.level1.W_enc.copy_(torch.eye(N_CHILDREN))
        model.level1.b_enc[-1] = -100
        model.level2.W_enc.copy_(torch.randn(N_CHILDREN, N_PARENTS, generator=generator))
        model.level2.b_enc[-1] = -100
        model.level2.W_dec.copy_(torch.rand(N_PARENTS, N_CHILDREN, generator=generator))
        model.level2.constrain()
    return model.eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(40, N_CHILDREN, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def graph(model: HierarchicalSAE, x: torch.Tensor) -> Graph:
    return measure(model, x.split(16))


def hand_made(weight: list[list[float]], h2: list[list[int]], h1: list[list[int]]) -> Graph:
    """The graph of a decoder and of on-off activations (token by latent)."""
    acts = (csr_array(np.array(level, float)) for level in (h1, h2))
    return Graph(torch.tensor(weight).double(), *acts)


# Two parents; the last child is dead, and nothing points at the one before.
HAND_MADE = hand_made(
    weight=[[0.6, 0.0, 0.2, 0.0, 0.9], [0.2, 1.0, 0.6, 0.0, 0.1]],
    h2=[[1, 0], [1, 1], [0, 1], [0, 0]],
    h1=[[1, 0, 1, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [1, 0, 0, 0, 0]],
)


# Counting


def test_a_graph_counts_as_a_naive_loop_does(model: HierarchicalSAE, x: torch.Tensor, graph: Graph):
    out = model(x)
    h1, h2 = out.level1.acts.tolist(), out.level2.acts.tolist()
    for parent in range(N_PARENTS):
        on = [token for token in range(40) if h2[token][parent] > 0]
        assert graph.parent_active[parent] == len(on)
        for child in range(N_CHILDREN):
            assert graph.both[parent, child] == sum(h1[token][child] > 0 for token in on)
            mean = sum(h1[token][child] for token in on) / max(len(on), 1)
            assert graph.mean_child[parent, child].item() == pytest.approx(mean, rel=1e-5)
    assert graph.child_active.tolist() == [sum(row[child] > 0 for row in h1) for child in range(N_CHILDREN)]
    assert graph.n_tokens == 40
    assert torch.equal(graph.weight, model.level2.W_dec.detach().double())
    assert (graph.parent_active[-1], graph.child_active[-1]) == (0, 0)
    assert graph.both.dtype == torch.float64
    assert 0 < graph.both.sum() < 40 * N_PARENTS * N_CHILDREN


def test_the_batches_do_not_matter(model: HierarchicalSAE, x: torch.Tensor, graph: Graph):
    other = measure(model, x.split(7))
    for name in ("weight", "both", "parent_active", "child_active", "mean_child"):
        torch.testing.assert_close(getattr(other, name), getattr(graph, name), rtol=1e-6, atol=0)
    assert other.n_tokens == graph.n_tokens


def test_p_parent_given_child_and_shares_by_hand():
    assert HAND_MADE.p_parent_given_child.tolist() == [
        pytest.approx([2 / 3, 1 / 2, 1 / 2, 0, 0]),
        pytest.approx([1 / 3, 1, 1 / 2, 1, 0]),
    ]
    assert HAND_MADE.share.tolist() == [
        pytest.approx([0.75, 0, 0.25, 0, 0.9]),
        pytest.approx([0.25, 1, 0.75, 0, 0.1]),
    ]


def test_phi_is_the_correlation_of_the_two_on_off_variables(model: HierarchicalSAE, x: torch.Tensor, graph: Graph):
    out = model(x)
    on1, on2 = ((level.acts > 0).double().numpy() for level in (out.level1, out.level2))
    phi = graph.phi()
    for parent in range(N_PARENTS - 1):
        for child in range(N_CHILDREN - 1):
            expected = np.corrcoef(on2[:, parent], on1[:, child])[0, 1]
            assert phi[parent, child].item() == pytest.approx(expected, abs=1e-12)
            assert expected != 0
    assert not phi[-1].any()
    assert not phi[:, -1].any()


def test_phi_is_0_for_what_is_always_active():
    graph = hand_made([[1.0, 1.0], [1.0, 1.0]], h2=[[1, 1], [1, 0], [1, 0]], h1=[[1, 1], [0, 1], [0, 1]])
    assert graph.phi().tolist() == [[0, 0], [pytest.approx(1), 0]]


# Parents


def test_parents_by_decoder_are_those_of_the_largest_weight_and_the_dead_and_unreached_have_none():
    assert HAND_MADE.parents("decoder").tolist() == [0, 1, 1, -1, -1]


def test_parents_by_coactivation_are_those_of_the_largest_phi():
    # Child 0 goes with parent 0, child 1 is parent 1, child 2 correlates with neither; 3 goes with 1 without a weight.
    assert HAND_MADE.phi().tolist() == [
        pytest.approx([1 / math.sqrt(3), 0, 0, -1 / math.sqrt(3), 0]),
        pytest.approx([-1 / math.sqrt(3), 1, 0, 1 / math.sqrt(3), 0]),
    ]
    assert HAND_MADE.parents("coactivation").tolist() == [0, 1, -1, 1, -1]


def test_a_parent_that_is_always_active_is_none_by_coactivation_though_it_covers_all():
    graph = hand_made([[1.0, 1.0], [0.1, 0.1]], h2=[[1, 1], [1, 0], [1, 0]], h1=[[1, 0], [0, 1], [0, 1]])
    assert graph.p_parent_given_child[0].tolist() == [1, 1]
    assert graph.parents("coactivation").tolist() == [1, -1]


def test_level_2_is_shifted_along_the_text_in_a_circle():
    graph = hand_made([[1.0, 1.0]], h2=[[1], [0], [0]], h1=[[1, 0], [0, 1], [0, 0]])
    assert graph.both.tolist() == [[1, 0]]
    assert graph.shifted(1).both.tolist() == [[0, 1]]
    assert graph.shifted(3).both.tolist() == [[1, 0]]
    assert graph.shifted(1).child_active.tolist() == graph.child_active.tolist() == [1, 1]


# Edges


def test_edges_are_those_of_positive_weight_to_living_children_strongest_share_first():
    frame = edges(HAND_MADE)
    assert list(frame.columns) == [
        "parent", "child", "weight", "share", "p_parent_given_child", "p_child_given_parent", "phi",
    ]  # fmt: skip
    assert list(zip(frame.parent, frame.child, strict=True)) == [(1, 1), (0, 0), (1, 2), (0, 2), (1, 0)]
    assert frame.weight.tolist() == pytest.approx([1, 0.6, 0.6, 0.2, 0.2])
    assert frame.share.tolist() == pytest.approx([1, 0.75, 0.75, 0.25, 0.25])
    assert frame.p_parent_given_child.tolist() == pytest.approx([1, 2 / 3, 1 / 2, 1 / 2, 1 / 3])
    assert frame.p_child_given_parent.tolist() == pytest.approx([1, 1, 1 / 2, 1 / 2, 1 / 2])
    root = 1 / math.sqrt(3)
    assert frame.phi.tolist() == pytest.approx([1, root, 0, 0, -root])


def test_the_first_edge_of_each_child_leads_to_its_parent_by_decoder(graph: Graph):
    first = edges(graph).drop_duplicates("child").set_index("child").parent
    for child, parent in enumerate(graph.parents("decoder").tolist()):
        assert first.get(child, -1) == parent
