import math
from dataclasses import replace

import pytest
import torch

from hsae.data import context_starts, windows
from hsae.gpt import GPT, GPTConfig
from hsae.language_model import (
    TrainedTransformer,
    TransformerConfig,
    cross_entropy,
    halves,
    learning_rate,
    make_optimizer,
    next_token_loss,
    train,
)
from hsae.streams import Stream

CONFIG = TransformerConfig(
    seed=0, n_layer=1, n_head=1, d_model=8, context=8, dropout=0.0, batch_size=4, steps=40, lr=1e-2,
    final_lr_fraction=0.1, warmup_steps=10, weight_decay=0.1, adam_beta2=0.99, grad_clip=1.0, eval_interval=10,
    eval_windows=8, sample_chars=4,
)  # fmt: skip

REPETITIVE = torch.tensor([0, 1, 2] * 80, dtype=torch.uint8)


def new_model(config: TransformerConfig = CONFIG, n_vocab: int = 3) -> GPT:
    torch.manual_seed(config.seed)
    return GPT(GPTConfig(config.n_layer, config.n_head, config.d_model, config.context, config.dropout), n_vocab)


def cut(tokens: torch.Tensor) -> torch.Tensor:
    """All contexts of a text of one document."""
    return windows(tokens, context_starts(torch.tensor([[0, len(tokens)]]), CONFIG.context), CONFIG.context)


def train_on(
    train_tokens: torch.Tensor, val_tokens: torch.Tensor, device: str = "cpu", seed: int = 0, **changes: float
) -> TrainedTransformer:
    config = replace(CONFIG, **changes)
    ranges, choosing = torch.tensor([[0, len(train_tokens)]]), cut(val_tokens)[: config.eval_windows]
    return train(new_model(config).to(device), train_tokens, ranges, choosing, config, Stream(seed, "test"))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1e-3),  # a tenth of the way up
        (9, 1e-2),  # the end of the warm-up
        (10, 1e-2),  # the top of the cosine
        (39, 1e-3),  # the last step: final_lr_fraction of the rate
    ],
)
def test_the_learning_rate_warms_up_and_decays_to_its_final_fraction(step: int, expected: float):
    assert learning_rate(step, CONFIG) == pytest.approx(expected)


def test_the_cosine_is_halfway_down_in_its_middle():
    config = replace(CONFIG, steps=41, final_lr_fraction=0.0)
    assert learning_rate(25, config) == pytest.approx(0.5 * config.lr)


def test_the_learning_rate_never_rises_after_the_warm_up():
    rates = [learning_rate(step, CONFIG) for step in range(CONFIG.steps)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)


@pytest.mark.parametrize(("warmup_steps", "first"), [(0, 1e-2), (40, 1e-2 / 40)])
def test_a_schedule_may_be_all_decay_or_all_warm_up(warmup_steps: int, first: float):
    config = replace(CONFIG, warmup_steps=warmup_steps)
    assert learning_rate(0, config) == pytest.approx(first)
    assert math.isfinite(learning_rate(39, config))


def test_matrices_are_decayed_and_gains_are_not():
    model = new_model()
    decays = {}
    for group in make_optimizer(model, CONFIG).param_groups:
        decays |= dict.fromkeys(group["params"], group["weight_decay"])
    assert decays.keys() == set(model.parameters())
    for parameter, decay in decays.items():
        assert decay == (0.1 if parameter.dim() == 2 else 0.0)


def test_cross_entropy_equals_a_naive_loop():
    model = new_model().eval()
    batch = cut(REPETITIVE)[:5]
    total, n = 0.0, 0
    for window in batch.long():
        probabilities = model(window[None, :-1])[0].softmax(-1)
        for position, target in enumerate(window[1:]):
            total -= math.log(probabilities[position, target].item())
            n += 1
    assert cross_entropy(model, batch) == pytest.approx(total / n, rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_cross_entropy_does_not_depend_on_how_the_windows_are_cut(chunk: int):
    model = new_model().eval()
    batch = cut(REPETITIVE)[:7]
    assert cross_entropy(model, batch, chunk) == pytest.approx(cross_entropy(model, batch, 7), rel=1e-6)


def test_the_loss_of_a_character_is_minus_the_log_of_its_probability():
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]).log()[None]
    loss = next_token_loss(logits, torch.tensor([[2, 0, 1]]))
    torch.testing.assert_close(loss, torch.tensor([[math.log(2), math.log(10)]]))


def test_training_lowers_the_loss_on_a_repetitive_text():
    trained = train_on(REPETITIVE, REPETITIVE[:81], steps=100)
    assert trained.curve[0]["val_loss"] > 0.3
    assert trained.best["val_loss"] < 0.15


def test_training_repeats_to_the_bit():
    first, second = (train_on(REPETITIVE, REPETITIVE[:81], dropout=0.2) for _ in range(2))
    assert first.curve == second.curve
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name])


def test_another_seed_trains_on_other_windows():
    first, second = (train_on(REPETITIVE, REPETITIVE[:81], seed=seed, steps=20) for seed in (0, 1))
    assert first.curve != second.curve


def test_the_curve_has_a_row_at_every_interval_and_at_the_last_step():
    curve = train_on(REPETITIVE, REPETITIVE[:81], steps=25).curve
    assert [row["step"] for row in curve] == [10, 20, 25]
    assert [row["lr"] for row in curve] == [learning_rate(step - 1, replace(CONFIG, steps=25)) for step in (10, 20, 25)]


def test_the_weights_of_the_best_validation_loss_are_kept_not_the_last():
    # What is learned here is wrong there: the validation text runs backwards.
    train_tokens, val_tokens = torch.tensor([0, 1, 2] * 60), torch.tensor([2, 1, 0] * 30)
    trained = train_on(train_tokens, val_tokens, steps=60, eval_interval=5)
    losses = [row["val_loss"] for row in trained.curve]
    assert min(losses) < losses[-1]
    assert trained.best == {key: trained.curve[losses.index(min(losses))][key] for key in trained.best}
    assert cross_entropy(trained.model, cut(val_tokens)[:8]) == min(losses)
    assert not trained.model.training


def test_training_draws_from_its_own_stream_alone():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    train_on(REPETITIVE, REPETITIVE[:81], dropout=0.5)
    # `new_model` seeds the global generator; training leaves it where it finds it.
    new_model()
    after_a_model = torch.get_rng_state()
    train_on(REPETITIVE, REPETITIVE[:81], dropout=0.5)
    assert torch.equal(torch.get_rng_state(), after_a_model)
    assert not torch.equal(state, after_a_model)


def test_nothing_is_learned_of_what_lies_between_documents():
    """Within each document one token follows itself; across, always the other: those are never seen."""
    text = torch.tensor(([0] * 9 + [1] * 9) * 12)
    ranges = torch.tensor([[9 * i, 9 * i + 9] for i in range(24)])
    trained = train(new_model(), text, ranges, text[None, :9], replace(CONFIG, steps=60), Stream(0, "test"))
    across = torch.tensor([[0] * 8])
    assert trained.model(across).softmax(-1)[0, :, 1].max() < 0.1
    whole = train_on(text, text, steps=60).model
    assert whole(across[:, :1].expand(-1, 8)).softmax(-1)[0, :, 1].max() > 0.1


@pytest.mark.parametrize(("n_windows", "n", "sizes"), [(10, 3, 3), (10, 5, 5), (7, 5, 3), (2, 256, 1)])
def test_the_halves_of_the_validation_split_share_no_context(n_windows: int, n: int, sizes: int):
    choosing, scoring = halves(torch.tensor([[0, 8 * n_windows + 1]]), 8, n)
    assert torch.equal(torch.cat([choosing, scoring]), 8 * torch.arange(2 * sizes))
    assert len(choosing) == len(scoring) == sizes


def test_every_document_of_the_validation_split_chooses_weights_and_scores_them():
    ranges = torch.tensor([[0, 33], [40, 89], [100, 117]])  # four, six and two contexts of eight
    choosing, scoring = halves(ranges, 8, 99)
    assert choosing.tolist() == [0, 8, 40, 48, 56, 100]
    assert scoring.tolist() == [16, 24, 64, 72, 80, 108]
    choosing, scoring = halves(ranges, 8, 3)
    assert choosing.tolist() == [0, 40, 100]
    assert scoring.tolist() == [8, 48, 56]


def test_documents_of_one_context_are_dealt_in_turn():
    choosing, scoring = halves(torch.tensor([[0, 9], [20, 29], [40, 49], [60, 69]]), 8, 99)
    assert (choosing.tolist(), scoring.tolist()) == ([20, 60], [0, 40])


def test_one_context_is_too_few_to_choose_and_to_score():
    with pytest.raises(ValueError, match=r"the validation split has one context; it needs two: raise `prepare_data"):
        halves(torch.tensor([[5, 20]]), 8, 3)


@pytest.mark.parametrize("steps", [1, 20])
def test_a_loss_that_is_no_longer_finite_is_refused(steps: int):
    with pytest.raises(ValueError, match=r"train_transformer: the loss is (nan|inf).*lower `train_transformer.lr`"):
        train_on(REPETITIVE, REPETITIVE[:81], lr=1e30, warmup_steps=0, steps=steps)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"n_layer": 0}, "`n_layer` must be above 0; not 0"),
        ({"lr": -1.0}, "`lr` must be above 0; not -1.0"),
        ({"n_head": 3}, r"`d_model` must be a multiple of n_head \(=3\); not 8"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\); not 1.0"),
        ({"final_lr_fraction": 1.5}, r"`final_lr_fraction` must be in \[0, 1\]; not 1.5"),
        ({"warmup_steps": 41}, r"`warmup_steps` must be in 0..steps; not 41"),
        ({"weight_decay": -0.1}, "`weight_decay` must be 0 or above; not -0.1"),
        ({"adam_beta2": 1.0}, r"`adam_beta2` must be in \(0, 1\); not 1.0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changes: dict, expected: str):
    with pytest.raises(ValueError, match=expected):
        replace(CONFIG, **changes)
