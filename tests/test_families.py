import pytest
import torch

from hsae import families, variants


def acts(*rows: list[float], repeat: int = 10) -> torch.Tensor:
    return torch.tensor(rows).repeat(repeat, 1)


def test_a_latent_belongs_to_the_most_frequent_one_that_contains_it():
    # Latent 1 and 2 are children of 0, 3 is a child of 1, 4 stands alone, 5 is never active.
    data = acts(
        [1.0, 1.0, 0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0, 0.0, 0.0],
        [1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0, 0.0], [0.0] * 6, [0.0] * 6, [0.0] * 6,
    )  # fmt: skip
    assert families.roots(data).tolist() == [0, 0, 0, 0, 4, -1]


def test_a_latent_that_is_active_everywhere_contains_nobody():
    data = acts([1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0])
    assert families.roots(data).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("n_silent", "expected"), [(19, [0, 1]), (20, [0, 0])])
def test_what_is_active_on_more_than_half_of_the_tokens_is_no_parent(n_silent: int, expected: list[int]):
    # Latent 1 is never active without 0, which is active on 20 tokens.
    data = torch.tensor([[1.0, 1.0]] * 8 + [[1.0, 0.0]] * 12 + [[0.0, 0.0]] * n_silent)
    assert families.roots(data).tolist() == expected


def test_containment_is_measured_beyond_chance():
    both, second, neither = [[1.0, 1.0]] * 14, [[0.0, 1.0]] * 6, [0.0, 0.0]
    # P(0 | 1) = .7 and P(0) = .5: (.7 - .5) / .5 is two fifths.
    often = torch.tensor([*both, *second, *[[1.0, 0.0]] * 36, *[neither] * 44])
    assert families.roots(often).tolist() == [0, 1]
    # P(0 | 1) = .7 and P(0) = .25: .6 of what is possible.
    seldom = torch.tensor([*both, *second, *[[1.0, 0.0]] * 11, *[neither] * 69])
    assert families.roots(seldom).tolist() == [0, 0]


def test_weak_activations_do_not_count():
    # Latent 0 answers a little wherever 1 does, as a similar direction would.
    strong, weak = [[2.0, 0.0]] * 20, [[0.3, 1.0]] * 10
    data = torch.tensor(strong + weak + [[0.0, 0.0]] * 70)
    assert families.roots(data).tolist() == [0, 1]
    assert families.clearly_active(data).sum(0).tolist() == [20, 10]


def test_hardly_active_latents_have_no_family():
    data = torch.zeros(100, 2)
    data[:4, 0] = 1
    data[:5, 1] = 1
    assert families.roots(data).tolist() == [-1, 1]


def test_a_level_starts_as_its_families():
    data = acts(
        [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]
    )
    model = variants.build("jumprelu", 4, 3, k=1, beta=1e-4, nonnegative=True)
    families.start(model, data)
    # The single latent 2 has the larger sum of squares: 4 against 3.
    torch.testing.assert_close(model.W_dec[0], torch.tensor([0.0, 0.0, 1.0, 0.0]))
    torch.testing.assert_close(model.W_dec[1], torch.nn.functional.normalize(torch.tensor([2.0, 1.0, 0.0, 0.0]), dim=0))
    h2 = model.eval().encode(data)
    torch.testing.assert_close((h2 > 0)[:, 0], data[:, 2] > 0)
    torch.testing.assert_close((h2 > 0)[:, 1], data[:, 0] > 0)
    # A root is given back at its own size.
    torch.testing.assert_close(model.decode(h2[:, :2] @ torch.eye(2, 3))[:, [0, 2]], data[:, [0, 2]])


def test_the_largest_families_are_kept_and_spare_latents_start_from_data():
    data = torch.eye(4).repeat(10, 1) * torch.tensor([1.0, 3.0, 2.0, 4.0])
    model = variants.build("jumprelu", 4, 2, k=1, beta=1e-4, nonnegative=True)
    families.start(model, data)
    assert model.W_dec.argmax(1).tolist() == [3, 1]
    wide = variants.build("jumprelu", 4, 6, k=1, beta=1e-4, nonnegative=True)
    families.start(wide, data)
    assert wide.W_dec[:4].argmax(1).tolist() == [3, 1, 2, 0]
    torch.testing.assert_close(wide.W_dec.norm(dim=1), torch.ones(6))


def test_too_few_tokens_are_refused():
    with pytest.raises(ValueError, match="initialising 3 latents from data needs as many tokens; there are 2"):
        families.start(variants.build("relu", 2, 3, k=1, beta=0.1, nonnegative=True), torch.ones(2, 2))
