import math
from itertools import permutations

import numpy as np
import pytest
import torch

from hsae.files import write_json
from hsae.graph import Graph, edges, measure, summarize
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
    on1, on2 = torch.tensor(h1).double(), torch.tensor(h2).double()
    parent_active, both = on2.sum(0), on2.T @ on1
    mean_child = both / parent_active.clamp(min=1)[:, None]
    return Graph(torch.tensor(weight).double(), both, parent_active, on1.sum(0), mean_child, len(h1), 1.5, 1.75)


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
    strongest = model.level2.W_dec.argmax(0).tolist()
    active = [[child for child in range(N_CHILDREN) if row[child] > 0] for row in h1]
    assert graph.groups == sum(len({strongest[child] for child in row}) for row in active) / 40
    shuffled = [strongest[i] for i in torch.randperm(N_CHILDREN, generator=torch.Generator().manual_seed(0)).tolist()]
    assert graph.groups_null == sum(len({shuffled[child] for child in row}) for row in active) / 40
    assert graph.groups != graph.groups_null


def test_the_batches_do_not_matter(model: HierarchicalSAE, x: torch.Tensor, graph: Graph):
    other = measure(model, x.split(7))
    for name in ("weight", "both", "parent_active", "child_active", "mean_child"):
        torch.testing.assert_close(getattr(other, name), getattr(graph, name), rtol=1e-6, atol=0)
    assert (other.n_tokens, other.groups, other.groups_null) == (graph.n_tokens, graph.groups, graph.groups_null)


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


# The summary


def test_the_summary_by_hand():
    W_dec = torch.eye(5)
    found = summarize(HAND_MADE, W_dec)
    # Contributions while a parent is active: (1, 0) of child 0; (1, 1/2) of children 1 and 2.
    explained = [0.6 / math.sqrt(0.36 + 0.04 + 0.81), (1 + 0.3) / math.sqrt(0.04 + 1 + 0.36 + 0.01) / math.sqrt(1.25)]
    assert found == pytest.approx(
        {
            "p_parent_given_child_decoder": (2 / 3 + 1 + 1 / 2) / 3,
            # Parent 0 has one child of three, parent 1 two.
            "p_parent_given_child_null_decoder": ((2 / 3 + 1 / 2 + 1 / 2) / 3 + 2 * (1 / 3 + 1 + 1 / 2) / 3) / 3,
            "with_parent_decoder": 3 / 5,
            "parents_decoder": 2,
            "children_per_parent_decoder": 1.5,
            "p_parent_given_child_coactivation": (2 / 3 + 1 + 1) / 3,
            "p_parent_given_child_null_coactivation": ((2 / 3 + 1 / 2 + 0) / 3 + 2 * (1 / 3 + 1 + 1) / 3) / 3,
            "with_parent_coactivation": 3 / 5,
            "parents_coactivation": 2,
            "children_per_parent_coactivation": 1.5,
            "top_share": (0.75 + 1 + 0.75) / 3,
            "explained_by_parent": sum(explained) / 2,
            "sibling_cosine": 0,
            "sibling_cosine_null": 0,
            "groups": 1.5,
            "groups_null": 1.75,
        }
    )


@pytest.mark.parametrize("by", ["decoder", "coactivation"])
def test_the_null_is_the_mean_over_all_permutations_of_the_parents(by: str, graph: Graph):
    parents = [parent for parent in graph.parents(by).tolist() if parent >= 0]
    children = [child for child, parent in enumerate(graph.parents(by).tolist()) if parent >= 0]
    assert len(children) >= 3
    assert len(set(parents)) >= 2
    means = []
    for shuffled in permutations(parents):
        pairs = zip(shuffled, children, strict=True)
        p = [(graph.both[parent, child] / graph.child_active[child]).item() for parent, child in pairs]
        means.append(sum(p) / len(p))
    found = summarize(graph, torch.eye(N_CHILDREN))
    assert found[f"p_parent_given_child_null_{by}"] == pytest.approx(sum(means) / len(means))
    assert found[f"p_parent_given_child_{by}"] != pytest.approx(found[f"p_parent_given_child_null_{by}"])


def test_a_parent_whose_only_children_are_its_own_is_explained_by_them_entirely():
    # Each child is active with the strength of its weight whenever the parent is.
    both = torch.tensor([[4.0, 4.0, 0.0], [0.0, 0.0, 3.0]], dtype=torch.float64)
    weight = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    active = torch.tensor([4.0, 3.0], dtype=torch.float64)
    graph = Graph(weight, both, active, both.sum(0), 2 * weight, 10, 1, 1)
    W_dec = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    found = summarize(graph, W_dec)
    assert found["explained_by_parent"] == pytest.approx(1)
    assert found["top_share"] == pytest.approx(1)
    assert found["p_parent_given_child_decoder"] == 1
    # A child that is half as strong as its weight says turns the contribution away.
    weaker = Graph(weight, both, active, both.sum(0), weight * torch.tensor([[1.0, 0.5, 1.0]]), 10, 1, 1)
    first, second = W_dec[0].double(), W_dec[1].double()
    cosine = torch.cosine_similarity(0.6 * first + 0.8 * second, 0.6 * first + 0.4 * second, dim=0).item()
    assert summarize(weaker, W_dec)["explained_by_parent"] == pytest.approx((cosine + 1) / 2)


def test_sibling_cosine_is_the_mean_over_pairs_of_one_parent_and_its_null_over_all_pairs():
    # Parent 0 has children 0, 1 and 2, parent 1 children 3 and 4; the last latent is dead.
    weight = [[1.0, 1.0, 1.0, 0.1, 0.1, 1.0], [0.1, 0.1, 0.1, 1.0, 1.0, 0.1]]
    graph = hand_made(weight, h2=[[1, 1]], h1=[[1, 1, 1, 1, 1, 0]])
    W_dec = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    cosine = {(i, j): torch.cosine_similarity(W_dec[i], W_dec[j], dim=0).item() for i in range(5) for j in range(i)}
    found = summarize(graph, 3 * W_dec)
    siblings = [cosine[pair] for pair in [(1, 0), (2, 0), (2, 1), (4, 3)]]
    assert found["sibling_cosine"] == pytest.approx(sum(siblings) / 4, rel=1e-5)
    assert found["sibling_cosine_null"] == pytest.approx(sum(cosine.values()) / 10, rel=1e-5)


def test_a_parent_without_children_does_not_count_as_unexplained():
    graph = hand_made([[1.0, 0.0], [0.0, 1.0], [0.1, 0.1]], h2=[[1, 0, 1], [0, 1, 1]], h1=[[1, 0], [0, 1]])
    found = summarize(graph, torch.eye(2))
    assert found["parents_decoder"] == 2
    assert found["explained_by_parent"] == pytest.approx(1)
    assert found["top_share"] == pytest.approx(1 / 1.1)


def test_without_any_child_the_summary_says_so_and_can_be_written(tmp_path):
    dead = hand_made([[1.0, 1.0]], h2=[[1], [0]], h1=[[0, 0], [0, 0]])
    found = summarize(dead, torch.eye(2))
    assert found == {
        "with_parent_decoder": 0, "parents_decoder": 0, "with_parent_coactivation": 0, "parents_coactivation": 0,
        "groups": 1.5, "groups_null": 1.75,
    }  # fmt: skip
    assert edges(dead).empty
    write_json(tmp_path / "summary.json", found)


def test_the_summary_of_a_measured_graph_can_be_written(model: HierarchicalSAE, graph: Graph, tmp_path):
    write_json(tmp_path / "summary.json", summarize(graph, model.level1.W_dec))


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
