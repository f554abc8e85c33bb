import numpy as np
import pandas as pd
import pytest
import torch

from hsae import stability as module
from hsae.stability import (
    Directions,
    Matching,
    aligned,
    living,
    match,
    null_match,
    random_like,
    seed_interval,
    stability,
    summarize,
)  # fmt: skip
from hsae.streams import Stream

STREAM = Stream(0, "test")
RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((30, 12))


def whole(rows: np.ndarray, basis: np.ndarray | None = None) -> Directions:
    """A dictionary whose latents all live."""
    return Directions(rows, np.arange(len(rows)), basis)


def shuffled(rows: np.ndarray, seed: int) -> np.ndarray:
    """The same rows in another order and of other lengths."""
    rng = np.random.default_rng(seed)
    return rng.permutation(rows) * rng.uniform(0.5, 2, (len(rows), 1))


def test_pairs_are_those_of_the_largest_sum_of_cosines_and_not_the_nearest():
    a = np.array([[1.0, 0.0], [0.8, 0.6]])
    b = np.array([[3.0, 0.1], [0.0, 1.0]])
    found = match(a, b)
    assert found.b[np.argsort(found.a)].tolist() == [0, 1]
    assert np.sort(found.cosines) == pytest.approx([0.6, 3 / np.hypot(3, 0.1)])
    assert match(a, b[:1]).a.tolist() == [0], "of two candidates the better one"


def test_opposite_directions_are_no_match_and_zero_rows_have_cosine_0():
    assert match(np.array([[1.0, 0.0]]), np.array([[-1.0, 0.0]])).cosines.tolist() == [-1]
    assert match(np.zeros((1, 2)), np.ones((1, 2))).cosines.tolist() == [0]


def test_the_same_features_in_another_order_are_perfectly_stable():
    models = {"same": {seed: whole(shuffled(ROWS, seed)) for seed in (3, 5, 8)}}
    pairs, latents = stability(models, STREAM)
    assert pairs[["seed_a", "seed_b"]].to_numpy().tolist() == [[3, 5], [3, 8], [5, 8]]
    np.testing.assert_allclose(pairs[["mcc", "adjusted", "matched_70", "matched_90"]], 1)
    assert latents["recurrence"].tolist() == [2] * 30
    summary = summarize(pairs, latents, STREAM)["same"]
    assert summary["mcc_interval"] == pytest.approx([1, 1])
    assert (summary["n_seeds"], summary["recurs"]) == (3, 1)


def test_recurrence_counts_the_seeds_in_which_a_latent_is_found_again():
    features = np.eye(6)
    rows = {0: features[:3], 1: features[[2, 0, 4]], 2: features[[5, 0, 3]]}
    pairs, latents = stability({"own": {seed: whole(own) for seed, own in rows.items()}}, STREAM)
    assert latents["recurrence"].tolist() == [2, 0, 1]
    assert pairs["mcc"].tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3])
    assert pairs["matched_90"].tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3])
    assert summarize(pairs, latents, STREAM)["own"]["recurs"] == pytest.approx(1 / 3)


def test_latents_keep_their_indices():
    features = np.eye(6)
    models = {0: Directions(features[:3], np.array([1, 4, 7])), 2: Directions(features[[1, 5]], np.array([0, 3]))}
    _, latents = stability({"own": models}, STREAM)
    assert latents[["latent", "recurrence"]].to_numpy().tolist() == [[1, 0], [4, 1], [7, 0]]


def test_unrelated_directions_are_no_more_alike_than_the_null_also_where_they_share_a_subspace():
    shared = np.diag([3.0] * 6 + [1.0] * 26)
    rows = {seed: np.random.default_rng(seed).standard_normal((80, 32)) for seed in range(6)}
    models = {
        "isotropic": {seed: whole(own) for seed, own in rows.items()},
        "shared": {seed: whole(own @ shared) for seed, own in rows.items()},
    }
    pairs, latents = stability(models, STREAM)
    summary = summarize(pairs, latents, STREAM)
    assert summary["shared"]["mcc"] - summary["isotropic"]["mcc"] > 0.1, "so that the harder null is needed"
    for name in models:
        assert abs(summary[name]["adjusted"]) < 0.06


def test_the_null_keeps_second_moments():
    draws = [random_like(ROWS * 7, np.random.default_rng(seed)) for seed in range(2000)]
    unit = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    moments = np.mean([rows.T @ rows for rows in draws], axis=0)
    np.testing.assert_allclose(moments, unit.T @ unit, atol=0.1)


def test_latents_of_latents_are_compared_after_the_lower_ones_are_matched():
    weights = RNG.random((5, 30))
    order = RNG.permutation(30)
    a = whole(weights, basis=ROWS)
    b = whole(weights[::-1, order], basis=2 * ROWS[order])
    left, right = aligned(a, b)
    np.testing.assert_allclose(match(left, right).cosines, 1)
    pairs, _ = stability({"matched": {0: a, 1: b}, "unmatched": {0: whole(a.rows), 1: whole(b.rows)}}, STREAM)
    assert pairs["mcc"].iloc[0] == pytest.approx(1)
    assert pairs["mcc"].iloc[1] < 0.95


def test_the_interval_resamples_seeds_and_not_pairs():
    pairs = pd.DataFrame({"seed_a": [0, 0, 4], "seed_b": [4, 9, 9], "mcc": [0.1, 0.2, 0.6]})
    # Of the draws of three seeds, two thirds are of two different ones: the extremes are single pairs.
    assert seed_interval(pairs, "mcc", STREAM) == pytest.approx([0.1, 0.6])
    wide = [{"seed_a": i, "seed_b": j, "mcc": float(i == 0)} for i in range(8) for j in range(i + 1, 8)]
    interval = seed_interval(pd.DataFrame(wide), "mcc", STREAM)
    assert interval is not None
    low, high = interval
    assert low == 0, "a resample without the seed that differs"
    assert 0.25 < high < 1
    assert seed_interval(pairs.head(1), "mcc", STREAM) is None


def test_a_dictionary_that_has_died_is_refused():
    models = {"own": {3: whole(ROWS), 4: whole(ROWS[:0])}}
    with pytest.raises(ValueError, match=r"`own` must be alive: there is no living latent from some seeds; not \[4\]"):
        stability(models, STREAM)


def test_one_seed_is_refused():
    with pytest.raises(ValueError, match=r"`own` must be trained from at least 2 seeds; not \[3\]"):
        stability({"own": {3: whole(ROWS)}}, STREAM)


def test_results_repeat_to_the_bit():
    models = {"own": {seed: whole(np.random.default_rng(seed).standard_normal((9, 4))) for seed in range(3)}}
    for first, second in zip(stability(models, STREAM), stability(models, STREAM), strict=True):
        pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_what_lives_is_what_is_active_on_some_token():
    x = torch.eye(4)[:3].repeat(5, 1)
    found = living(torch.relu, torch.arange(8.0).view(4, 2), x.split(4))
    assert found.latents.tolist() == [0, 1, 2]
    assert found.rows.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_every_null_and_every_interval_is_drawn_from_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch):
    drawn: list[Stream] = []

    def noted(a: np.ndarray, b: np.ndarray, stream: Stream) -> Matching:
        drawn.append(stream)
        return null_match(a, b, stream)

    monkeypatch.setattr(module, "null_match", noted)
    monkeypatch.setattr(module, "cluster_weights", lambda n, stream: drawn.append(stream) or np.ones((1, n)))
    models = {name: {seed: whole(shuffled(ROWS, seed)) for seed in range(3)} for name in ("own", "other")}
    summarize(*stability(models, STREAM.of("nulls")), STREAM.of("intervals"))
    assert len(drawn) == len({stream.number for stream in drawn}) == 2 * 3 + 2 * 2
