import math
from itertools import chain

import pytest
import torch
from torch import nn

from hsae import losses, variants
from hsae.sae import SAE
from hsae.streams import Stream
from hsae.training import LOG_POINTS, REVIVE_EVERY, Autograd, Phase, annealing_left, fit, learning_rate
from tests.rows import Rows


class Weight(nn.Module):
    """One number to train, and a record of what `fit` called after its steps. It revives two latents at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))
        self.calls: list[str] = []
        self.annealing: list[float] = []
        self.revivals: list[tuple[int, int]] = []

    def constrain(self) -> None:
        self.calls.append("constrain")

    def project_gradient(self) -> None:
        assert self.w.grad is not None
        self.calls.append("project_gradient")

    def anneal(self, left: float) -> None:
        self.annealing.append(left)

    def revive(self, x: torch.Tensor, dead_tokens: int, generator: torch.Generator) -> int:
        assert isinstance(generator, torch.Generator)
        self.calls.append("revive")
        self.revivals.append((int(x[0]), dead_tokens))
        return 2


def phase(epochs: float = 1, batch_size: int = 1, lr: float = 0.1, decay: float = 0.0, anneal: float = 0.0) -> Phase:
    return Phase(epochs, batch_size, lr, decay, anneal)


def run(model: Weight, n: int, how: Phase, objective=None, dead_tokens: int = 0, seed: int = 0) -> list:
    """Fit on the tokens 0, 1, 2, ... (their numbers are their only coordinate)."""
    data = Rows(torch.arange(n)[:, None].float())
    gradients = Autograd(model, objective or (lambda _: {"a": model.w.sum()}))
    return fit("phase1", model, data, gradients, how, Stream(seed, "test"), dead_tokens)


def order_of_tokens(n: int, how: Phase, seed: int) -> list[list[int]]:
    """The tokens of every batch that `fit` shows to its objective."""
    seen: list[list[int]] = []
    model = Weight()

    def record(x: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(x[:, 0].int().tolist())
        return {"term": model.w.square().sum()}

    run(model, n, how, record, seed=seed)
    return seen


# The order of the data


@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_every_token_is_seen_exactly_once_per_epoch(batch_size: int):
    batches = order_of_tokens(64, phase(3, batch_size), seed=0)
    per_epoch = 64 // batch_size
    assert len(batches) == 3 * per_epoch
    for epoch in range(3):
        tokens = chain(*batches[epoch * per_epoch : (epoch + 1) * per_epoch])
        assert sorted(tokens) == list(range(64))


def test_an_incomplete_last_batch_is_left_out():
    batches = order_of_tokens(11, phase(2, 4), seed=0)
    assert sorted(chain(*batches[:2])) == sorted(chain(*batches[2:])) == list(range(8))


def test_fewer_tokens_than_a_batch_make_one_batch():
    assert order_of_tokens(3, phase(2, 8), seed=0) == [[0, 1, 2], [0, 1, 2]]


def test_the_order_differs_from_epoch_to_epoch_and_from_seed_to_seed_and_repeats_for_a_seed():
    first, again, other = (order_of_tokens(64, phase(2, 4), seed) for seed in (0, 0, 1))
    assert first == again
    assert first[:16] != first[16:]
    assert first != other


@pytest.mark.parametrize(
    ("epochs", "batch_size", "n_tokens", "n_steps"),
    [
        (2, 4, 64, 32), (0.5, 4, 64, 8), (1.25, 4, 64, 20), (1, 4, 67, 16),
        (0.01, 4, 64, 1), (0, 4, 64, 0), (2, 8, 3, 2),
        (0.07, 1, 100, 7),  # 0.07 * 100 is a little more than 7
    ],
)  # fmt: skip
def test_fractions_of_epochs_make_as_many_steps(epochs: float, batch_size: int, n_tokens: int, n_steps: int):
    assert phase(epochs, batch_size).n_steps(Rows(torch.zeros(n_tokens, 1))) == n_steps
    assert len(order_of_tokens(n_tokens, phase(epochs, batch_size), seed=0)) == n_steps


def test_a_fraction_of_an_epoch_is_the_start_of_a_whole_one():
    whole = order_of_tokens(64, phase(2, 4), seed=0)
    assert order_of_tokens(64, phase(1.5, 4), seed=0) == whole[:24]
    assert order_of_tokens(64, phase(0.25, 4), seed=0) == whole[:4]


def test_without_epochs_nothing_happens():
    torch.manual_seed(0)
    model = variants.build("jumprelu", 4, 8, k=2, beta=0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def never(_: torch.Tensor) -> dict[str, torch.Tensor]:
        raise AssertionError

    assert fit("phase3", model, Rows(torch.randn(64, 4)), never, phase(0, anneal=0.5), Stream(0, "test"), 10) == []
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


# Schedules


@pytest.mark.parametrize(
    ("decay_fraction", "expected"),
    [
        (0.0, [1.0] * 10),
        (0.2, [1.0] * 9 + [0.5]),
        (0.5, [1.0] * 6 + [0.8, 0.6, 0.4, 0.2]),
        (1.0, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_the_learning_rate_is_constant_and_then_falls_linearly_to_zero(decay_fraction: float, expected: list[float]):
    how = phase(lr=2.0, decay=decay_fraction)
    assert [learning_rate(step, 10, how) for step in range(10)] == pytest.approx([2 * rate for rate in expected])


@pytest.mark.parametrize(
    ("anneal_fraction", "expected"),
    [
        (0.0, [0.0] * 10),
        (0.2, [1.0, 0.5] + [0.0] * 8),
        (0.5, [1.0, 0.8, 0.6, 0.4, 0.2] + [0.0] * 5),
        (1.0, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_annealing_falls_linearly_from_one_to_zero(anneal_fraction: float, expected: list[float]):
    how = phase(anneal=anneal_fraction)
    assert [annealing_left(step, 10, how) for step in range(10)] == pytest.approx(expected)
    model = Weight()
    run(model, 10, how)
    assert model.annealing[:10] == pytest.approx(expected)


@pytest.mark.parametrize("anneal_fraction", [0.0, 0.5, 1.0])
def test_after_training_nothing_is_left_of_the_annealing(anneal_fraction: float):
    model = variants.build("threshold", 4, 8, k=2, beta=0.1)
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    gradients = Autograd(model, lambda x: {"a": model.error(x, model(x))})
    fit("phase1", model, Rows(x), gradients, phase(1, 8, anneal=anneal_fraction), Stream(0, "test"), 0)
    assert model.settled()
    assert torch.as_tensor(model.least()).item() == pytest.approx(math.sqrt(0.2))


def test_adams_first_steps_are_as_long_as_the_schedule_says():
    # On a constant gradient every step of Adam has the length of the learning rate.
    model = Weight()
    values: list[float] = []

    def slope(_: torch.Tensor) -> dict[str, torch.Tensor]:
        values.append(model.w.item())
        return {"term": model.w.sum()}

    run(model, 10, phase(lr=0.01, decay=1.0), slope)
    steps = [before - after for before, after in zip(values, [*values[1:], model.w.item()], strict=True)]
    assert steps == pytest.approx([0.01 * (10 - step) / 10 for step in range(10)], rel=1e-3)


def test_after_every_step_the_gradient_is_projected_and_then_the_parameters_are_constrained():
    model = Weight()
    run(model, 3, phase())
    assert model.calls == ["project_gradient", "constrain"] * 3


def test_the_model_trains_in_training_mode_and_is_left_in_evaluation_mode():
    model = Weight().eval()
    modes = []
    run(model, 3, phase(), lambda _: modes.append(model.training) or {"a": model.w.sum()})
    assert modes == [True] * 3
    assert not model.training


# Revival


def test_dead_latents_are_looked_for_every_so_many_steps_after_the_constraint():
    model = Weight()
    seen: list[int] = []
    curve = run(model, 70, phase(), lambda x: seen.append(int(x[0])) or {"a": model.w.sum()}, dead_tokens=7)
    positions = [step for step, call in enumerate(model.calls) if call == "revive"]
    assert positions == [(2 * REVIVE_EVERY + 1) * i - 1 for i in (1, 2, 3)]
    # On the batch of that step.
    assert model.revivals == [(seen[REVIVE_EVERY * i - 1], 7) for i in (1, 2, 3)]
    assert [row["step"] for row in curve if row["revived"]] == [20, 40, 60]
    assert {row["revived"] for row in curve} == {0, 2}


def test_a_row_of_the_curve_counts_all_that_were_revived_since_the_last():
    curve = run(Weight(), 40 * LOG_POINTS, phase(), dead_tokens=7)
    assert [row["revived"] for row in curve] == [4] * LOG_POINTS


def test_nothing_is_revived_without_dead_tokens_or_after_the_learning_rate_has_fallen_to_a_third():
    cases = ((phase(), 0, []), (phase(decay=1.0), 7, [20, 40, 60]), (phase(decay=0.2), 7, [20, 40, 60, 80]))
    for how, dead_tokens, expected in cases:
        curve = run(Weight(), 100, how, dead_tokens=dead_tokens)
        assert [row["step"] for row in curve if row["revived"]] == expected


# The curve


@pytest.mark.parametrize("n_steps", [1, 7, 99, 100, 101, 250])
def test_the_curve_has_at_most_a_hundred_rows_in_order_and_the_last_step(n_steps: int):
    steps = [row["step"] for row in run(Weight(), n_steps, phase(lr=1e-3))]
    assert len(steps) == min(n_steps, LOG_POINTS)
    assert steps == sorted(set(steps))
    assert steps[-1] == n_steps


def test_a_row_of_the_curve_is_the_mean_over_the_steps_since_the_last_row():
    model = Weight()
    step = 0

    def count(_: torch.Tensor) -> dict[str, torch.Tensor]:
        nonlocal step
        step += 1
        return {"a": 0 * model.w.sum() + step, "b": 0 * model.w.sum() + 1000}

    curve = run(model, 300, phase(lr=1e-3), count)
    assert curve[0] == {"step": 3, "loss": 1002, "a": 2, "b": 1000, "revived": 0}
    assert curve[1] == {"step": 6, "loss": 1005, "a": 5, "b": 1000, "revived": 0}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_longer_finite_names_the_stage_the_step_and_what_to_change(bad: float):
    model = Weight()
    values = iter([1.0, 1.0, bad])
    with pytest.raises(ValueError, match=rf"^phase1: the loss is {bad} at step 3; lower the phase's `lr`\.$"):
        run(model, 9, phase(), lambda _: {"a": model.w.sum() * next(values)})


def test_terms_that_reach_no_parameter_are_refused():
    with pytest.raises(ValueError, match=r"^nothing to learn: the terms that reach the trained level all have"):
        run(Weight(), 9, phase(), lambda x: {"a": x.new_zeros(()), "b": x.mean()})


# Results


def trained(seed: int, kind: str = "relu", dead_tokens: int = 0) -> tuple[SAE, list[dict[str, float]]]:
    torch.manual_seed(0)
    model = variants.build(kind, 4, 8, k=2, beta=0.02)
    model.b_enc.data[:2] = -100.0
    x = torch.randn(512, 4, generator=torch.Generator().manual_seed(1))

    def objective(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        out = model(batch)
        return {"error": model.error(batch, out), "sparsity": model.sparsity(out, 4)}

    gradients = Autograd(model, objective)
    return model, fit(
        "phase1", model, Rows(x), gradients, phase(1.5, 8, 1e-2, 0.2, 0.3), Stream(seed, "test"), dead_tokens
    )


@pytest.mark.parametrize("kind", variants.VARIANTS)
def test_training_repeats_to_the_bit_for_a_seed_revival_included(kind: str):
    (first, first_curve), (second, second_curve) = trained(0, kind, 100), trained(0, kind, 100)
    assert first_curve == second_curve
    assert sum(row["revived"] for row in first_curve) >= 2
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_another_seed_gives_another_result():
    assert trained(0)[1] != trained(1)[1]


def test_training_lowers_the_loss_and_keeps_unit_rows():
    model, curve = trained(0)
    assert curve[-1]["loss"] < curve[0]["loss"]
    torch.testing.assert_close(model.W_dec.norm(dim=1), torch.ones(8))


def test_parameters_that_need_no_gradient_stay_as_they_are_to_the_bit():
    torch.manual_seed(0)
    model = SAE(4, 8)
    model.b_enc.requires_grad_(False)
    model.b_enc.fill_(0.1)
    data = Rows(torch.randn(16, 4))
    gradients = Autograd(model, lambda x: {"mse": losses.mse(model(x).x_hat, x)})
    fit("phase1", model, data, gradients, phase(2, 4, 1e-2), Stream(0, "test"), 0)
    assert torch.equal(model.b_enc, torch.full((8,), 0.1))
    assert not torch.equal(model.W_enc, model.W_dec.T)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((-1, 1, 0.1, 0.0, 0.0), "`epochs` must be finite and 0 or above; not -1"),
        ((math.nan, 1, 0.1, 0.0, 0.0), "`epochs` must be finite and 0 or above; not nan"),
        ((math.inf, 1, 0.1, 0.0, 0.0), "`epochs` must be finite and 0 or above; not inf"),
        ((1, 0, 0.1, 0.0, 0.0), "`batch_size` must be above 0; not 0"),
        ((1, 1, math.nan, 0.0, 0.0), "`lr` must be above 0; not nan"),
        ((1, 1, 0.1, 1.5, 0.0), r"`decay_fraction` must be in \[0, 1\]; not 1.5"),
        ((1, 1, 0.1, 0.0, -0.1), r"`anneal_fraction` must be in \[0, 1\]; not -0.1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(values: tuple, expected: str):
    with pytest.raises(ValueError, match=expected):
        Phase(*values)
