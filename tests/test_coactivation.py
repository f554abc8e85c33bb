import numpy as np
import pytest
import torch
from scipy.sparse import csc_array, csr_array

from hsae import coactivation
from hsae.coactivation import activity, circular_shift, independent, phi


@pytest.fixture
def on() -> np.ndarray:
    """On-off variables of six latents; the last is always on, the one before it never."""
    on = (np.random.default_rng(0).random((200, 6)) < [0.5, 0.3, 0.2, 0.4, 0, 2]).astype(np.float32)
    on[:, 1] = np.where(on[:, 0] > 0, on[:, 1], 0)
    return on


def test_sparse_activations_are_the_dense_ones_in_their_order():
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    acts = coactivation.sparse_acts(torch.relu, x.split(4))
    np.testing.assert_array_equal(acts.toarray(), x.relu().numpy())


def test_tokens_that_are_kept_stand_among_others_on_which_nothing_is_active(on: np.ndarray):
    kept = np.arange(len(on)) % 3 != 1
    found = coactivation.among(csr_array(on[kept]), kept)
    np.testing.assert_array_equal(found.toarray(), np.where(kept[:, None], on, 0))


def test_what_is_active_is_what_is_above_zero():
    acts = csr_array(np.array([[0.0, 2.5], [-1.0, 0.5]], np.float32))
    assert activity(acts).toarray().tolist() == [[0, 1], [0, 1]]


def test_phi_is_the_correlation_of_the_on_off_variables(on: np.ndarray):
    expected = np.eye(6)
    expected[:4, :4] = np.corrcoef(on[:, :4].T)
    np.testing.assert_allclose(phi(csc_array(on)), expected, atol=1e-12)


def test_a_circular_shift_rolls_every_column_by_its_own_distance(on: np.ndarray):
    shifts = np.array([0, 1, 199, 57, 3, 100])
    expected = np.stack([np.roll(column, shift) for column, shift in zip(on.T, shifts, strict=True)], axis=1)
    np.testing.assert_array_equal(circular_shift(csc_array(on), shifts).toarray(), expected)


def test_independent_latents_have_lost_their_correlations_and_repeat(on: np.ndarray):
    active = csc_array(on)
    draws = list(independent(active, 20, np.random.default_rng(0)))
    again = list(independent(active, 20, np.random.default_rng(0)))
    np.testing.assert_array_equal(draws, again)
    assert not np.array_equal(draws[0], draws[1])
    assert phi(active)[0, 1] > 0.3
    assert abs(np.mean([draw[0, 1] for draw in draws])) < 0.05
