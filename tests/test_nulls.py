"""Shift nulls: scikit-learn as an oracle, tables of known information, and how often unrelated series are rejected."""

import numpy as np
import pandas as pd
import pytest
from numpy import ndarray
from scipy import signal, stats
from sklearn.metrics import mutual_info_score

from hsae import nulls
from hsae.information import mutual_information
from hsae.nulls import debiased, draw_shifts, shift_test
from hsae.streams import Stream


def autocorrelated(n: int, latents: int, seed: int) -> ndarray:
    """Latents that are active where an AR(1) process is above a threshold: independent ones, each in long runs."""
    burn_in = 200  # the process starts from 0, in all series alike
    noise = np.random.default_rng(seed).standard_normal((burn_in + n, latents))
    series = signal.lfilter([1], [1, -0.95], noise, axis=0)[burn_in:]
    return (series > np.quantile(series, 0.9, axis=0)).astype(np.int8)


def paired(n: int) -> pd.DataFrame:
    return pd.DataFrame({"x": range(n), "y": range(n)})


def sampled(table: list[list[float]], n: int, seed: int) -> tuple[ndarray, ndarray]:
    """Two columns of bins drawn from a joint distribution."""
    p = np.array(table)
    cells = np.random.default_rng(seed).choice(p.size, n, p=p.ravel())
    x, y = (index.astype(np.int8)[:, None] for index in np.unravel_index(cells, p.shape))
    return x, y


def test_shifts_are_different_and_keep_their_distance_from_no_shift():
    shifts = draw_shifts(100, 50, 20, Stream(0, "test"))
    assert len(set(shifts.tolist())) == 50
    assert (shifts.min() >= 20) & (shifts.max() <= 80)
    np.testing.assert_array_equal(shifts, draw_shifts(100, 50, 20, Stream(0, "test")))
    assert set(shifts.tolist()) != set(draw_shifts(100, 50, 20, Stream(1, "test")).tolist())
    assert sorted(draw_shifts(10, 3, 4, Stream(0, "test")).tolist()) == [4, 5, 6]


@pytest.mark.parametrize(("n_tokens", "n_shifts", "least"), [(9, 3, 10), (5, 1, 8), (100, 95, 102)])
def test_too_few_tokens_for_the_shifts_are_refused(n_tokens: int, n_shifts: int, least: int):
    with pytest.raises(ValueError, match=f"`n_tokens` must be at least {least}, for {n_shifts} shifts by 4 or more"):
        draw_shifts(n_tokens, n_shifts, 4, Stream(0, "test"))


def test_information_and_null_are_scikit_learns_of_the_shifted_columns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nulls, "LOOKUPS", 400)  # several pieces
    generator = np.random.default_rng(0)
    x, y = (generator.integers(0, n, (200, 3)).astype(np.int8) for n in (3, 5))
    shifts = draw_shifts(200, 7, 10, Stream(0, "test"))
    pairs = pd.DataFrame({"x": [2, 0, 2], "y": [1, 1, 0]}, index=[5, 6, 9])
    found = shift_test(x, y, pairs, shifts)
    for row, (i, j) in zip(found.to_dict("records"), [(2, 1), (0, 1), (2, 0)], strict=True):
        null = [mutual_info_score(x[:, i], np.roll(y[:, j], -shift)) for shift in shifts]
        assert row["null_mean"] == pytest.approx(np.mean(null), abs=1e-12)
        assert row["null_std"] == pytest.approx(np.std(null, ddof=1), abs=1e-12)
        assert row["information"] == pytest.approx(mutual_info_score(x[:, i], y[:, j]) - np.mean(null), abs=1e-12)
    assert found["x"].tolist() == [2, 0, 2]
    assert found["q"].tolist() == pytest.approx(stats.false_discovery_control(found["p"]))


def test_the_debiased_matrix_is_the_plug_in_less_its_mean_over_shifts():
    generator = np.random.default_rng(0)
    x, y = (generator.integers(0, 4, (150, n)).astype(np.int8) for n in (4, 3))
    shifts = np.array([20, 71])
    null = (mutual_information(x, np.roll(y, 20, 0)) + mutual_information(x, np.roll(y, 71, 0))) / 2
    np.testing.assert_allclose(debiased(x, y, shifts), mutual_information(x, y) - null)


@pytest.mark.parametrize("flip", [0.01, 0.1, 0.25])
def test_a_noisy_binary_channel_has_the_information_of_its_output_less_that_of_the_noise(flip: float):
    keep = 1 - flip
    x, y = sampled([[0.7 * keep, 0.7 * flip], [0.3 * flip, 0.3 * keep]], 200_000, seed=0)
    output = 0.3 * keep + 0.7 * flip
    expected = stats.entropy([output, 1 - output]) - stats.entropy([flip, keep])
    shifts = draw_shifts(len(x), 10, 100, Stream(0, "test"))
    assert debiased(x, y, shifts).item() == pytest.approx(expected, rel=0.02)
    assert shift_test(x, y, paired(1), shifts)["information"].item() == pytest.approx(expected, rel=0.02)


def test_the_information_of_a_sampled_table_is_the_tables_without_the_bias():
    table = [[0.30, 0.05, 0.05], [0.05, 0.20, 0.05], [0.05, 0.05, 0.20]]
    p = np.array(table)
    expected = stats.entropy(p.sum(0)) + stats.entropy(p.sum(1)) - stats.entropy(p.ravel())
    x, y = sampled(table, 100_000, seed=1)
    assert debiased(x, y, draw_shifts(len(x), 10, 100, Stream(0, "test"))).item() == pytest.approx(expected, rel=0.02)


def test_independent_autocorrelated_series_are_rejected_as_often_as_the_level_says():
    n, n_pairs = 2000, 2000
    x, y = autocorrelated(n, n_pairs, seed=0), autocorrelated(n, n_pairs, seed=1)
    tested = shift_test(x, y, paired(n_pairs), draw_shifts(n, 200, 100, Stream(2, "test")))
    p = tested["p"].to_numpy()
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.02)
    assert (p < 0.01).mean() == pytest.approx(0.01, abs=0.006)
    assert abs(np.mean(tested["information"])) < 0.05 * np.mean(tested["null_mean"])


def test_where_permuting_the_tokens_rejects_most_of_them():
    x, y = autocorrelated(2000, 60, seed=0), autocorrelated(2000, 60, seed=1)
    generator = np.random.default_rng(2)
    null = np.array([np.diag(mutual_information(generator.permutation(x), y)) for _ in range(99)])
    p = (1 + (null >= np.diag(mutual_information(x, y))).sum(0)) / 100
    assert (p <= 0.05).mean() > 0.4


def test_within_the_null_p_is_the_share_of_shifts_and_beyond_it_the_tail_of_a_gamma_distribution():
    x, y = autocorrelated(2000, 60, seed=0), autocorrelated(2000, 60, seed=1)
    y[:, :5] = x[:, :5]
    shifts = draw_shifts(2000, 50, 100, Stream(2, "test"))
    tested = shift_test(x, y, paired(60), shifts)
    n_beyond = 0
    for i, row in enumerate(tested.to_dict("records")):
        null = np.array([mutual_info_score(x[:, i], np.roll(y[:, i], -shift)) for shift in shifts])
        n_reach = (null >= row["information"] + row["null_mean"] - 1e-12).sum()
        shape, scale = (null.mean() / null.std(ddof=1)) ** 2, null.var(ddof=1) / null.mean()
        tail = stats.gamma.sf(row["information"] + row["null_mean"], shape, scale=scale)
        expected = (1 + n_reach) / 51 if n_reach else min(1 / 51, tail)
        assert row["p"] == pytest.approx(expected, rel=1e-6)
        n_beyond += n_reach == 0
    assert 5 <= n_beyond < 15


def test_related_pairs_are_found_among_many_that_are_not():
    x, y = autocorrelated(3000, 100, seed=0), autocorrelated(3000, 100, seed=1)
    y[:, :10] = np.where(np.random.default_rng(2).random((3000, 10)) < 0.1, 1 - x[:, :10], x[:, :10])
    tested = shift_test(x, y, paired(100), draw_shifts(3000, 100, 100, Stream(3, "test")))
    q = tested["q"].to_numpy()
    assert (q[:10] < 1e-6).all()
    assert (q[10:] < 0.01).sum() <= 1


def test_what_does_not_vary_shares_nothing_and_is_not_significant():
    x, y = np.zeros((60, 2), np.int8), np.ones((60, 2), np.int8)
    x[:30, 1] = y[:30, 1] = 2
    pairs = pd.DataFrame({"x": [0, 0, 1], "y": [0, 1, 0]})
    tested = shift_test(x, y, pairs, draw_shifts(60, 5, 5, Stream(0, "test")))
    np.testing.assert_allclose(tested["information"], 0, atol=1e-12)
    assert tested["p"].tolist() == [1, 1, 1]
    assert shift_test(x, y, pairs.head(0), np.array([5, 6])).empty
