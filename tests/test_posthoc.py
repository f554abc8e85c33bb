import dataclasses
import math

import pytest
import torch

from hsae import posthoc, recovery, synthetic
from hsae.streams import Stream
from hsae.synthetic import Forest, SyntheticData
from tests.forest import CONFIG, random, seeded


@pytest.fixture
def acts() -> torch.Tensor:
    """Six latents, the last one dead, that are noisy unions of features."""
    noisy = random(40, 6, seed=7) - 0.5
    noisy[:, 5] = 0
    return noisy.relu()


def test_conditional_probability_equals_a_naive_loop(acts: torch.Tensor):
    found = posthoc.conditional_probability(acts, acts)
    active = [(acts[:, i] != 0).tolist() for i in range(6)]
    for i in range(6):
        for j in range(6):
            if sum(active[i]) > sum(active[j]):
                both = sum(a and b for a, b in zip(active[i], active[j], strict=True))
                p = sum(active[i]) / len(active[i])
                assert found[i, j].item() == pytest.approx((both / max(sum(active[j]), 1) - p) / (1 - p))
            else:
                assert found[i, j].item() == -math.inf


def test_decoder_cosine_equals_a_naive_loop(acts: torch.Tensor):
    directions = 4 * random(6, 3, seed=11)
    found = posthoc.decoder_cosine(directions, acts)
    n_active = (acts != 0).sum(0).tolist()
    for i in range(6):
        for j in range(6):
            cosine = torch.cosine_similarity(directions[i], directions[j], dim=0).item()
            expected = cosine if n_active[i] > n_active[j] else -math.inf
            assert found[i, j].item() == pytest.approx(expected, abs=1e-6)


def test_the_true_dictionary_in_any_order_has_all_edges(forest: Forest, data: SyntheticData):
    order = torch.randperm(24, generator=seeded(5))
    latent_of = recovery.match(-forest.features[order], forest.features)
    scores = posthoc.conditional_probability(data.acts[:, order], data.acts[:, order])
    assert recovery.edge_scores(scores, latent_of, latent_of, forest.parent_of) == (1, 1)


def test_decoder_cosine_finds_the_edges_of_children_that_absorbed_their_parent(forest: Forest, data: SyntheticData):
    features = synthetic.ground_truth(dataclasses.replace(CONFIG, d_in=256), seeded()).features
    absorbed = features + torch.where((forest.parent_of >= 0)[:, None], features[forest.parent_of], 0)
    latents = torch.arange(24)
    found = recovery.edge_scores(posthoc.decoder_cosine(absorbed, data.acts), latents, latents, forest.parent_of)
    assert found == (1, 1)
    independent = posthoc.decoder_cosine(features, data.acts)
    assert recovery.edge_scores(independent, latents, latents, forest.parent_of).average_precision < 0.2


# Clusters of decoder rows


def test_the_most_frequent_member_of_a_cluster_is_the_parent_of_the_others():
    # Two bundles of directions, and a latent that is dead; the second of each bundle fires most often.
    angles = torch.tensor([0.0, 20.0, 30.0, 120.0, 130.0, 125.0]).deg2rad()
    directions = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    acts = torch.tensor([[1, 1, 0, 0, 1, 0], [0, 1, 1, 0, 1, 0], [0, 1, 0, 1, 0, 0]]).float()
    expected = torch.full((6, 6), -math.inf, dtype=torch.float64)
    expected[1, 0], expected[1, 2], expected[4, 3] = (math.cos(math.radians(a)) for a in (20, 10, 10))
    torch.testing.assert_close(posthoc.agglomerative(directions, acts, 2), expected, rtol=0, atol=1e-6)


def test_agglomerative_equals_a_naive_average_linkage():
    directions, acts = random(14, 4, seed=20), (random(60, 14, seed=21) - 0.5).relu()
    acts[:, 3] = 0
    cosines = torch.cosine_similarity(directions[:, None], directions, dim=2).double()
    clusters = [[latent] for latent in range(14) if latent != 3]
    while len(clusters) > 5:
        pairs = [(i, j) for j in range(len(clusters)) for i in range(j)]
        i, j = max(pairs, key=lambda pair: cosines[clusters[pair[0]]][:, clusters[pair[1]]].mean().item())
        clusters[i] += clusters.pop(j)
    expected = torch.full((14, 14), -math.inf, dtype=torch.float64)
    for members in clusters:
        parent = max(sorted(members), key=lambda latent: (acts[:, latent] != 0).sum().item())
        for child in set(members) - {parent}:
            expected[parent, child] = cosines[parent, child]
    assert (expected > -math.inf).sum() == 13 - 5
    torch.testing.assert_close(posthoc.agglomerative(directions, acts, 5), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_clusters", [0, 6])
def test_more_clusters_than_living_latents_are_refused(acts: torch.Tensor, n_clusters: int):
    with pytest.raises(ValueError, match=rf"`n_clusters` must be in 1\.\.living latents \(=5\); not {n_clusters}"):
        posthoc.agglomerative(random(6, 3), acts, n_clusters)


# The meta-SAE


def test_a_meta_sae_finds_what_rows_have_in_common(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(posthoc, "META_STEPS", 300)
    # Ten rows around each of two axes. What all rows have in common, half of either axis, is the bias.
    axes = torch.eye(12)[:2].repeat_interleave(10, dim=0)
    directions, scores = posthoc.meta_sae(3 * axes + 0.3 * random(20, 12, seed=23), 2, k=1, stream=Stream(1, "test"))
    of_first = int(directions[1, 0] > directions[0, 0])
    assert directions[of_first, 0] > 0.6 > directions[of_first, 1]
    assert directions[1 - of_first, 1] > 0.6 > directions[1 - of_first, 0]
    assert (scores[of_first, :10] > scores[1 - of_first, :10]).all()
    assert (scores[1 - of_first, 10:] > scores[of_first, 10:]).all()


def test_a_meta_sae_repeats_exactly_and_leaves_the_global_generator_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(posthoc, "META_STEPS", 50)
    rows = random(20, 6, seed=24)
    state = torch.get_rng_state()
    directions, scores = posthoc.meta_sae(rows, 5, k=2, stream=Stream(3, "test"))
    assert torch.equal(torch.get_rng_state(), state)
    assert directions.shape == (5, 6)
    assert scores.shape == (5, 20)
    assert scores.min() == 0
    assert (scores > 0).any(1).all()
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(5))
    torch.rand(1)
    # Rows count as unit vectors; a power of 2 changes no bit of these.
    assert all(map(torch.equal, posthoc.meta_sae(4 * rows, 5, k=2, stream=Stream(3, "test")), (directions, scores)))
    assert not torch.equal(posthoc.meta_sae(rows, 5, k=2, stream=Stream(4, "test"))[0], directions)


def test_more_active_meta_latents_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"`k` must be in 1\.\.d_sae \(=4\); not 5"):
        posthoc.meta_sae(random(20, 6), 4, k=5, stream=Stream(0, "test"))


def test_an_untrained_meta_sae_has_as_many_active_parents_and_knows_nothing():
    rows = random(200, 12, seed=25)
    directions, scores = posthoc.untrained_meta_sae(rows, 20, k=2, stream=Stream(0, "test"))
    assert directions.shape == (20, 12)
    assert scores.shape == (20, 200)
    assert (scores > 0).double().sum(0).mean().item() == pytest.approx(2)
    torch.testing.assert_close(scores, (directions @ torch.nn.functional.normalize(rows).T) * (scores > 0))
    assert not torch.equal(posthoc.untrained_meta_sae(rows, 20, k=2, stream=Stream(1, "test"))[0], directions)
