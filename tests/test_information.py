"""Mutual information of binned latents: hand-computed tables, scikit-learn, and what must hold of any data."""

import numpy as np
import pytest
from numpy import ndarray
from sklearn.metrics import mutual_info_score

from hsae import information
from hsae.information import mutual_information, quantile_bins


def sparse_bins(n: int, latents: int, n_bins: int, seed: int) -> ndarray:
    generator = np.random.default_rng(seed)
    bins = generator.integers(1, n_bins + 1, (n, latents)) * (generator.random((n, latents)) < 0.3)
    return bins.astype(np.int8)


def from_table(table: list[list[int]]) -> tuple[ndarray, ndarray]:
    """Two columns whose joint counts are the table's."""
    pairs = [(a, b) for a, row in enumerate(table) for b, count in enumerate(row) for _ in range(count)]
    x, y = np.array(pairs, np.int8).T
    return x[:, None], y[:, None]


def test_a_table_worked_out_by_hand():
    # p = [[1/2, 0], [1/4, 1/4]]: 1/2 log(4/3) + 1/4 log(2/3) + 1/4 log 2
    found = mutual_information(*from_table([[2, 0], [1, 1]]))
    assert found.item() == pytest.approx(0.5 * np.log(4 / 3) + 0.25 * np.log(2 / 3) + 0.25 * np.log(2))


@pytest.mark.parametrize("flips", [0, 10, 25, 50])
def test_a_binary_channel_with_flips_has_its_capacity(flips: int):
    found = mutual_information(*from_table([[100 - flips, flips], [flips, 100 - flips]]))
    noise = sum(-p * np.log(p) for p in (flips / 100, 1 - flips / 100) if p)
    assert found.item() == pytest.approx(np.log(2) - noise)


def test_it_is_scikit_learns():
    x, y = sparse_bins(500, 7, 4, seed=0), sparse_bins(500, 5, 3, seed=1)
    x[:, 2], y[:, 3] = 0, 2  # one is never active, one always the same
    expected = [[mutual_info_score(x[:, i], y[:, j]) for j in range(5)] for i in range(7)]
    np.testing.assert_allclose(mutual_information(x, y), expected, atol=1e-12)


def test_the_size_of_the_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    x, y = sparse_bins(300, 11, 4, seed=0), sparse_bins(300, 6, 4, seed=1)
    whole = mutual_information(x, y)
    monkeypatch.setattr(information, "PAIRS", 20)
    np.testing.assert_array_equal(mutual_information(x, y), whole)


def test_with_itself_it_is_the_entropy_and_with_another_it_is_symmetric():
    x, y = sparse_bins(400, 4, 4, seed=0), sparse_bins(400, 3, 2, seed=1)
    shares = [np.bincount(column, minlength=5) / 400 for column in x.T]
    entropies = [-sum(p * np.log(p) for p in share if p) for share in shares]
    np.testing.assert_allclose(np.diag(mutual_information(x, x)), entropies)
    np.testing.assert_allclose(mutual_information(x, y), mutual_information(y, x).T)


def test_latents_that_are_never_active_share_nothing():
    silent = np.zeros((50, 3), np.int8)
    assert not mutual_information(silent, sparse_bins(50, 2, 4, seed=0)).any()
    assert not mutual_information(silent[:0], silent[:0]).any()


def test_positive_activations_are_binned_by_their_quantiles_and_equal_ones_alike():
    acts = np.zeros((9, 3), np.float32)
    acts[1:, 0] = [8, 7, 6, 5, 4, 3, 2, 1]
    acts[:4, 1] = [5, 5, 5, -1]
    bins = quantile_bins(acts, 4)
    assert bins[:, 0].tolist() == [0, 4, 4, 3, 3, 2, 2, 1, 1]
    assert bins[:, 1].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert not bins[:, 2].any()


def test_binning_depends_on_ranks_alone():
    acts = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float64)
    np.testing.assert_array_equal(quantile_bins(acts, 1), (acts > 0).astype(np.int8))
    np.testing.assert_array_equal(quantile_bins(acts, 5), quantile_bins(3 * acts, 5))


def test_bins_may_be_cut_on_other_tokens_and_what_lies_beyond_them_falls_in_the_last():
    acts, other = (
        np.array([[0.5, 1.0], [2.5, 0.0], [9.0, 2.0], [0.0, 3.0]]),
        np.array([[1.0, 0], [2, 0], [3, -1], [4, 0]]),
    )
    bins = quantile_bins(acts, 4, other)
    assert bins[:, 0].tolist() == [1, 2, 4, 0]
    assert bins[:, 1].tolist() == [1, 0, 1, 1], "no cuts where the latent was silent"
    np.testing.assert_array_equal(quantile_bins(acts, 4, acts), quantile_bins(acts, 4))


@pytest.mark.parametrize("n_bins", [0, 128])
def test_a_number_of_bins_out_of_range_is_refused(n_bins: int):
    with pytest.raises(ValueError, match=rf"`n_bins` must be in 1..127; not {n_bins}."):
        quantile_bins(np.ones((2, 2)), n_bins)
