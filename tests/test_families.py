import pytest
import torch
from torch.nn import functional as F

from hsae import families, variants


def roots(data: torch.Tensor, directions: torch.Tensor | None = None) -> torch.Tensor:
    """Roots of latents with these directions, or with orthogonal ones: nothing is held but by activation."""
    return families.find(data, torch.eye(data.shape[1]) if directions is None else directions).root_of


def acts(*rows: list[float], repeat: int = 10) -> torch.Tensor:
    return torch.tensor(rows).repeat(repeat, 1)


def test_a_latent_belongs_to_the_most_frequent_one_that_contains_it():
    # Latent 1 and 2 are children of 0, 3 is a child of 1, 4 stands alone, 5 is never active.
    data = acts(
        [1.0, 1.0, 0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0, 0.0, 0.0],
        [1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0, 0.0], [0.0] * 6, [0.0] * 6, [0.0] * 6,
    )  # fmt: skip
    assert roots(data).tolist() == [0, 0, 0, 0, 4, -1]


def test_a_latent_that_is_active_everywhere_contains_nobody():
    data = acts([1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0])
    assert roots(data).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("n_silent", "expected"), [(19, [0, 1]), (20, [0, 0])])
def test_what_is_active_on_more_than_half_of_the_tokens_is_no_parent(n_silent: int, expected: list[int]):
    # Latent 1 is never active without 0, which is active on 20 tokens.
    data = torch.tensor([[1.0, 1.0]] * 8 + [[1.0, 0.0]] * 12 + [[0.0, 0.0]] * n_silent)
    assert roots(data).tolist() == expected


def test_containment_is_measured_beyond_chance():
    both, second, neither = [[1.0, 1.0]] * 14, [[0.0, 1.0]] * 6, [0.0, 0.0]
    # P(0 | 1) = .7 and P(0) = .5: (.7 - .5) / .5 is two fifths.
    often = torch.tensor([*both, *second, *[[1.0, 0.0]] * 36, *[neither] * 44])
    assert roots(often).tolist() == [0, 1]
    # P(0 | 1) = .7 and P(0) = .25: .6 of what is possible.
    seldom = torch.tensor([*both, *second, *[[1.0, 0.0]] * 11, *[neither] * 69])
    assert roots(seldom).tolist() == [0, 0]


def test_weak_activations_do_not_count():
    # Latent 0 answers a little wherever 1 does, as a similar direction would.
    strong, weak = [[2.0, 0.0]] * 20, [[0.3, 1.0]] * 10
    data = torch.tensor(strong + weak + [[0.0, 0.0]] * 70)
    assert roots(data).tolist() == [0, 1]
    assert families.clearly_active(data).sum(0).tolist() == [20, 10]


def test_hardly_active_latents_have_no_family():
    data = torch.zeros(100, 2)
    data[:4, 0] = 1
    data[:5, 1] = 1
    assert roots(data).tolist() == [-1, 1]


def test_a_level_starts_as_its_families():
    data = acts(
        [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]
    )
    model = variants.build("jumprelu", 4, 3, k=1, beta=1e-4, nonnegative=True)
    families.start(model, data, torch.eye(4))
    # The single latent 2 has the larger sum of squares: 4 against 3.
    torch.testing.assert_close(model.W_dec[0], torch.tensor([0.0, 0.0, 1.0, 0.0]))
    torch.testing.assert_close(model.W_dec[1], torch.nn.functional.normalize(torch.tensor([2.0, 1.0, 0.0, 0.0]), dim=0))
    h2 = model.eval().encode(data)
    torch.testing.assert_close((h2 > 0)[:, 0], data[:, 2] > 0)
    torch.testing.assert_close((h2 > 0)[:, 1], data[:, 0] > 0)
    # The single latent is given back as it is, the family along its row at the mean size of its two kinds of tokens.
    torch.testing.assert_close(model.decode(h2)[:, 2], data[:, 2])
    row = torch.tensor([2.0, 1.0]) / 5**0.5
    torch.testing.assert_close(h2[[0, 1], 1], torch.full((2,), (3 / 5**0.5 + 2 / 5**0.5) / 2))
    torch.testing.assert_close(model.decode(h2)[0, :2], h2[0, 1] * row)


def test_a_child_that_has_absorbed_its_parent_is_of_its_family():
    # Latent 1 has half of the direction of 0, which is silent where 1 is active; 2 is as rare, and has nothing of it.
    directions = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    data = acts([2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0], *[[0.0] * 3] * 6)
    found = families.find(data, directions)
    assert found.root_of.tolist() == [0, 0, 2]
    torch.testing.assert_close(found.held[1, 0], torch.tensor(0.6))
    torch.testing.assert_close(found.contained[1, 0], torch.tensor(0.0))
    model = variants.build("jumprelu", 3, 2, k=1, beta=1e-4, nonnegative=True).eval()
    families.start(model, data, directions)
    h2 = model.encode(data)
    assert ((h2 > 0)[:10, 0] == torch.tensor([True, True, True] + [False] * 7)).all()  # the family's is there thrice
    torch.testing.assert_close(h2[0, 0], h2[2, 0])  # at the root's size, whichever of both is active


def test_what_is_held_is_active_with_the_parent_or_has_its_direction():
    # P(0 | 1) = .4 and P(0) = .25: contained by a fifth; of the rest, by the cosine .5: .2 + .8 / 2.
    both, second, first = [[1.0, 1.0]] * 8, [[0.0, 1.0]] * 12, [[1.0, 0.0]] * 17
    data = torch.tensor([*both, *second, *first, *[[0.0, 0.0]] * 63])
    directions = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 3**0.5]]))
    found = families.find(data, directions)
    torch.testing.assert_close(found.contained[1, 0], torch.tensor(0.2))
    torch.testing.assert_close(found.held[1, 0], torch.tensor(0.6))
    assert found.root_of.tolist() == [0, 0]
    assert roots(data, -directions).tolist() == [0, 0]
    assert roots(data, directions * torch.tensor([[1.0], [-1.0]])).tolist() == [0, 1]  # the opposite holds nothing


def test_the_largest_families_are_kept_and_spare_latents_start_from_data():
    data = torch.eye(4).repeat(10, 1) * torch.tensor([1.0, 3.0, 2.0, 4.0])
    model = variants.build("jumprelu", 4, 2, k=1, beta=1e-4, nonnegative=True)
    families.start(model, data, torch.eye(4))
    assert model.W_dec.argmax(1).tolist() == [3, 1]
    wide = variants.build("jumprelu", 4, 6, k=1, beta=1e-4, nonnegative=True)
    families.start(wide, data, torch.eye(4))
    assert wide.W_dec[:4].argmax(1).tolist() == [3, 1, 2, 0]
    torch.testing.assert_close(wide.W_dec.norm(dim=1), torch.ones(6))


def test_too_few_tokens_are_refused():
    with pytest.raises(ValueError, match="initialising 3 latents from data needs as many tokens; there are 2"):
        families.start(variants.build("relu", 2, 3, k=1, beta=0.1, nonnegative=True), torch.ones(2, 2), torch.eye(2))
