from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

from hsae.feature_clustering import (
    FeatureClusteringConfig,
    Features,
    embed,
    flat_features,
    headline,
    hsae_features,
    largest_groups,
    living,
    parent_groups,
)
from hsae.latent_classes import LABELLINGS, Text
from hsae.streams import Stream

CONFIG = FeatureClusteringConfig(
    n_tokens=600, min_active=5, min_share=0.5, n_neighbors=3, n_null=5, n_resamples=10, groups_shown=3
)
STREAM = Stream(0, "test")
ALPHABET = "\n aBc."
N_LATENTS, D_IN, N_PARENTS = 40, 8, 7


def planted() -> tuple[csr_array, Text, np.ndarray]:
    """Latent i answers, when its coin lands heads, the characters of group i % 6; the last two latents hardly ever do.

    Returns activations, text and the group of each latent.
    """
    rng = np.random.default_rng(0)
    tokens = rng.integers(len(ALPHABET), size=CONFIG.n_tokens + 1)
    groups = np.arange(N_LATENTS) % len(ALPHABET)
    answers = (tokens[:-1, None] == groups) & (rng.random((CONFIG.n_tokens, N_LATENTS)) < 0.6)
    answers[12:, -2:] = False
    acts = csr_array((answers * rng.random(answers.shape)).astype(np.float32))
    return acts, Text(tokens[:-1], tokens[1:], ALPHABET), groups


def decoders() -> tuple[np.ndarray, np.ndarray]:
    """Level-1 directions at random, and a level 2 whose parents are the groups; the seventh points at nothing."""
    rng = np.random.default_rng(1)
    W_dec2 = np.zeros((N_PARENTS, N_LATENTS), np.float32)
    W_dec2[np.arange(N_LATENTS) % len(ALPHABET), np.arange(N_LATENTS)] = 1
    return rng.standard_normal((N_LATENTS, D_IN)).astype(np.float32), W_dec2


@pytest.fixture
def hsae() -> Features:
    acts, _, groups = planted()
    return hsae_features(
        (acts, acts), *decoders(), {"decoder": groups, "coactivation": groups[::-1].copy()}, CONFIG, STREAM
    )


def test_only_latents_that_are_active_often_enough_live():
    acts, _, _ = planted()
    counts = (acts.toarray() > 0).sum(0)
    assert living(acts, 5).tolist() == np.flatnonzero(counts >= 5).tolist() == list(range(N_LATENTS - 2))
    assert living(acts, int(counts.max())).tolist() == [counts.argmax()]


def test_stored_zeros_do_not_make_a_latent_live():
    acts = csr_array(np.ones((6, 2), np.float32))
    acts.data[acts.indices == 1] = 0
    assert living(acts, 1).tolist() == [0]


def test_a_latent_without_a_parent_is_a_group_of_its_own():
    labels = parent_groups(np.array([4, -1, 2, 4, -1]))
    assert labels[0] == labels[3]
    assert len(np.unique(labels)) == 4
    assert set(labels) == set(range(4))


def test_every_partition_labels_the_living_latents_and_clusters_are_as_many_as_groups(hsae: Features):
    names = ["decoder_clusters", "coactivation_clusters", "communities", "groups_decoder", "groups_coactivation"]
    assert list(hsae.partitions) == names
    assert {len(labels) for labels in hsae.partitions.values()} == {len(hsae.latents)} == {N_LATENTS - 2}
    for name in ("decoder_clusters", "coactivation_clusters", "groups_decoder"):
        assert len(np.unique(hsae.partitions[name])) == 6
    assert hsae.W_dec.shape == (N_LATENTS - 2, D_IN)


def test_latents_that_answer_the_same_characters_are_clustered_together(hsae: Features):
    for name in ("coactivation_clusters", "communities", "groups_decoder"):
        joint = np.unique(np.stack([hsae.partitions[name], hsae.partitions["groups_decoder"]]), axis=1)
        assert joint.shape[1] == 6, name


def test_the_tree_of_groups_joins_parents_by_the_children_that_they_share():
    acts, _, groups = planted()
    W_dec1, W_dec2 = decoders()
    W_dec2[1] += 0.5 * W_dec2[4]
    W_dec2[5] += 0.5 * W_dec2[2]
    tree = hsae_features((acts, acts), W_dec1, W_dec2, {"decoder": groups}, CONFIG, STREAM).trees["groups_decoder"]
    four = tree.cut(4)
    assert four[1] == four[4]
    assert four[5] == four[2]
    assert len({four[0], four[1], four[2], four[3]}) == 4


def test_clusterings_and_classes_come_from_different_tokens(hsae: Features):
    acts, _, groups = planted()
    other = acts[::-1]
    parents = {"decoder": groups, "coactivation": groups[::-1].copy()}
    found = hsae_features((acts, other), *decoders(), parents, CONFIG, STREAM)
    for name, labels in found.partitions.items():
        np.testing.assert_array_equal(labels, hsae.partitions[name])
    np.testing.assert_array_equal(found.phi, hsae.phi)
    np.testing.assert_array_equal(found.acts.toarray(), other.toarray()[:, :-2])


def test_an_orphan_stands_in_the_tree_for_itself():
    acts, _, groups = planted()
    groups = np.where(np.arange(N_LATENTS) == 3, -1, groups)
    features = hsae_features((acts, acts), *decoders(), {"decoder": groups}, CONFIG, STREAM)
    labels = features.partitions["groups_decoder"]
    assert (labels == labels[3]).sum() == 1
    distances = features.trees["groups_decoder"].distances
    # Parent 3 still points at the orphan, one of its children of equal weight.
    n_children = (np.arange(N_LATENTS - 2) % 6 == 3).sum()
    assert distances[labels[3], labels[9]] == pytest.approx(1 - 1 / np.sqrt(n_children))
    assert distances[labels[3], labels[0]] == pytest.approx(1)


def test_the_headline_is_1_where_groups_are_the_characters_and_0_where_they_are_shuffled():
    acts, text, groups = planted()
    found = headline(groups, acts, text, CONFIG)
    assert list(found) == LABELLINGS
    assert found["current_character"] == pytest.approx(1)
    shuffled = [headline(np.random.default_rng(i).permutation(groups), acts, text, CONFIG) for i in range(20)]
    assert abs(np.mean([float(draw["current_character"] or 0) for draw in shuffled])) < 0.05


def test_a_headline_of_no_selective_latents_is_none():
    acts, text, groups = planted()
    found = headline(groups, acts, text, replace(CONFIG, min_share=1.0))
    assert found["current_character"] == pytest.approx(1)
    assert found["next_character"] is None


def test_the_largest_groups_are_ranked():
    assert largest_groups(np.array([0, 1, 1, 2, 2, 2, 3]), 2).tolist() == [-1, 1, 1, 0, 0, 0, -1]


def test_an_embedding_is_repeatable_and_keeps_neighbours_together():
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((2, 10)) * 5
    directions = np.concatenate([center + rng.standard_normal((30, 10)) for center in centers])
    places = embed(directions, STREAM)
    np.testing.assert_array_equal(places, embed(directions, STREAM))
    within = np.linalg.norm(places[:30] - places[:30].mean(0), axis=1).mean()
    assert np.linalg.norm(places[:30].mean(0) - places[30:].mean(0)) > 2 * within


def test_fewer_than_two_living_latents_are_refused():
    acts, _, _ = planted()
    with pytest.raises(ValueError, match="`the number of living latents` must be at least 2; not 0"):
        flat_features((acts, acts), decoders()[0], 6, replace(CONFIG, min_active=601), STREAM)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_tokens", 1, "`n_tokens` must be at least 2, to be halved; not 1"),
        ("min_active", 0, "`min_active` must be above 0; not 0"),
        ("n_neighbors", 0, "`n_neighbors` must be above 0; not 0"),
        ("min_share", 1.5, "`min_share` must be in 0..1; not 1.5"),
        ("n_null", 1, "`n_null` must be 2 or above; not 1"),
        ("n_resamples", 1, "`n_resamples` must be 2 or above; not 1"),
        ("groups_shown", 1, "`groups_shown` must be 2 or above; not 1"),
    ],
)
def test_bad_settings_are_refused_by_name(key: str, value: float, message: str):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **{key: value})
