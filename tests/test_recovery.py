import dataclasses
import math

import pytest
import torch

from hsae import recovery, synthetic
from hsae.sae import SAE
from hsae.streams import Stream
from hsae.synthetic import Forest, SyntheticData
from tests.forest import CONFIG, ROOTS, N, random, seeded

# Matching, and scores of directions

# Latents at 0, 30 and 90 degrees and a duplicate of the first with the opposite sign.
DIRECTIONS = torch.tensor([[2.0, 0.0], [math.sqrt(3), 1.0], [0.0, 5.0], [-1.0, 0.0]])
AXES = torch.eye(2)
TIES = Stream(0, "test")


def test_assign_finds_the_greatest_total_where_greed_would_not():
    # Greed takes .9 and is left with 0; the best total is .8 + .7.
    assert recovery.assign(torch.tensor([[0.9, 0.8], [0.7, 0.0]])).tolist() == [1, 0]


def test_features_left_over_have_no_latent():
    assert recovery.assign(torch.tensor([[0.1, 0.9, 0.2]])).tolist() == [-1, 0, -1]


def test_match_mcc_and_uniqueness_by_hand():
    # The second axis has one latent on it, the first has two; the one at 30 degrees is nearest to the first too.
    found = recovery.match(DIRECTIONS, AXES).tolist()
    assert found[0] in (0, 3)
    assert found[1] == 2
    assert recovery.mcc(DIRECTIONS, AXES) == pytest.approx(1)
    assert recovery.uniqueness(DIRECTIONS, AXES) == 2 / 4
    assert recovery.uniqueness(DIRECTIONS[1:3], AXES) == 1
    assert recovery.uniqueness(DIRECTIONS[:2], AXES) == 1 / 2
    # 0 and 30 degrees: cosines 1 and sin(30).
    assert recovery.match(DIRECTIONS[:2], AXES).tolist() == [0, 1]
    assert recovery.mcc(DIRECTIONS[:2], AXES) == pytest.approx((1 + 0.5) / 2)
    # One latent alone: the feature that it does not stand for makes no pair.
    assert recovery.match(DIRECTIONS[1:2], AXES).tolist() == [0, -1]
    assert recovery.mcc(DIRECTIONS[1:2], AXES) == pytest.approx(math.sqrt(3) / 2)


def test_a_permuted_and_sign_flipped_true_dictionary_is_recognised(forest: Forest):
    order = torch.randperm(24, generator=seeded(5))
    signs = torch.where(torch.arange(24) % 3 == 0, -1.0, 1.0)[:, None]
    directions = 3 * (signs * forest.features)[order]
    assert torch.equal(order[recovery.match(directions, forest.features)], torch.arange(24))
    assert recovery.mcc(directions, forest.features) == pytest.approx(1)
    assert recovery.uniqueness(directions, forest.features) == 1


def test_random_directions_have_a_low_mcc():
    features = synthetic.ground_truth(dataclasses.replace(CONFIG, d_in=64), seeded()).features
    assert recovery.mcc(random(24, 64, seed=6), features) < 0.35


def test_the_decoder_of_a_model_can_be_scored_as_it_is(forest: Forest):
    W_dec = SAE(12, 30).W_dec
    assert W_dec.requires_grad
    assert recovery.mcc(W_dec, forest.features) == recovery.mcc(W_dec.detach(), forest.features)


# Scores of activations


def loop_f1(latent: torch.Tensor, feature: torch.Tensor) -> float:
    pairs = [(a != 0, b != 0) for a, b in zip(latent.tolist(), feature.tolist(), strict=True)]
    hits, misses, false_alarms = (pairs.count(pair) for pair in [(True, True), (False, True), (True, False)])
    precision = hits / (hits + false_alarms) if hits else 0.0
    recall = hits / (hits + misses) if hits else 0.0
    return 2 * precision * recall / (precision + recall) if hits else 0.0


@pytest.fixture
def acts() -> torch.Tensor:
    """Six latents, the last one dead, that are noisy unions of features."""
    noisy = random(40, 6, seed=7) - 0.5
    noisy[:, 5] = 0
    return noisy.relu()


@pytest.fixture
def truth() -> torch.Tensor:
    """Four features, the first of them silent."""
    sparse = (random(40, 4, seed=8) - 0.7).relu()
    sparse[:, 0] = 0
    return sparse


def test_coactivation_equals_a_naive_loop(acts: torch.Tensor, truth: torch.Tensor):
    found = recovery.coactivation(acts, truth)
    for i in range(6):
        for j in range(4):
            both = sum(a != 0 and b != 0 for a, b in zip(acts[:, i].tolist(), truth[:, j].tolist(), strict=True))
            assert found[i, j].item() == both


def test_coactivation_adds_up_over_chunks(data: SyntheticData):
    assert N > 16384
    fires = (data.acts > 0).double()
    assert torch.equal(recovery.coactivation(data.acts, data.acts), fires.T @ fires)


def test_f1_scores_equal_a_naive_loop(acts: torch.Tensor, truth: torch.Tensor):
    found = recovery.f1_scores(acts, truth)
    for i in range(6):
        for j in range(4):
            assert found[i, j].item() == pytest.approx(loop_f1(acts[:, i], truth[:, j]))


def test_f1_by_hand():
    # Active on rows 0-2 against rows 1-3 and, with another size, on rows 0-1.
    acts = torch.tensor([[1.0], [2.0], [0.5], [0.0], [0.0]])
    truth = torch.tensor([[0.0, 1.0], [3.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert recovery.f1_scores(acts, truth)[0].tolist() == pytest.approx([2 * 2 / (3 + 3), 2 * 2 / (3 + 2)])


def test_activation_f1_is_the_mean_over_latents_of_f1_against_the_nearest_feature(
    acts: torch.Tensor, truth: torch.Tensor
):
    directions, features = random(6, 3, seed=9), random(4, 3, seed=10)
    total = 0.0
    for i in range(6):
        cosines = [abs(torch.cosine_similarity(directions[i], feature, dim=0).item()) for feature in features]
        total += loop_f1(acts[:, i], truth[:, cosines.index(max(cosines))])
    assert total > 0
    assert recovery.activation_f1(acts, truth, directions, features) == pytest.approx(total / 6)


def test_activations_of_the_true_features_score_one(forest: Forest, data: SyntheticData):
    order = torch.randperm(24, generator=seeded(5))
    scaled = data.acts[:, order] * torch.arange(1, 25)
    directions = forest.features[order]
    assert recovery.activation_f1(scaled, data.acts, directions, forest.features) == pytest.approx(1)


def test_a_child_as_the_detector_of_its_parent_misses_where_the_child_is_silent(data: SyntheticData):
    # It is never active without the parent, so precision is 1 and recall its share of the parent's activity.
    child, parent = data.acts[:, 5:6], data.acts[:, :1]
    recall = ((child > 0).sum() / (parent > 0).sum()).item()
    assert recovery.f1_scores(child, parent).item() == pytest.approx(2 * recall / (1 + recall))


# A parent (0) of two children (1, 2), and a single (3); latents stand for features in the order 3, 2, 1, 0.
PARENT_OF = torch.tensor([-1, 0, 0, -1])
REVERSED = torch.tensor([3, 2, 1, 0])


def scores_of(pairs: dict[tuple[int, int], float], default: float = 0.0) -> torch.Tensor:
    """Scores of pairs of features, at the latents that stand for them."""
    scores = torch.full((4, 4), default)
    for (parent, child), score in pairs.items():
        scores[3 - parent, 3 - child] = score
    return scores


@pytest.mark.parametrize(
    ("pairs", "average_precision", "f1"),
    [
        ({(0, 1): 0.9, (0, 2): 0.8, (3, 0): 0.7}, 1.0, 1.0),
        # True edges at ranks 1 and 3.
        ({(0, 1): 0.9, (3, 0): 0.8, (0, 2): 0.7}, (1 + 2 / 3) / 2, 0.5),
        # At ranks 2 and 3.
        ({(3, 0): 0.9, (0, 1): 0.8, (0, 2): 0.7}, (1 / 2 + 2 / 3) / 2, 0.5),
        # The reverse of an edge is none.
        ({(1, 0): 0.9, (2, 0): 0.8, (0, 1): 0.7, (0, 2): 0.6}, (1 / 3 + 2 / 4) / 2, 0.0),
        # The second place is shared by a true edge and two false ones.
        ({(0, 1): 0.9, (0, 2): 0.5, (1, 2): 0.5, (3, 2): 0.5}, (1 + 2 / 4) / 2, (1 + 1 / 3) / 2),
        # All 12 pairs tie.
        ({}, 2 / 12, 2 / 12),
    ],
)
def test_edge_scores_by_hand(pairs: dict[tuple[int, int], float], average_precision: float, f1: float):
    found = recovery.edge_scores(scores_of(pairs), REVERSED, REVERSED, PARENT_OF)
    assert found == pytest.approx((average_precision, f1))


def test_a_latent_is_no_candidate_for_its_own_parent():
    on_the_diagonal = {(i, i): 5.0 for i in range(4)}
    found = recovery.edge_scores(
        scores_of({(0, 1): 0.9, (0, 2): 0.8, **on_the_diagonal}), REVERSED, REVERSED, PARENT_OF
    )
    assert found == (1, 1)


def test_impossible_pairs_rank_below_negative_scores():
    scores = scores_of({(0, 1): -0.5, (0, 2): -0.9}, default=-math.inf)
    assert recovery.edge_scores(scores, REVERSED, REVERSED, PARENT_OF) == (1, 1)


def test_edges_of_a_feature_without_a_latent_rank_last():
    scores = scores_of({(0, 1): 0.9, (0, 2): 0.8})
    children = torch.tensor([3, 2, -1, 0])
    # One edge at rank 1; the other among the 3 pairs with the lost child, behind the 9 that are left.
    found = recovery.edge_scores(scores, REVERSED, children, PARENT_OF)
    assert found == pytest.approx(((1 + 2 / 12) / 2, (1 + 0) / 2), abs=1e-6)


def test_surplus_latents_change_nothing():
    scores = scores_of({(0, 1): 0.9, (3, 0): 0.8, (0, 2): 0.7})
    wide = torch.full((6, 7), 2.0)
    wide[:4, :4] = scores
    expected = recovery.edge_scores(scores, REVERSED, REVERSED, PARENT_OF)
    assert recovery.edge_scores(wide, REVERSED, REVERSED, PARENT_OF) == expected


def test_average_precision_equals_a_naive_loop(forest: Forest):
    scores = random(30, 30, seed=12)
    latent_of = torch.randperm(30, generator=seeded(13))[:24]
    ranking = sorted(
        ((scores[latent_of[p], latent_of[c]].item(), forest.parent_of[c].item() == p))
        for p in range(24)
        for c in range(24)
        if p != c
    )[::-1]
    precisions, hits = [], 0
    for rank, (_, is_edge) in enumerate(ranking, start=1):
        hits += is_edge
        if is_edge:
            precisions.append(hits / rank)
    found = recovery.edge_scores(scores, latent_of, latent_of, forest.parent_of)
    assert found.average_precision == pytest.approx(sum(precisions) / 15)
    assert found.f1 == pytest.approx(sum(is_edge for _, is_edge in ranking[:15]) / 15)
    # Scores at random are as good as the share of true edges.
    assert found.average_precision < 0.1


def test_prevalence_is_the_average_precision_of_a_ranking_without_a_clue(forest: Forest):
    latents = torch.arange(24)
    tied = recovery.edge_scores(torch.zeros(24, 24), latents, latents, forest.parent_of).average_precision
    assert recovery.prevalence(forest.parent_of) == 15 / (24 * 23) == pytest.approx(tied)


# Ancestors

# 0 -> 1 -> 2 and 0 -> 3: the ancestors' pairs are these three edges and (0, 2).
CHAIN = torch.tensor([-1, 0, 1, 0])


@pytest.mark.parametrize(
    ("pairs", "precision", "recall"),
    [
        ({(0, 1): 0.9, (1, 2): 0.8, (0, 3): 0.7, (3, 0): 0.1}, 1.0, 1.0),
        # (0, 2) is no edge, but true of ancestors.
        ({(0, 1): 0.9, (0, 2): 0.8, (0, 3): 0.7}, 1.0, 3 / 4),
        # From (3, 1) and (1, 2) follows (3, 2): of four pairs only (1, 2) and (0, 1) are true.
        ({(3, 1): 0.9, (1, 2): 0.8, (0, 1): 0.7}, 3 / 5, 3 / 4),
        # A cycle has every pair of its members, and none of a member with itself.
        ({(0, 1): 0.9, (1, 0): 0.8, (0, 3): 0.7}, 2 / 4, 2 / 4),
        # One candidate alone is possible, and it is true.
        ({(0, 1): 0.9}, 1.0, 1 / 4),
        ({}, 0.0, 0.0),
    ],
)
def test_ancestor_scores_by_hand(pairs: dict[tuple[int, int], float], precision: float, recall: float):
    scores = scores_of(pairs, default=-math.inf)
    found = recovery.ancestor_scores(scores, REVERSED, REVERSED, CHAIN, TIES)
    assert found == pytest.approx((precision, recall))


def test_candidates_that_tie_at_the_cut_are_drawn():
    # Two places are sure; the third falls to the true edge in half of the draws.
    scores = scores_of({(0, 1): 0.9, (1, 2): 0.8, (0, 3): 0.5, (3, 0): 0.5}, default=-math.inf)
    precision, recall = recovery.ancestor_scores(scores, REVERSED, REVERSED, CHAIN, TIES)
    # With (3, 0) instead, 3 of 6 pairs are true.
    share = (precision - 3 / 6) / (1 - 3 / 6)
    assert 0.2 < share < 0.8
    assert recall == pytest.approx(share * 1 + (1 - share) * 3 / 4)
    assert recovery.ancestor_scores(scores, REVERSED, REVERSED, CHAIN, TIES) == (precision, recall)


def test_ancestors_of_two_levels_are_edges(forest: Forest):
    latents = torch.arange(24)
    # Candidates run from roots to children only, so that none follows from two others.
    impossible = (forest.parent_of >= 0)[:, None] | (forest.parent_of < 0)
    noisy = random(24, 24, seed=18) + 2 * (latents[:, None] == forest.parent_of)
    scores = noisy.masked_fill(impossible, -math.inf)
    f1 = recovery.edge_scores(scores, latents, latents, forest.parent_of).f1
    assert 0.3 < f1 < 1
    assert recovery.ancestor_scores(scores, latents, latents, forest.parent_of, TIES) == pytest.approx((f1, f1))


def test_ancestor_scores_equal_a_naive_walk():
    parent_of = torch.tensor([-1, 0, 0, 1, 1, 2, 5, 6, -1, 8])
    scores = random(10, 10, seed=19) + (torch.arange(10)[:, None] == parent_of)
    ranking = sorted(((scores[p, c].item(), p, c) for p in range(10) for c in range(10) if p != c), reverse=True)

    def descendants(edges: set[tuple[int, int]]) -> set[tuple[int, int]]:
        pairs = set(edges)
        while more := {(a, d) for a, b in pairs for c, d in edges if b == c} - pairs:
            pairs |= more
        return {(a, b) for a, b in pairs if a != b}

    true = descendants({(p, c) for c, p in enumerate(parent_of.tolist()) if p >= 0})
    predicted = descendants({(p, c) for _, p, c in ranking[:8]})
    hits = len(true & predicted)
    assert 3 < hits < len(true)
    index = torch.arange(10)
    found = recovery.ancestor_scores(scores, index, index, parent_of, TIES)
    assert found == pytest.approx((hits / len(predicted), hits / len(true)))


# Absorption

# Rows: the parent alone; with its first child; with its second; with its first; the single.
TRUTH = torch.tensor([[2, 0, 0, 0], [1, 1, 0, 0], [1, 0, 3, 0], [1, 1, 0, 0], [0, 0, 0, 1]]).float()


@pytest.mark.parametrize(
    ("acts", "expected"),
    [
        # The parent's latent (column 3) is silent on one row of the first child.
        ([[0, 0, 0, 2], [0, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0]], 1 / 3),
        # It is silent with either child: complete absorption, though it knows the parent alone.
        ([[0, 0, 0, 2], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]], 1.0),
        # Where the child's own latent is silent as well, nothing stands for the parent.
        ([[0, 0, 0, 2], [0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]], 1 / 3),
        # A child's latent that is active without the child does not count.
        ([[0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 0]], 0.0),
        # Silence everywhere.
        ([[0, 0, 0, 0]] * 5, 0.0),
    ],
)
def test_absorption_by_hand(acts: list[list[int]], expected: float):
    found = recovery.absorption(torch.tensor(acts).float(), TRUTH, REVERSED, PARENT_OF)
    assert found == pytest.approx(expected)


def test_a_parent_without_a_latent_is_absorbed_and_a_child_without_one_absorbs_nothing():
    acts = TRUTH[:, [3, 2, 1, 0]]
    assert recovery.absorption(acts, TRUTH, REVERSED, PARENT_OF) == 0
    assert recovery.absorption(acts, TRUTH, torch.tensor([-1, 2, 1, 0]), PARENT_OF) == 1
    assert recovery.absorption(acts, TRUTH, torch.tensor([-1, 2, -1, 0]), PARENT_OF) == pytest.approx(2 / 3)


def test_absorption_equals_a_naive_loop(forest: Forest, data: SyntheticData):
    truth = data.acts[:200]
    acts = truth.flip(1) * (random(200, 24, seed=17) > 0)
    latent_of = torch.arange(23, -1, -1)
    absorbed, fires = 0, 0
    for row, seen in zip(truth.tolist(), acts.tolist(), strict=True):
        for child, parent in enumerate(forest.parent_of.tolist()):
            if parent >= 0 and row[child]:
                fires += 1
                absorbed += seen[23 - child] > 0 and seen[23 - parent] == 0
    assert absorbed > 0
    assert recovery.absorption(acts, truth, latent_of, forest.parent_of) == pytest.approx(absorbed / fires)


def test_absorption_without_any_child_that_fires_is_refused():
    with pytest.raises(ValueError, match="`firings of children` must be at least one; not 0"):
        recovery.absorption(TRUTH[:1], TRUTH[:1], REVERSED, PARENT_OF)


# Two levels


@pytest.fixture
def order2() -> torch.Tensor:
    """Level-2 latents are the nine roots in this order, and two that are noise."""
    return torch.randperm(9, generator=seeded(14))


@pytest.fixture
def h2(data: SyntheticData, order2: torch.Tensor) -> torch.Tensor:
    return torch.cat([data.acts[:, ROOTS][:, order2], (random(N, 2, seed=15) - 1.5).relu()], dim=1)


def test_level_2_is_matched_with_all_features_and_silent_latents_with_none(
    data: SyntheticData, h2: torch.Tensor, order2: torch.Tensor
):
    silent = torch.cat([h2[:, :9], torch.zeros(N, 20)], dim=1)
    latent_of = recovery.assign(recovery.f1_scores(silent, data.acts))
    for position, root in enumerate(ROOTS):
        assert order2[latent_of[root]].item() == position
    assert latent_of[5:20].tolist() == [-1] * 15, "nobody says that these are no roots: nothing is left for them"
    with_noise = recovery.assign(recovery.f1_scores(h2, data.acts))
    assert (with_noise[5:20] >= 0).sum() == 2
    assert (with_noise[ROOTS] == latent_of[ROOTS]).all()


def test_a_level_2_decoder_that_is_the_hierarchy_has_all_edges_and_another_has_not(
    forest: Forest, data: SyntheticData, h2: torch.Tensor, order2: torch.Tensor
):
    order1 = torch.randperm(24, generator=seeded(5))
    level1 = recovery.match(forest.features[order1], forest.features)
    level2 = recovery.assign(recovery.f1_scores(h2[:, :9], data.acts))
    W_dec = torch.zeros(9, 24)
    for latent2, position in enumerate(order2.tolist()):
        for latent1, feature in enumerate(order1.tolist()):
            root = ROOTS[position]
            # A parent's own level-1 latent is the strongest; it is no edge, and no error.
            W_dec[latent2, latent1] = 2.0 * (feature == root) + float(forest.parent_of[feature].item() == root)
    assert recovery.edge_scores(W_dec, level2, level1, forest.parent_of) == (1, 1)
    shuffled = W_dec[:, torch.randperm(24, generator=seeded(16))]
    assert recovery.edge_scores(shuffled, level2, level1, forest.parent_of).average_precision < 0.3


def test_fewer_level_2_latents_than_roots_lose_the_edges_of_the_parents_that_they_leave_out(
    forest: Forest, data: SyntheticData
):
    latent_of = recovery.assign(recovery.f1_scores(data.acts[:, [2, 4]], data.acts))
    assert latent_of.tolist() == [-1, -1, 0, -1, 1] + [-1] * 19
    W_dec = torch.stack([(forest.parent_of == parent).float() for parent in (2, 4)])
    found = recovery.edge_scores(W_dec, latent_of, torch.arange(24), forest.parent_of)
    # 6 of the 15 edges come first, and nothing more is known of the others than of any pair.
    assert found.average_precision == pytest.approx(6 / 15 + 9 / 15 * 15 / (24 * 23), abs=1e-6)
