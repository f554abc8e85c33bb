import dataclasses
import math

import pytest
import torch

from hsae import posthoc, recovery, synthetic
from hsae.synthetic import Forest, SyntheticData
from tests.forest import CONFIG, random, seeded


@pytest.fixture
def acts() -> torch.Tensor:
    """Six latents, the last one dead, that are noisy unions of features."""
    noisy = random(40, 6, seed=7) - 0.5
    noisy[:, 5] = 0
    return noisy.relu()


def test_conditional_probability_equals_a_naive_loop(acts: torch.Tensor):
    found = posthoc.conditional_probability(acts)
    active = [(acts[:, i] != 0).tolist() for i in range(6)]
    for i in range(6):
        for j in range(6):
            if sum(active[i]) > sum(active[j]):
                both = sum(a and b for a, b in zip(active[i], active[j], strict=True))
                assert found[i, j].item() == pytest.approx(both / max(sum(active[j]), 1))
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
    scores = posthoc.conditional_probability(data.acts[:, order])
    assert recovery.edge_scores(scores, latent_of, latent_of, forest.parent_of) == (1, 1)


def test_decoder_cosine_finds_the_edges_of_children_that_absorbed_their_parent(forest: Forest, data: SyntheticData):
    features = synthetic.ground_truth(dataclasses.replace(CONFIG, d_in=256), seeded()).features
    absorbed = features + torch.where((forest.parent_of >= 0)[:, None], features[forest.parent_of], 0)
    latents = torch.arange(24)
    found = recovery.edge_scores(posthoc.decoder_cosine(absorbed, data.acts), latents, latents, forest.parent_of)
    assert found == (1, 1)
    independent = posthoc.decoder_cosine(features, data.acts)
    assert recovery.edge_scores(independent, latents, latents, forest.parent_of).average_precision < 0.2
