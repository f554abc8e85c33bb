import math
from itertools import chain

import pytest
import torch
from torch import nn

from hsae import losses
from hsae.sae import SAE
from hsae.training import LOG_POINTS, Phase, fit, learning_rate
from tests.rows import Rows


class Weight(nn.Module):
    """One number to train, and a count of what `fit` called after its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))
        self.calls: list[str] = []

    def constrain(self) -> None:
        self.calls.append("constrain")

    def project_gradient(self) -> None:
        assert self.w.grad is not None
        self.calls.append("project_gradient")


def order_of_tokens(n: int, phase: Phase, seed: int) -> list[list[int]]:
    """The tokens of every batch that `fit` shows to its objective."""
    seen: list[list[int]] = []
    model = Weight()

    def record(x: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(x[:, 0].int().tolist())
        return {"term": model.w.square().sum()}

    fit("phase1", model, Rows(torch.arange(n)[:, None].float()), record, phase, seed)
    return seen


@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_every_token_is_seen_exactly_once_per_epoch(batch_size: int):
    batches = order_of_tokens(64, Phase(3, batch_size, 0.1, 0.0), seed=0)
    per_epoch = 64 // batch_size
    assert len(batches) == 3 * per_epoch
    for epoch in range(3):
        tokens = chain(*batches[epoch * per_epoch : (epoch + 1) * per_epoch])
        assert sorted(tokens) == list(range(64))


def test_an_incomplete_last_batch_is_left_out():
    batches = order_of_tokens(11, Phase(2, 4, 0.1, 0.0), seed=0)
    assert sorted(chain(*batches[:2])) == sorted(chain(*batches[2:])) == list(range(8))


def test_fewer_tokens_than_a_batch_make_one_batch():
    assert order_of_tokens(3, Phase(2, 8, 0.1, 0.0), seed=0) == [[0, 1, 2], [0, 1, 2]]


def test_the_order_differs_from_epoch_to_epoch_and_from_seed_to_seed_and_repeats_for_a_seed():
    phase = Phase(2, 4, 0.1, 0.0)
    first, again, other = (order_of_tokens(64, phase, seed) for seed in (0, 0, 1))
    assert first == again
    assert first[:16] != first[16:]
    assert first != other


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
    phase = Phase(1, 1, 2.0, decay_fraction)
    assert [learning_rate(step, 10, phase) for step in range(10)] == pytest.approx([2 * rate for rate in expected])


def test_adams_first_steps_are_as_long_as_the_schedule_says():
    # On a constant gradient every step of Adam has the length of the learning rate.
    model = Weight()
    values: list[float] = []

    def slope(_: torch.Tensor) -> dict[str, torch.Tensor]:
        values.append(model.w.item())
        return {"term": model.w.sum()}

    fit("phase1", model, Rows(torch.zeros(10, 1)), slope, Phase(1, 1, 0.01, 1.0), seed=0)
    steps = [before - after for before, after in zip(values, [*values[1:], model.w.item()], strict=True)]
    assert steps == pytest.approx([0.01 * (10 - step) / 10 for step in range(10)], rel=1e-3)


def test_after_every_step_the_gradient_is_projected_and_then_the_parameters_are_constrained():
    model = Weight()
    fit("phase1", model, Rows(torch.zeros(3, 1)), lambda _: {"a": model.w.sum()}, Phase(1, 1, 0.1, 0.0), seed=0)
    assert model.calls == ["project_gradient", "constrain"] * 3


@pytest.mark.parametrize("n_steps", [1, 7, 99, 100, 101, 250])
def test_the_curve_has_at_most_a_hundred_rows_in_order_and_the_last_step(n_steps: int):
    model = Weight()
    phase = Phase(1, 1, 1e-3, 0.0)
    curve = fit("phase1", model, Rows(torch.zeros(n_steps, 1)), lambda _: {"a": model.w.sum()}, phase, seed=0)
    steps = [row["step"] for row in curve]
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

    curve = fit("phase1", model, Rows(torch.zeros(300, 1)), count, Phase(1, 1, 1e-3, 0.0), seed=0)
    assert curve[0] == {"step": 3, "loss": 1002, "a": 2, "b": 1000}
    assert curve[1] == {"step": 6, "loss": 1005, "a": 5, "b": 1000}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_longer_finite_names_the_stage_the_step_and_what_to_change(bad: float):
    model = Weight()
    values = iter([1.0, 1.0, bad])
    with pytest.raises(ValueError, match=rf"^phase2: the loss is {bad} at step 3; lower `phase2.lr`\.$"):
        fit(
            "phase2", model, Rows(torch.zeros(9, 1)), lambda _: {"a": model.w.sum() * next(values)},
            Phase(1, 1, 0.1, 0.0), seed=0,
        )  # fmt: skip


def trained(seed: int) -> tuple[SAE, list[dict[str, float]]]:
    torch.manual_seed(0)
    model = SAE(4, 8)
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))

    def objective(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        acts, x_hat = model(batch)
        return {"mse": losses.mse(x_hat, batch), "l1": 0.01 * losses.l1(acts)}

    return model, fit("phase1", model, Rows(x), objective, Phase(4, 8, 1e-2, 0.2), seed)


def test_training_repeats_to_the_bit_for_a_seed():
    (first, first_curve), (second, second_curve) = trained(0), trained(0)
    assert first_curve == second_curve
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


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
    fit(
        "phase1", model, Rows(torch.randn(16, 4)), lambda x: {"mse": losses.mse(model(x).x_hat, x)},
        Phase(2, 4, 1e-2, 0.0), seed=0,
    )  # fmt: skip
    assert torch.equal(model.b_enc, torch.full((8,), 0.1))
    assert not torch.equal(model.W_enc, model.W_dec.T)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 1, 0.1, 0.0), "`epochs` must be above 0; not 0"),
        ((1, 0, 0.1, 0.0), "`batch_size` must be above 0; not 0"),
        ((1, 1, math.nan, 0.0), "`lr` must be above 0; not nan"),
        ((1, 1, 0.1, 1.5), r"`decay_fraction` must be in \[0, 1\]; not 1.5"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(values: tuple, expected: str):
    with pytest.raises(ValueError, match=expected):
        Phase(*values)
