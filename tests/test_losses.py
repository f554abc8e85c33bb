import math

import pytest
import torch

from hsae import losses
from hsae.losses import Coefficients

N_TOKENS, N_LATENTS, N_GROUPS, D_IN = 4, 5, 3, 6


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def acts() -> torch.Tensor:
    """Activations as an encoder gives them: some zero."""
    return random(N_TOKENS, N_LATENTS, seed=1).relu()


@pytest.fixture
def directions() -> torch.Tensor:
    return 3 * random(N_LATENTS, D_IN, seed=2)


@pytest.fixture(name="W_dec")
def level2_decoder() -> torch.Tensor:
    return random(N_GROUPS, N_LATENTS, seed=3).abs()


@pytest.fixture
def assignment(W_dec: torch.Tensor) -> torch.Tensor:
    return losses.soft_assignment(W_dec)


@pytest.fixture
def children(acts: torch.Tensor) -> torch.Tensor:
    """Which latents are active; one never is."""
    on = acts > 0
    on[:, 2] = False
    return on


@pytest.fixture
def parents() -> torch.Tensor:
    return random(N_TOKENS, N_GROUPS, seed=6).sigmoid()


# Against naive loops


def test_mse_equals_a_naive_loop():
    prediction, target = random(3, 4, seed=4), random(3, 4, seed=5)
    total = sum((prediction[t, i] - target[t, i]).item() ** 2 for t in range(3) for i in range(4))
    assert losses.mse(prediction, target).item() == pytest.approx(total / 12)


def test_l1_equals_a_naive_loop(acts: torch.Tensor):
    norms = [sum(value for value in row) for row in acts.tolist()]
    assert losses.l1(acts).item() == pytest.approx(sum(norms) / N_TOKENS)


def test_soft_assignment_equals_a_naive_loop():
    W_dec = random(N_GROUPS, N_LATENTS, seed=3)
    found = losses.soft_assignment(W_dec)
    for i in range(N_LATENTS):
        strengths = [abs(W_dec[g, i].item()) ** 4 for g in range(N_GROUPS)]
        assert found[i].tolist() == pytest.approx([strength / sum(strengths) for strength in strengths])


def test_cosine_grouping_equals_a_loop_over_pairs(directions: torch.Tensor, assignment: torch.Tensor):
    cosines = weights = 0.0
    for g in range(N_GROUPS):
        for i in range(N_LATENTS):
            for j in range(N_LATENTS):
                if i != j:
                    weight = assignment[i, g].item() * assignment[j, g].item()
                    cosines += weight * torch.cosine_similarity(directions[i], directions[j], dim=0).item()
                    weights += weight
    assert losses.cosine_grouping(directions, assignment).item() == pytest.approx(1 - cosines / weights)


def test_group_sparsity_equals_a_naive_loop(acts: torch.Tensor, assignment: torch.Tensor):
    total = 0.0
    for row in acts.tolist():
        for g in range(N_GROUPS):
            total += math.sqrt(sum(assignment[i, g].item() * row[i] ** 2 for i in range(N_LATENTS)))
    assert losses.group_sparsity(acts, assignment).item() == pytest.approx(total / N_TOKENS)


def test_coverage_equals_a_naive_loop(children: torch.Tensor, parents: torch.Tensor, assignment: torch.Tensor):
    shares = []
    for i in range(N_LATENTS):
        tokens = [t for t in range(N_TOKENS) if children[t, i]]
        if tokens:
            p = [sum(parents[t, g].item() for t in tokens) / len(tokens) for g in range(N_GROUPS)]
            shares.append(sum(assignment[i, g].item() * p[g] for g in range(N_GROUPS)))
    assert len(shares) == N_LATENTS - 1
    assert losses.coverage(children, parents, assignment).item() == pytest.approx(1 - sum(shares) / len(shares))


# By hand


def test_l1_is_a_sum_over_latents_so_that_twice_as_many_cost_twice_as_much(acts: torch.Tensor):
    wide = torch.cat([acts, acts], dim=1)
    assert losses.l1(wide).item() == pytest.approx(2 * losses.l1(acts).item())


def test_l1_does_not_depend_on_the_number_of_tokens(acts: torch.Tensor):
    assert losses.l1(torch.cat([acts, acts])).item() == pytest.approx(losses.l1(acts).item())


HARD = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("directions", "expected"),
    [
        ([[1, 0], [2, 0], [0, 1], [0, 3]], 0.0),  # each group is one direction
        ([[1, 0], [-1, 0], [0, 1], [0, -2]], 2.0),  # each group is a pair of opposites
        ([[1, 0], [0, 1], [5, 0], [0, 1]], 1.0),  # each group is a right angle
        ([[1, 0], [1, 0], [1, 0], [-1, 0]], 1.0),  # a perfect group and an opposite one
        ([[1, 0], [1, 1], [1, 0], [1, 1]], 1 - math.sqrt(0.5)),  # 45 degrees each
    ],
)
def test_cosine_grouping_of_hard_groups_by_hand(directions: list[list[int]], expected: float):
    found = losses.cosine_grouping(torch.tensor(directions).float(), HARD)
    assert found.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_cosine_grouping_of_groups_of_one_latent_stays_in_its_range(seed: int):
    directions = random(300, 16, seed=seed).float()
    assert 0 <= losses.cosine_grouping(directions, torch.eye(300)).item() <= 2


def test_group_sparsity_of_hard_groups_is_the_sum_of_their_norms():
    acts = torch.tensor([[3.0, 4.0, 0.0, 2.0], [0.0, 0.0, 5.0, 12.0]])
    assert losses.group_sparsity(acts, HARD).item() == pytest.approx((5 + 2 + 0 + 13) / 2)


def test_group_sparsity_prefers_few_groups_at_the_same_energy():
    together, apart = torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    assert losses.group_sparsity(together, HARD) < losses.group_sparsity(apart, HARD)


def test_soft_assignment_rows_sum_to_one_and_a_latent_without_parent_belongs_nowhere():
    W_dec = torch.tensor([[2.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
    found = losses.soft_assignment(W_dec)
    torch.testing.assert_close(found, torch.tensor([[16 / 17, 1 / 17], [0.0, 0.0], [1.0, 0.0]]))


def test_soft_assignment_of_tiny_weights_is_that_of_their_ratios():
    W_dec = torch.tensor([[2e-7], [1e-7]])
    torch.testing.assert_close(losses.soft_assignment(W_dec), torch.tensor([[16 / 17, 1 / 17]]))


@pytest.mark.parametrize(
    ("parents", "expected"),
    [
        ([[1, 1], [1, 1]], 0.0),
        ([[1, 1], [1, 0]], 0.0),  # the second parent need not be active where none of its children is
        ([[0, 0], [0, 0]], 1.0),
        ([[0, 1], [1, 1]], 1 / 8),  # one child of four is covered on one of its two tokens
        ([[1, 0.5], [1, 0]], 1 / 4),  # two children of four are half covered
    ],
)
def test_coverage_of_hard_groups_by_hand(parents: list[list[float]], expected: float):
    children = torch.tensor([[True, False, True, True], [True, True, False, False]])
    found = losses.coverage(children, torch.tensor(parents).float(), HARD)
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_coverage_is_between_0_and_1(seed: int):
    children = random(30, N_LATENTS, seed=seed) > 0.5
    parents = random(30, N_GROUPS, seed=seed + 10).clamp(0, 1)
    assignment = losses.soft_assignment(random(N_GROUPS, N_LATENTS, seed=seed + 20))
    assert 0 < losses.coverage(children, parents, assignment).item() < 1
    assert losses.coverage(children, torch.ones_like(parents), assignment).item() == pytest.approx(0, abs=1e-12)
    assert losses.coverage(children, torch.zeros_like(parents), assignment).item() == 1
    assert losses.coverage(torch.zeros_like(children), parents, assignment).item() == 1


def test_in_coverage_a_rare_child_counts_as_much_as_a_frequent_one():
    children = torch.tensor([[True, True], [True, False], [True, False], [True, False]])
    parents = torch.tensor([[0.0, 1.0]] + 3 * [[1.0, 0.0]])
    assert losses.coverage(children, parents, torch.eye(2)).item() == pytest.approx(1 - (0.75 + 1) / 2)
    assert losses.coverage(children, parents, torch.eye(2).flip(0)).item() == pytest.approx(1 - (0.25 + 0) / 2)


# Gradients


def gradcheck(function, *inputs: torch.Tensor) -> bool:
    return torch.autograd.gradcheck(function, [tensor.detach().clone().requires_grad_() for tensor in inputs])


def test_gradients_of_the_reconstruction_error_are_right():
    assert gradcheck(losses.mse, random(3, 4, seed=4), random(3, 4, seed=5))


def test_gradients_of_l1_are_right(acts: torch.Tensor):
    assert gradcheck(losses.l1, acts)


def test_gradients_of_soft_assignment_are_right():
    assert gradcheck(losses.soft_assignment, random(N_GROUPS, N_LATENTS, seed=3))


def test_gradients_of_cosine_grouping_are_right(directions: torch.Tensor, W_dec: torch.Tensor):
    assert gradcheck(lambda d, w: losses.cosine_grouping(d, losses.soft_assignment(w)), directions, W_dec)


def test_gradients_of_group_sparsity_are_right(acts: torch.Tensor, W_dec: torch.Tensor):
    assert gradcheck(lambda a, w: losses.group_sparsity(a, losses.soft_assignment(w)), acts + 0.1, W_dec)


def test_gradients_of_coverage_are_right(children: torch.Tensor, parents: torch.Tensor, W_dec: torch.Tensor):
    assert gradcheck(lambda p, w: losses.coverage(children, p, losses.soft_assignment(w)), parents, W_dec)


def test_coverage_pulls_parents_up_where_their_children_are_and_children_to_parents_that_are_active():
    children = torch.tensor([[True, False], [True, False]])
    parents = torch.tensor([[0.9, 0.1], [0.9, 0.1]], requires_grad=True)
    W_dec = torch.tensor([[0.5, 0.5], [0.5, 0.5]], requires_grad=True)
    losses.coverage(children, parents, losses.soft_assignment(W_dec)).backward()
    assert parents.grad is not None
    assert W_dec.grad is not None
    assert (parents.grad < 0).all()
    # Only the active child's membership moves: to the first parent, away from the second.
    assert W_dec.grad[0, 0] < 0 < W_dec.grad[1, 0]
    assert W_dec.grad[:, 1].tolist() == [0, 0]


@pytest.mark.parametrize("term", [losses.cosine_grouping, losses.group_sparsity])
def test_grouping_terms_send_gradients_through_the_assignment_to_the_level_2_decoder(
    term, directions: torch.Tensor, acts: torch.Tensor, W_dec: torch.Tensor
):
    W_dec.requires_grad_()
    term(directions if term is losses.cosine_grouping else acts + 0.1, losses.soft_assignment(W_dec)).backward()
    assert W_dec.grad is not None
    assert (W_dec.grad.abs() > 1e-6).all()


def test_a_silent_group_has_a_finite_zero_gradient():
    acts = torch.tensor([[3.0, 4.0, 0.0, 0.0]], requires_grad=True)
    assignment = HARD.clone().requires_grad_()
    losses.group_sparsity(acts, assignment).backward()
    assert acts.grad is not None
    assert assignment.grad is not None
    torch.testing.assert_close(acts.grad, torch.tensor([[0.6, 0.8, 0.0, 0.0]]))
    assert assignment.grad[:, 1].tolist() == [0, 0, 0, 0]


def test_a_batch_of_silent_tokens_has_a_finite_zero_gradient():
    acts = torch.zeros(2, 4, requires_grad=True)
    loss = losses.group_sparsity(acts, HARD)
    loss.backward()
    assert loss.item() == 0
    assert acts.grad is not None
    assert torch.equal(acts.grad, torch.zeros(2, 4))


# Coefficients

GOOD = {
    "beta1": 0.01, "beta2": 0.1, "lambda_cos": 0.0, "gamma_group": 0.5,
    "weight_x_from_h1": 1.0, "weight_h1_from_h2": 1.0, "weight_x_from_h2": 1.0, "weight_coverage": 0.2,
    "level1_grad_scale": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("key", GOOD)
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_coefficient_that_is_negative_or_not_finite_is_refused_by_name(key: str, value: float):
    with pytest.raises(ValueError, match=f"`{key}` must be finite and 0 or above; not {value}"):
        Coefficients(**{**GOOD, key: value})


def test_level_2_must_be_penalised_at_least_as_much_as_level_1():
    with pytest.raises(ValueError, match=r"`beta2` must be at least beta1 \(=0.2\); not 0.1"):
        Coefficients(**{**GOOD, "beta1": 0.2})


def test_level_1_gets_no_more_than_the_whole_gradient():
    with pytest.raises(ValueError, match=r"`level1_grad_scale` must be at most 1; not 1\.1"):
        Coefficients(**{**GOOD, "level1_grad_scale": 1.1})


@pytest.mark.parametrize("changes", [{}, {"beta2": 0.01}, dict.fromkeys(GOOD, 0.0)])
def test_zero_and_equal_coefficients_are_allowed(changes: dict[str, float]):
    assert vars(Coefficients(**{**GOOD, **changes})) == {**GOOD, **changes}
