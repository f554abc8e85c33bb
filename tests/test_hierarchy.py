"""Hierarchies whose numbers are known by hand, and chance: independent latents are no hierarchy."""

import math
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy import ndarray
from scipy.sparse import csr_array
from sklearn.metrics import mutual_info_score

from hsae import hierarchy, report, sweep_config
from hsae.files import write_json
from hsae.graph import Graph
from hsae.hierarchy import samples, summarize
from hsae.samples import shared
from hsae.streams import Stream

STREAM = Stream(0, "test")


def hand_made(weight: list[list[float]], h2: Sequence[Sequence[float]], h1: Sequence[Sequence[float]]) -> Graph:
    """A graph of ten times these tokens: enough of them for shifts."""
    acts = (csr_array(np.tile(np.array(level, float), (10, 1))) for level in (h1, h2))
    return Graph(torch.tensor(weight).double(), *acts)


def of_itself(graph: Graph, W_dec: torch.Tensor, stream: Stream = STREAM) -> dict[str, float | None]:
    """The summary where parents are chosen on the tokens that score them."""
    return summarize(graph, graph, W_dec, 1, stream)


def number(found: dict[str, float | None], name: str) -> float:
    value = found[name]
    assert value is not None, name
    return value


@pytest.fixture
def _shuffled_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the null alone in which parents are shuffled."""
    monkeypatch.setattr(hierarchy, "_unrelated", lambda *_: {})


# Two parents; the last child is dead, and nothing points at the one before.
HAND_MADE = hand_made(
    weight=[[0.6, 0.0, 0.2, 0.0, 0.9], [0.2, 1.0, 0.6, 0.0, 0.1]],
    h2=[[1, 0], [1, 1], [0, 1], [0, 0]],
    h1=[[1, 0, 1, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [1, 0, 0, 0, 0]],
)


# The numbers


@pytest.mark.usefixtures("_shuffled_alone")
def test_the_summary_by_hand():
    found = of_itself(HAND_MADE, torch.eye(5))
    # Contributions while a parent is active: (1, 0) of child 0; (1, 1/2) of children 1 and 2.
    explained = [0.6 / math.sqrt(0.36 + 0.04 + 0.81), (1 + 0.3) / math.sqrt(0.04 + 1 + 0.36 + 0.01) / math.sqrt(1.25)]
    expected = {
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
        "groups": (2 + 2 + 1 + 1) / 4,
        "groups_coactivation": (1 + 2 + 1 + 1) / 4,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    for measure, by in (("p_parent_given_child", "_decoder"), ("explained_by_parent", ""), ("u_children", "")):
        value, null = number(found, f"{measure}{by}"), number(found, f"{measure}_null{by}")
        assert found[f"{measure}_beyond_chance{by}"] == pytest.approx((value - null) / (1 - null))
    groups = number(found, "groups") / number(found, "groups_null")
    assert found["groups_over_null"] == pytest.approx(groups)


def random_graph(n: int = 400, stream: Stream = STREAM) -> Graph:
    """Four parents and ten children, of which every one is active when the parent is that it belongs to, or at random.

    Two parents have three children, two have two.
    """
    generator = stream.numpy()
    on2 = generator.random((n, 4)) < 0.2
    own = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
    on1 = (on2[:, own] & (generator.random((n, 10)) < 0.7)) | (generator.random((n, 10)) < 0.05)
    weight = torch.from_numpy((np.arange(4)[:, None] == own) + 0.1 * generator.random((4, 10)))
    return Graph(weight, csr_array(on1 * generator.random((n, 10))), csr_array(on2 * generator.random((n, 4))))


@pytest.mark.usefixtures("_shuffled_alone")
@pytest.mark.parametrize("by", ["decoder", "coactivation"])
def test_the_null_is_the_mean_over_all_permutations_of_the_parents(by: str):
    weight = [[0.9, 0.2, 0.1, 0.3, 0.2], [0.1, 0.7, 0.8, 0.2, 0.1], [0.1, 0.1, 0.1, 0.8, 0.9]]
    generator = np.random.default_rng(0)
    graph = hand_made(weight, *(generator.integers(0, 2, (12, width)).tolist() for width in (3, 5)))
    parents = graph.parents(by)
    children = [child for child, parent in enumerate(parents.tolist()) if parent >= 0]
    assert len(children) >= 3
    means = []
    for shuffled in permutations(parents[children].tolist()):
        pairs = zip(shuffled, children, strict=True)
        p = [(graph.both[parent, child] / graph.child_active[child]).item() for parent, child in pairs]
        means.append(sum(p) / len(p))
    found = of_itself(graph, torch.eye(5))
    assert found[f"p_parent_given_child_null_{by}"] == pytest.approx(sum(means) / len(means))
    assert found[f"p_parent_given_child_{by}"] != pytest.approx(found[f"p_parent_given_child_null_{by}"])


def test_a_parent_whose_only_children_are_its_own_is_explained_by_them_entirely():
    # Each child is active with the strength of its weight whenever the parent is.
    weight = [[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]
    h2 = [[1, 0], [1, 0], [0, 1], [0, 0], [0, 1]]
    graph = hand_made(weight, h2, (2 * np.array(h2) @ np.array(weight)).tolist())
    W_dec = torch.randn(3, 4, generator=STREAM.torch())
    found = of_itself(graph, W_dec)
    assert found["explained_by_parent"] == pytest.approx(1)
    assert number(found, "explained_by_parent_null") < 0.9
    assert found["top_share"] == pytest.approx(1)
    assert found["p_parent_given_child_decoder"] == 1
    # A child that is half as strong as its weight says turns the contribution away.
    weaker = hand_made(weight, h2, (np.array(h2) @ np.array(weight) * [1.0, 0.5, 1.0]).tolist())
    first, second = W_dec[0].double(), W_dec[1].double()
    cosine = torch.cosine_similarity(0.6 * first + 0.8 * second, 0.6 * first + 0.4 * second, dim=0).item()
    assert of_itself(weaker, W_dec)["explained_by_parent"] == pytest.approx((cosine + 1) / 2)


def test_sibling_cosine_is_the_mean_over_pairs_of_one_parent_and_its_null_over_all_pairs():
    # Parent 0 has children 0, 1 and 2, parent 1 children 3 and 4; the last latent is dead.
    weight = [[1.0, 1.0, 1.0, 0.1, 0.1, 1.0], [0.1, 0.1, 0.1, 1.0, 1.0, 0.1]]
    graph = hand_made(weight, h2=[[1, 1]], h1=[[1, 1, 1, 1, 1, 0]])
    W_dec = torch.randn(6, 4, generator=STREAM.torch())
    cosine = {(i, j): torch.cosine_similarity(W_dec[i], W_dec[j], dim=0).item() for i in range(5) for j in range(i)}
    found = of_itself(graph, 3 * W_dec)
    siblings = [cosine[pair] for pair in [(1, 0), (2, 0), (2, 1), (4, 3)]]
    assert found["sibling_cosine"] == pytest.approx(sum(siblings) / 4, rel=1e-5)
    assert found["sibling_cosine_null"] == pytest.approx(sum(cosine.values()) / 10, rel=1e-5)


def test_the_information_of_children_is_scikit_learns_less_that_of_shifted_parents():
    graph = random_graph()
    found = of_itself(graph, torch.eye(10))
    h1, h2 = (hierarchy.quantile_bins(acts.toarray(), hierarchy.BINS) for acts in (graph.h1, graph.h2))
    shifts = hierarchy.draw_shifts(len(h1), hierarchy.DRAWS, 1, STREAM.of("shifts for information"))

    def u(parent: int, child: int) -> float:
        null = np.mean([mutual_info_score(h1[:, child], np.roll(h2[:, parent], shift)) for shift in shifts])
        return (mutual_info_score(h1[:, child], h2[:, parent]) - null) / hierarchy.entropies(h2)[parent]

    own = [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    assert found["u_children"] == pytest.approx(np.mean([u(parent, child) for child, parent in enumerate(own)]))
    expected = np.mean([u(parent, child) for parent in own for child in range(10)])
    assert found["u_children_null"] == pytest.approx(expected)
    assert number(found, "u_children") > 3 * abs(expected)


def test_a_parent_without_children_does_not_count_as_unexplained():
    graph = hand_made([[1.0, 0.0], [0.0, 1.0], [0.1, 0.1]], h2=[[1, 0, 1], [0, 1, 1]], h1=[[1, 0], [0, 1]])
    found = of_itself(graph, torch.eye(2))
    assert found["parents_decoder"] == 2
    assert found["explained_by_parent"] == pytest.approx(1)
    assert found["top_share"] == pytest.approx(1 / 1.1)


def test_without_any_child_all_names_are_there_and_the_summary_can_be_written(tmp_path: Path):
    dead = hand_made([[1.0, 1.0]], h2=[[1], [0]], h1=[[0, 0], [0, 0]])
    found = of_itself(dead, torch.eye(2))
    assert found.keys() == of_itself(random_graph(), torch.eye(10)).keys()
    assert {name for name, value in found.items() if value is not None} == {
        f"{name}_{by}" for name in ("with_parent", "parents") for by in ("decoder", "coactivation")
    }
    write_json(tmp_path / "summary.json", found)


def test_what_report_and_sweeps_show_of_the_hierarchy_is_in_the_summary():
    summary = {f"hierarchy.{name}" for name in of_itself(random_graph(), torch.eye(10))}
    shown = {name for names in report.HEADLINES.values() for name in names}
    shown |= {name for sweep in ("controls", "ablations", "comparison") for name in sweep_config.load(sweep).headline}
    of_hierarchy = {name for name in shown if name and name.startswith("hierarchy.")}
    assert len(of_hierarchy) > 20
    assert of_hierarchy <= summary


# What is chosen and what is scored


def test_parents_are_chosen_on_one_graph_and_looked_at_on_another():
    weight = [[1.0, 0.1], [0.1, 1.0]]
    # Child 0 goes with parent 0 where parents are chosen, and with parent 1 elsewhere; child 1 is silent there.
    chosen = hand_made(weight, h2=[[1, 0], [0, 1], [0, 0]], h1=[[1, 0], [0, 1], [0, 0]])
    scored = hand_made(weight, h2=[[0, 1], [0, 1], [1, 0]], h1=[[1, 0], [0, 0], [0, 0]])
    found = summarize(chosen, scored, torch.eye(2), 1, STREAM)
    assert found["p_parent_given_child_coactivation"] == 0
    assert found["with_parent_coactivation"] == 1 / 2
    assert of_itself(scored, torch.eye(2))["p_parent_given_child_coactivation"] == 1


def test_the_null_of_the_best_chooses_anew_at_every_shift_as_a_naive_loop_does():
    chosen, scored = random_graph(60), random_graph(50, Stream(1, "test"))
    draws = []
    for shift in hierarchy.draw_shifts(50, hierarchy.DRAWS, 2, STREAM.of("shifts of level 2")):
        (h1, h2), (other1, other2) = (
            (own.h1.toarray() > 0, np.roll(own.h2.toarray() > 0, shift, 0)) for own in (chosen, scored)
        )
        values = []
        for child in range(10):
            phi = [np.corrcoef(h1[:, child], h2[:, parent])[0, 1] for parent in range(4)]
            if max(phi) > 0:
                values.append(other2[other1[:, child], np.argmax(phi)].mean())
        draws.append(np.mean(values))
    found = hierarchy._unrelated(chosen, scored, torch.eye(10).double(), 2, STREAM)  # pyright: ignore[reportPrivateUsage]
    assert found["p_parent_given_child", "coactivation"] == pytest.approx(np.mean(draws))
    summary = summarize(chosen, scored, torch.eye(10), 2, STREAM)
    assert number(summary, "p_parent_given_child_null_coactivation") >= np.mean(draws)


def test_what_a_parent_points_at_whatever_it_does_is_in_the_null_of_what_it_explains():
    # Its children fire with the strengths of their weights, and have nothing to do with it.
    generator = STREAM.numpy()
    weight = torch.tensor([[0.6, 0.8, 0.0, 0.0], [0.0, 0.0, 0.8, 0.6]]).double()
    h1 = weight.sum(0).numpy() * (generator.random((500, 4)) < 0.3)
    graph = Graph(weight, csr_array(h1), csr_array((generator.random((500, 2)) < 0.3).astype(float)))
    found = of_itself(graph, torch.eye(4))
    assert number(found, "explained_by_parent") == pytest.approx(1, abs=0.01)
    assert number(found, "explained_by_parent_null") == pytest.approx(1, abs=0.01)


def test_what_chooses_and_what_is_scored_share_no_sample():
    records = samples(np.arange(5), np.arange(5, 9), "final")
    assert len(records) == 4
    assert {(one["role"], one["split"]) for one in records} == {("chosen", "val"), ("scored", "final")}
    assert shared(records) == []


# Chance


def independent(n: int, stream: Stream) -> Graph:
    """80 parents and 60 children that have nothing to do with each other, and are rare."""
    generator = stream.numpy()

    def acts(width: int) -> ndarray:
        return (generator.random((n, width)) < 0.02) * generator.random((n, width))

    weight = torch.from_numpy(Stream(3, "test").numpy().random((80, 60)))
    return Graph(weight, csr_array(acts(60)), csr_array(acts(80)))


def test_independent_latents_are_no_hierarchy_unless_parents_are_chosen_where_they_are_scored():
    chosen, scored = (independent(1500, Stream(0, f"test/{name}")) for name in ("chosen", "scored"))
    W_dec = torch.randn(60, 16, generator=STREAM.torch())
    apart, together = summarize(chosen, scored, W_dec, 10, STREAM), summarize(scored, scored, W_dec, 10, STREAM)
    for name in ("p_parent_given_child_beyond_chance_decoder", "p_parent_given_child_beyond_chance_coactivation"):
        assert abs(number(apart, name)) < 0.01, name
    for suffix in ("", "_coactivation"):
        for measure in ("u_children", "sibling_cosine", "explained_by_parent"):
            assert abs(number(apart, f"{measure}_beyond_chance{suffix}")) < 0.1, measure
        assert number(apart, f"groups_over_null{suffix}") == pytest.approx(1, abs=0.05)
    # Why there are two graphs: the best of 80 is active on a tenth of its child's tokens, by chance.
    best, shuffled = (number(together, f"p_parent_given_child{name}_coactivation") for name in ("", "_null"))
    assert best > 0.08 > 0.03 > number(apart, "p_parent_given_child_coactivation")
    # The null that chooses knows it.
    assert shuffled == pytest.approx(best, abs=0.02)
    assert abs(number(together, "p_parent_given_child_beyond_chance_coactivation")) < 0.02


def test_a_hierarchy_is_found_beyond_chance_by_all_that_looks_for_one():
    chosen, scored = random_graph(), random_graph(400, Stream(1, "test"))
    own = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
    W_dec = torch.eye(4)[own] + 0.3 * torch.randn(10, 4, generator=STREAM.torch())
    found = summarize(chosen, scored, W_dec, 5, STREAM)
    for suffix in ("", "_coactivation"):
        p = f"p_parent_given_child_beyond_chance{suffix or '_decoder'}"
        assert number(found, p) > 0.5
        assert number(found, f"u_children_beyond_chance{suffix}") > 0.15
        assert number(found, f"sibling_cosine_beyond_chance{suffix}") > 0.5
        assert number(found, f"groups_over_null{suffix}") < 0.8
    assert number(found, "explained_by_parent_beyond_chance_coactivation") > 0.5


def test_numbers_repeat_and_draws_depend_on_the_stream():
    graph = random_graph()
    first, again, other = (of_itself(graph, torch.eye(10), Stream(seed, "test")) for seed in (1, 1, 2))
    assert first == again
    assert first["groups_null"] != other["groups_null"]
    assert first["p_parent_given_child_decoder"] == other["p_parent_given_child_decoder"]


def test_information_is_of_stretches_from_all_over_the_text(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hierarchy, "TOKENS", 6)
    monkeypatch.setattr(hierarchy, "STRETCHES", 3)
    assert hierarchy._stretches(12).tolist() == [0, 1, 4, 5, 8, 9]
    assert hierarchy._stretches(7).tolist() == [0, 1, 2, 3, 4, 5]
    assert hierarchy._stretches(5).tolist() == [0, 1, 2, 3, 4]
