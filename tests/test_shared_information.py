"""Information between levels and about labels: hierarchies and channels whose answer is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy import ndarray
from scipy import stats

from hsae.information import entropies
from hsae.probes import ProbeConfig
from hsae.samples import shared
from hsae.shared_information import (
    InformationConfig,
    Levels,
    binned,
    common_classes,
    conditional_entropies,
    conditional_entropy_shares,
    examine,
    headline,
    label_information,
    live_pairs,
    samples,
    summarize,
    summarize_labels,
    top_children,
)
from hsae.streams import Stream

PROBE = ProbeConfig(epochs=1, batch_size=8, lr=[0.1], weight_decay=[0.0], held_out=0.5, resamples=10)
CONFIG = InformationConfig(
    tokens=1, bins=2, screening_shifts=3, shifts=50, candidates=1, fdr=0.01, children=[1, 2], probe=PROBE
)
STREAM = Stream(0, "test")
N = 4000


def hierarchy(seed: int = 0) -> tuple[ndarray, ndarray, ndarray]:
    """h1, h2 and the decoder of two parents, each active when one of its two children is; a third one is unrelated.

    The fifth child and the fourth parent are never active, and the third parent's decoder points at the fifth child.
    """
    generator = np.random.default_rng(seed)
    h1 = generator.random((N, 5)) * (generator.random((N, 5)) < 0.15)
    h1[:, 4] = 0
    unrelated = generator.random(N) * (generator.random(N) < 0.15)
    h2 = np.stack([h1[:, 0] + h1[:, 1], h1[:, 2] + h1[:, 3], unrelated, np.zeros(N)], 1)
    W_dec = np.array([[0.9, 0.8, 0.0, 0.1, 0.0], [0.1, 0.0, 0.7, 0.9, 0.0], [0.0, 0.1, 0.1, 0.1, 0.5], [0.0] * 5])
    return h1, h2, W_dec


def both(h1: ndarray, h2: ndarray) -> tuple[ndarray, ndarray]:
    return binned(h1, 2), binned(h2, 2)


@pytest.fixture
def levels() -> Levels:
    h1, h2, W_dec = hierarchy()
    return examine(*both(h1, h2), W_dec, 10, CONFIG, STREAM)


def test_true_children_are_significant_and_the_unrelated_parent_has_none(levels: Levels):
    found = levels.tested.query("q <= 0.01")
    assert set(zip(found["parent"], found["child"], strict=True)) == {(0, 0), (0, 1), (1, 2), (1, 3)}
    assert min(levels.tested.query("parent == 2")["q"]) > 0.01
    assert found["is_child"].tolist() == [True] * 4
    assert levels.alive.tolist() == [0, 1, 2]
    assert levels.alive_children.tolist() == [0, 1, 2, 3]
    assert levels.strongest.tolist() == [0, 0, 1, 1, -1]
    assert 3 not in levels.tested["parent"].tolist()


def test_pairs_are_the_candidates_and_the_decoders_children_each_once(levels: Levels):
    pairs = list(zip(levels.tested["parent"], levels.tested["child"], strict=True))
    assert len(set(pairs)) == len(pairs) == 5
    assert levels.tested["weight"].tolist() == [levels.weight[pair] for pair in pairs]
    wider = examine(*both(*hierarchy()[:2]), levels.weight, 10, replace(CONFIG, candidates=5), STREAM)
    assert len(wider.tested) == 3 * 5


def test_the_choice_of_pairs_does_not_see_the_tokens_of_the_test():
    h1, h2, W_dec = hierarchy()
    x, y = both(h1, h2)
    # Parent 2 copies child 0, in the half that is tested alone; and what is screened stays as it was.
    y[N // 2 :, 2] = x[N // 2 :, 0]
    changed, before = examine(x, y, W_dec, 10, CONFIG, STREAM), examine(*both(h1, h2), W_dec, 10, CONFIG, STREAM)
    np.testing.assert_array_equal(changed.screened, before.screened)
    assert (changed.information != before.information).any()
    assert changed.tested[["parent", "child"]].equals(before.tested[["parent", "child"]])


def test_the_share_of_a_parents_entropy_is_the_tested_information_over_the_entropy_of_the_same_tokens(levels: Levels):
    _, y = both(*hierarchy()[:2])
    entropy = entropies(y[N // 2 :])[levels.tested["parent"]]
    np.testing.assert_allclose(levels.tested["u"], levels.tested["information"] / entropy)
    np.testing.assert_allclose(levels.u[:3], levels.information[:3] / entropies(y[N // 2 :])[:3, None])
    assert not levels.u[3].any()


def test_bins_are_cut_on_the_first_half_and_what_is_reported_is_of_the_second():
    h1, h2, W_dec = hierarchy()
    changed = h1.copy()
    changed[N // 2 :] *= 3
    np.testing.assert_array_equal(binned(changed, 2)[: N // 2], binned(h1, 2)[: N // 2])
    assert (binned(changed, 2) != binned(h1, 2)).any()
    # Unrelated in the half that chooses: the summary does not see it.
    x, y = both(h1, h2)
    y[: N // 2] = np.random.default_rng(7).permutation(y[: N // 2])
    found, before = (summarize(examine(x, own, W_dec, 10, CONFIG, STREAM), 0.01) for own in (y, both(h1, h2)[1]))
    assert found["u_children"] == before["u_children"]
    records = samples(np.arange(10, 10 + N), "labels")
    assert {one["what"] for one in records} == {"bins of both levels", "candidate children", "labels"}
    assert shared(records) == []


def test_no_two_shifts_are_drawn_from_one_stream(monkeypatch: pytest.MonkeyPatch):
    h1, h2, W_dec = hierarchy()
    numbers = []
    monkeypatch.setattr(Stream, "numpy", lambda self: (numbers.append(self.number), np.random.default_rng(0))[1])
    examine(*both(h1, h2), W_dec, 10, CONFIG, STREAM.of("levels"))
    labels = np.zeros((N, 1), np.int8)
    for level, own in enumerate(both(h1, h2)):
        label_information(own, labels, ["a"], 10, CONFIG, STREAM.of("labels", level))
    assert len(numbers) == len(set(numbers)) == 7


def test_the_summary_is_of_all_living_pairs(levels: Levels):
    found = summarize(levels, 0.01)
    assert found["live_parents"] == 3
    assert found["parents_with_child"] == pytest.approx(2 / 3)
    assert (found["pairs_tested"], found["pairs_significant"]) == (5, 4)
    assert (found["weight_pairs"], found["children"]) == (12, 4)
    children = [levels.information[pair] for pair in [(0, 0), (0, 1), (1, 2), (1, 3)]]
    assert found["information_children"] == pytest.approx(np.mean(children))
    assert found["information_others"] == pytest.approx((levels.information[:3, :4].sum() - sum(children)) / 8)
    rho = stats.spearmanr(levels.information[:3, :4].ravel(), levels.weight[:3, :4].ravel())[0]
    assert found["weight_correlation"] == pytest.approx(rho)
    u_children, u_others = found["u_children"], found["u_others"]
    assert u_children is not None
    assert u_others is not None
    assert u_children > 0.2 > 0.01 > abs(u_others)
    assert len(live_pairs(levels)) == 12


def test_the_headline_is_the_summary_of_the_binned_activations(levels: Levels):
    h1, h2, W_dec = hierarchy()
    assert headline(h1, h2, W_dec, 10, CONFIG, STREAM) == summarize(levels, 0.01)
    assert headline(7 * h1, 3 * h2, W_dec, 10, CONFIG, STREAM) == summarize(levels, 0.01)


def test_children_of_shuffled_tokens_are_not_found():
    h1, h2, W_dec = hierarchy()
    found = headline(h1, np.random.default_rng(5).permutation(h2), W_dec, 10, CONFIG, STREAM)
    assert found["parents_with_child"] == 0


def test_the_half_that_is_measured_has_no_say_in_what_counts():
    h1, h2, W_dec = hierarchy()
    x, y = both(h1, h2)
    before = examine(x, y, W_dec, 10, CONFIG, STREAM)
    x[N // 2 :, 0], y[N // 2 :, 1] = 0, 0  # silent from there on
    y[N // 2 :, 3] = 1  # active there alone
    found = examine(x, y, W_dec, 10, CONFIG, STREAM)
    for name in ("alive", "alive_children", "strongest", "screened"):
        np.testing.assert_array_equal(getattr(found, name), getattr(before, name))
    assert found.tested[["parent", "child"]].equals(before.tested[["parent", "child"]])
    silent = found.tested.query("parent == 1 or child == 0")
    np.testing.assert_array_equal(silent["p"], 1)
    np.testing.assert_allclose(silent["u"], 0, atol=1e-12)
    assert summarize(found, 0.01)["live_parents"] == 3
    json.dumps(summarize(found, 0.01), allow_nan=False)
    assert np.isfinite(conditional_entropy_shares(x, y, found, 2)).all()


def test_a_latent_that_is_silent_where_labels_are_tested_tells_nothing_of_any():
    labels = (np.random.default_rng(3).random((N, 1)) < 0.3).astype(np.int8)
    latents = np.concatenate([labels, labels, np.zeros_like(labels)], 1)
    latents[N // 2 :, 1] = 0
    latents[N // 2 :, 2] = 1  # active there alone
    tested = label_information(latents, labels, ["a"], 10, CONFIG, STREAM)
    assert tested["latent"].tolist() == [0, 1]
    assert tested["u"].to_numpy() == pytest.approx([1, 0], abs=0.01)
    assert tested["p"].to_list()[1] == 1
    assert summarize_labels(tested, 0.01)["significant"] == 0.5


def test_a_dead_level_has_a_summary_that_can_be_written():
    silent = np.zeros((400, 2), np.int8)
    levels = examine(silent, silent, np.ones((2, 2)), 10, CONFIG, STREAM)
    found = summarize(levels, 0.01)
    assert (found["live_parents"], found["pairs_tested"], found["parents_with_child"]) == (0, 0, None)
    json.dumps(found, allow_nan=False)
    assert conditional_entropies(silent, silent, levels, [1, 2]) == {}
    tested = label_information(silent, silent + np.arange(2, dtype=np.int8), ["a", "b"], 10, CONFIG, STREAM)
    assert tested.empty
    json.dumps(summarize_labels(tested, 0.01), allow_nan=False)


def test_the_strongest_children_come_first_and_there_may_be_fewer():
    assert top_children(np.array([[0.1, 0.5, 0.3], [0.2, 0.2, 0.1]]), 2).tolist() == [[1, 2], [0, 1]]
    assert top_children(np.array([[0.1, 0.5]]), 9).tolist() == [[1, 0]]


# H(h2_j | children)


def shares(h1: ndarray, h2: ndarray, m: int) -> ndarray:
    levels = examine(h1, h2, np.ones((h2.shape[1], h1.shape[1])), 10, CONFIG, STREAM)
    return conditional_entropy_shares(h1, h2, levels, m)


def on_off(n: int, latents: int, seed: int) -> ndarray:
    return (np.random.default_rng(seed).random((n, latents)) < 0.3).astype(np.int8)


def test_a_parent_that_is_a_function_of_two_children_is_known_from_two_and_not_from_one():
    h1 = on_off(20_000, 4, seed=0)
    either = (h1[:, [1]] | h1[:, [3]]).astype(np.int8)
    assert shares(h1, either, 2).item() < 0.002
    # Given one child: nothing to know where it is active, else the other one's entropy.
    expected = 0.7 * stats.entropy([0.3, 0.7]) / stats.entropy([0.49, 0.51])
    assert shares(h1, either, 1).item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("flip", [0.02, 0.1])
def test_given_a_child_that_it_copies_with_noise_a_parent_has_the_entropy_of_the_noise(flip: float):
    n = 60_000
    h1 = on_off(n, 3, seed=0)
    noise = np.arange(n // 2) < flip * n // 2
    generator = np.random.default_rng(1)
    flips = np.concatenate([generator.permutation(noise), generator.permutation(noise)])
    parent = h1[:, [0]] ^ flips[:, None]
    active = 0.3 * (1 - flip) + 0.7 * flip
    expected = stats.entropy([flip, 1 - flip]) / stats.entropy([active, 1 - active])
    for m in (1, 3):
        assert shares(h1, parent.astype(np.int8), m).item() == pytest.approx(expected, rel=0.02)


def test_children_that_tell_nothing_leave_all_unknown_however_many_there_are():
    h1, h2 = on_off(8000, 8, seed=0), on_off(8000, 1, seed=1)
    assert shares(h1, h2, 1).item() == pytest.approx(1, abs=0.002)
    # Counted on the same tokens, 256 patterns would seem to tell some of it.
    assert 1 <= shares(h1, h2, 8).item() < 1.05


def test_the_entropies_are_quartiles_over_living_parents(levels: Levels):
    x, y = both(*hierarchy()[:2])
    found = conditional_entropies(x, y, levels, [1, 2])
    values = conditional_entropy_shares(x, y, levels, 2)
    assert len(values) == 3
    assert found["2"] == {
        "low": pytest.approx(np.quantile(values, 0.25)),
        "median": pytest.approx(np.median(values)),
        "high": pytest.approx(np.quantile(values, 0.75)),
    }
    assert found["2"]["median"] < found["1"]["median"]


# Labels


def test_every_latents_best_label_is_the_one_that_it_follows():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, (N, 2)).astype(np.int8)
    noise = generator.random(N) < 0.2
    latents = np.stack([labels[:, 1] == 2, (labels[:, 0] == 1) | noise, noise, np.zeros(N)], 1).astype(np.int8)
    found = label_information(latents, labels, ["a", "b"], 10, CONFIG, STREAM)
    assert found["latent"].tolist() == [0, 1, 2]
    assert found["label"].tolist()[:2] == ["b", "a"]
    assert (found["q"] <= 0.01).tolist() == [True, True, False]
    expected = stats.entropy([1 / 3, 2 / 3]) / np.log(3)
    assert [found["u"].tolist()[0], found["b"].tolist()[0]] == pytest.approx([expected] * 2, rel=0.02)
    assert abs(found["a"].tolist()[0]) < 0.01
    summary = summarize_labels(found.iloc[:2], 0.01)
    assert summary == {
        "significant": 1.0, "u_best": pytest.approx(found["u"][:2].mean()), "best_a": 0.5, "best_b": 0.5
    }  # fmt: skip


def test_classes_are_numbered_by_frequency_and_the_rarest_of_many_become_one():
    labels = np.array([7, 7, -1, 3, 3, 3])
    assert common_classes(labels, labels).tolist() == [1, 1, 2, 0, 0, 0]
    # What is counted elsewhere decides: 9 is only there, 3 only here, and last.
    assert common_classes(labels, np.array([-1, -1, 7, 9, 9, 9])).tolist() == [1, 1, 0, 2, 2, 2]
    many = np.repeat(np.arange(300), np.arange(300, 0, -1))
    found = common_classes(many, many)
    assert found.dtype == np.int8
    assert found.max() == 126
    np.testing.assert_array_equal(found, np.minimum(many, 126))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tokens", 0, "`tokens` must be above 0; not 0."),
        ("bins", 128, r"`bins` must be in 1\.\.127; not 128."),
        ("shifts", 1, "`shifts` must be at least 2, to have a variance; not 1."),
        ("fdr", 1.0, "`fdr` must be between 0 and 1; not 1.0."),
        ("children", [2, 17], r"`children` must be one or more numbers in 1\.\.16; not \[2, 17\]."),
        ("children", [], "`children` must be one or more"),
    ],
)
def test_bad_settings_are_refused(name: str, value: object, message: str):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **{name: value})  # pyright: ignore[reportArgumentType]


def test_tables_hold_what_their_docstrings_say(levels: Levels):
    expected = "parent child information null_mean null_std p q u weight is_child"
    assert set(levels.tested.columns) == set(expected.split())
