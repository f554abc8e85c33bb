import pytest
import torch

from hsae.metrics import DictionaryTotals, recovered, summarize

X = torch.tensor([[1.0, 2.0], [3.0, 2.0], [1.0, 6.0], [3.0, 6.0]])
CODES = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.5, 0.0], [0.0, 0.0, 0.0], [0.1, 0.0, 0.0]])


def totals(codes: torch.Tensor, x_hat: torch.Tensor, x: torch.Tensor) -> DictionaryTotals:
    result = DictionaryTotals()
    result.add(codes, x_hat, x)
    return result


def test_every_metric_by_hand():
    # Around the mean (2, 4) the squares sum to 4 * 1 + 4 * 4 = 20; the reconstruction is off by 1, 2, 0 and 0.
    x_hat = X + torch.tensor([[1.0, 0.0], [0.0, -2.0], [0.0, 0.0], [0.0, 0.0]])
    assert totals(CODES, x_hat, X).metrics() == pytest.approx(
        {"l0": 4 / 4, "dead_fraction": 1 / 3, "fvu": 5 / 20, "explained_variance": 15 / 20}
    )


def test_latents_are_the_columns_of_the_codes():
    assert totals(CODES, X, X).n_latents == 3


def test_a_negative_code_is_active_too():
    assert totals(-CODES, X, X).l0() == 1


def test_the_fvu_of_the_mean_is_one_and_of_the_identity_zero():
    assert totals(CODES, X.mean(0).expand_as(X), X).fvu() == pytest.approx(1)
    assert totals(CODES, X, X).fvu() == 0


def test_the_fvu_of_zero_is_worse_than_the_mean_where_the_mean_is_not_zero():
    assert totals(CODES, torch.zeros_like(X), X).fvu() == pytest.approx((20 + 4 * (2**2 + 4**2)) / 20)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_batches_add_up_to_what_one_batch_gives(size: int):
    generator = torch.Generator().manual_seed(0)
    # Batches that differ in mean and in how many there are: means of batch means would be another number.
    x = torch.randn(100, 5, generator=generator) + torch.arange(100)[:, None] / 10
    x_hat = x + torch.randn(100, 5, generator=generator)
    codes = torch.randn(100, 7, generator=generator).relu()
    parts = DictionaryTotals()
    for batch in zip(codes.split(size), x_hat.split(size), x.split(size), strict=True):
        parts.add(*batch)
    assert parts.metrics() == pytest.approx(totals(codes, x_hat, x).metrics(), rel=1e-12)


def test_sums_keep_their_digits_far_from_zero():
    x = 1e4 + torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
    assert totals(x, x.mean(0).expand_as(x), x).fvu() == pytest.approx(1, rel=1e-4)


def test_a_latent_that_is_active_in_any_batch_is_not_dead():
    parts = DictionaryTotals()
    for code in torch.eye(3)[:2]:
        parts.add(code[None], X[:1], X[:1])
    assert parts.dead_fraction() == pytest.approx(1 / 3)


def test_summarize_runs_the_dictionary_on_every_batch():
    expected = totals(X.relu(), X / 2, X).metrics()
    assert summarize(lambda x: (x.relu(), x / 2), X.split(3)) == pytest.approx(expected)


@pytest.mark.parametrize(("loss", "expected"), [(1.5, 1.0), (3.5, 0.0), (2.0, 0.75), (4.5, -0.5), (1.0, 1.25)])
def test_the_share_of_the_loss_recovered_by_hand(loss: float, expected: float):
    assert recovered(loss, clean=1.5, ablated=3.5) == pytest.approx(expected)
