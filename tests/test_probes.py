"""Probe bounds: channels of known information, hand-computed cross-entropies, and what training must not depend on."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from hsae import untrained
from hsae.probes import Probe, ProbeConfig, bounds, compare, fit_probe, nested
from hsae.streams import Stream

STREAM = Stream(2, "test")
CONFIG = ProbeConfig(epochs=12, batch_size=256, lr=[0.05], weight_decay=[0.0], held_out=0.25, resamples=200)


def channel(n: int, flip: float, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """One-hot inputs of 4 classes, and labels that are the class or, with probability `flip`, another one."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(0, 4, n)
    noisy = np.where(generator.random(n) < flip, (classes + generator.integers(1, 4, n)) % 4, classes)
    return torch.eye(4)[classes], noisy.astype(np.int8)[:, None]


def whole(n: int, context: int) -> np.ndarray:
    """Contexts of which all tokens are kept."""
    return np.ones((n // context, context), dtype=bool)


@pytest.mark.parametrize("flip", [0.05, 0.3])
def test_the_bound_of_a_noisy_channel_is_its_information(flip: float):
    (x_train, y_train), (x_test, y_test) = channel(20_000, flip, seed=0), channel(40_000, flip, seed=1)
    found = compare(x_train, x_test, y_train, y_test, ["class"], whole(40_000, 10), CONFIG, STREAM).iloc[0]
    expected = np.log(4) - stats.entropy([1 - flip, flip / 3, flip / 3, flip / 3])
    assert found["bound"] == pytest.approx(expected, rel=0.02)
    assert found["low"] < found["bound"] < found["high"]
    assert found["share"] == pytest.approx(found["bound"] / found["entropy"])


def test_inputs_that_tell_nothing_are_not_said_to_tell_something():
    x_train, x_test = torch.randn(4000, 20), torch.randn(4000, 20)
    generator = np.random.default_rng(0)
    y_train, y_test = (generator.integers(0, 3, (4000, 1)).astype(np.int8) for _ in range(2))
    found = compare(x_train, x_test, y_train, y_test, ["noise"], whole(4000, 10), CONFIG, STREAM)
    assert -0.05 < found["bound"].item() < 0.005


def test_an_untrained_dictionary_tells_nothing_of_what_its_inputs_do_not_know():
    x_train, x_test = (torch.randn(4000, 12, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    model = untrained.flat("topk", 40, 4, x_train, STREAM)
    generator = np.random.default_rng(0)
    y_train, y_test = (generator.integers(0, 3, (4000, 1)).astype(np.int8) for _ in range(2))
    found = compare(
        model.encode(x_train), model.encode(x_test), y_train, y_test, ["noise"], whole(4000, 10), CONFIG, STREAM
    )
    assert -0.05 < found["bound"].item() < 0.005


def test_representations_and_labels_are_compared_on_the_same_draws_of_contexts():
    generator = np.random.default_rng(0)
    losses, labels = np.repeat(generator.random((800, 1)), 2, 1), np.repeat(generator.integers(2, size=(800, 1)), 2, 1)
    found, again = (bounds(losses, labels, ["a", "b"], whole(800, 8), 300, STREAM) for _ in range(2))
    pd.testing.assert_frame_equal(found, again, check_exact=True)
    other = bounds(losses, labels, ["a", "b"], whole(800, 8), 300, STREAM.of("other"))
    low, other_low = (frame["low"].tolist() for frame in (found, other))
    assert low[0] == low[1] != other_low[0]


def test_labels_share_nothing():
    x, y = channel(1000, 0.2, seed=0)
    labels = torch.from_numpy(y).long()
    other = (labels + torch.arange(1000)[:, None] % 2) % 2
    alone, _ = fit_probe(x, labels, [4], CONFIG, STREAM)
    both, _ = fit_probe(x, torch.cat([other, labels], 1), [2, 4], CONFIG, STREAM)
    torch.testing.assert_close(
        both.cross_entropies(x, torch.cat([other, labels], 1))[..., 1:], alone.cross_entropies(x, labels)
    )


def test_the_unit_of_an_input_does_not_matter_and_a_silent_one_does_no_harm():
    x, y = channel(1000, 0.2, seed=0)
    x, labels = torch.cat([x, torch.zeros(1000, 1)], 1), torch.from_numpy(y).long()
    units = torch.tensor([1.0, 8.0, 0.25, 1024.0, 1.0])
    found, other = (
        fit_probe(inputs, labels, [4], CONFIG, STREAM)[0].cross_entropies(inputs, labels) for inputs in (x, x * units)
    )
    torch.testing.assert_close(found, other)


def test_training_repeats_to_the_bit_and_its_last_tokens_are_not_fitted():
    x, y = channel(1000, 0.2, seed=0)
    labels = torch.from_numpy(y).long()
    first, again = (fit_probe(x, labels, [4], replace(CONFIG, epochs=1), STREAM)[0] for _ in range(2))
    torch.testing.assert_close(first.weight, again.weight, rtol=0, atol=0)
    changed = labels.clone()
    changed[750:] = (changed[750:] + 1) % 4
    one_epoch, _ = fit_probe(x, changed, [4], replace(CONFIG, epochs=1), STREAM)
    torch.testing.assert_close(one_epoch.weight, first.weight, rtol=0, atol=0)


def test_the_epoch_with_the_lowest_held_out_cross_entropy_is_kept():
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(120, 60, generator=generator), torch.randint(2, (120, 1), generator=generator)
    probe, (choice,) = fit_probe(x, labels, [2], replace(CONFIG, epochs=100), STREAM)
    # It could fit 90 labels by 60 numbers; so it must have stopped long before.
    assert probe.cross_entropies(x[:90], labels[:90]).mean() > 0.3
    assert probe.cross_entropies(x[90:], labels[90:]).mean().item() == pytest.approx(choice.held_out)
    assert choice.held_out < 0.9
    assert 1 <= choice.epochs < 50


def test_training_starts_from_the_frequencies_of_the_labels():
    x, labels = torch.randn(100, 3), (torch.arange(100) % 5 == 0).long()[:, None]
    probe, _ = fit_probe(x, labels, [2], replace(CONFIG, epochs=1, lr=[1e-9]), STREAM)
    expected = stats.entropy([0.2, 0.8])
    assert probe.cross_entropies(x, labels).mean().item() == pytest.approx(expected, abs=1e-5)


def test_a_label_is_fitted_at_the_rate_and_decay_that_suit_it():
    x, y = channel(2000, 0.1, seed=0)
    labels = torch.from_numpy(y).long()
    slow, fast = (fit_probe(x, labels, [4], replace(CONFIG, lr=[lr]), STREAM)[0] for lr in (1e-4, 0.1))
    both = replace(CONFIG, lr=[1e-4, 0.1], weight_decay=[0.0, 10.0])
    either, (choice,) = fit_probe(x, labels, [4], both, STREAM)
    assert slow.cross_entropies(x, labels).mean() > 2 * fast.cross_entropies(x, labels).mean()
    assert (choice.lr, choice.weight_decay) == (0.1, 0.0)
    torch.testing.assert_close(either.weight, fast.weight)
    reverse = replace(CONFIG, lr=[1e-4, 0.1], weight_decay=[10.0, 0.0])
    assert fit_probe(x, labels, [4], reverse, STREAM)[1][0].weight_decay == 0.0


def test_gradients_are_autograds_of_every_setting():
    generator = torch.Generator().manual_seed(0)
    x, sizes = torch.randn(30, 5, generator=generator), [3, 2]
    labels = torch.stack([torch.randint(size, (30,), generator=generator) for size in sizes], 1)
    weight, bias = torch.randn(4, 5, 5, generator=generator), torch.randn(4, 5, generator=generator)
    found = Probe(torch.ones(5), weight, bias, sizes).gradients(x, labels)
    leaves = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
    logits = torch.einsum("td,scd->tsc", x, leaves[0]) + leaves[1]
    loss = sum(
        torch.nn.functional.cross_entropy(part.transpose(1, 2), labels[:, [i]].expand(-1, 4), reduction="sum") / 30
        for i, part in enumerate(logits.split(sizes, 2))
    )
    for mine, other in zip(found, torch.autograd.grad(loss, leaves), strict=True):  # pyright: ignore
        torch.testing.assert_close(mine, other)


def test_a_probe_of_clusters_comes_as_near_to_the_label_as_their_table_of_frequencies():
    # One of 50 inputs is 1: the best probe is known, the frequencies of the classes in each cluster.
    generator = np.random.default_rng(0)
    p = generator.dirichlet(np.full(8, 0.3), 50)
    clusters = generator.choice(50, 16_000, p=generator.dirichlet(np.ones(50)))
    classes = (p[clusters].cumsum(1) > generator.random((16_000, 1))).argmax(1)
    config = replace(CONFIG, epochs=3, lr=[0.01, 0.04, 0.16, 0.64, 2.56], weight_decay=[0.01, 0.1])
    _, (choice,) = fit_probe(torch.eye(50)[clusters], torch.from_numpy(classes)[:, None], [8], config, STREAM)
    fit, held_out = slice(0, 12_000), slice(12_000, None)
    counts = np.bincount(clusters[fit] * 8 + classes[fit], minlength=400).reshape(50, 8)
    overall = counts.sum(0) / counts.sum()
    tables = [(counts + alpha * overall) / (counts.sum(1, keepdims=True) + alpha) for alpha in (0.3, 1, 3)]
    best = min(-np.log(table[clusters[held_out], classes[held_out]]).mean() for table in tables)
    assert choice.held_out == pytest.approx(best, rel=0.01)
    assert 0.01 < choice.lr < 2.56


def test_bounds_worked_out_by_hand():
    # Two contexts of two tokens; H(Y) = log 2 for the first label and 0 for the second.
    losses = np.array([[0.1, 0.0], [0.3, 0.0], [0.5, 0.0], [0.7, 0.0]])
    labels = np.array([[0, 0], [1, 0], [0, 0], [1, 0]])
    found = bounds(losses, labels, ["a", "b"], whole(4, 2), resamples=400, stream=STREAM)
    assert found["label"].tolist() == ["a", "b"]
    assert found["entropy"].tolist() == pytest.approx([np.log(2), 0])
    assert found["bound"].tolist() == pytest.approx([np.log(2) - 0.4, 0])
    # A sample may hold one context twice: mean losses .2 and .6, with the same labels.
    assert found["low"].tolist() == pytest.approx([np.log(2) - 0.6, 0])
    assert found["high"].tolist() == pytest.approx([np.log(2) - 0.2, 0])
    assert found["share"].tolist() == pytest.approx([1 - 0.4 / np.log(2), np.nan], nan_ok=True)


def test_an_interval_of_whole_contexts_is_wider_than_that_of_single_tokens():
    losses = np.repeat(np.random.default_rng(0).random(100), 16)[:, None]
    labels = np.tile([0, 1], 800)[:, None]
    widths = [
        np.ptp(bounds(losses, labels, ["a"], whole(1600, context), 500, STREAM)[["low", "high"]].to_numpy())
        for context in (16, 1)
    ]
    assert widths[0] == pytest.approx(2 * 1.96 * losses.std() / 10, rel=0.15)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.2)


def test_bounds_of_contexts_of_which_some_tokens_are_masked_by_hand():
    # The first context has one token left, the second two; H(Y) = H(1/3).
    kept = np.array([[0, 1], [1, 1]], dtype=bool)
    losses, labels = np.array([[0.3], [0.5], [0.7]]), np.array([[1], [0], [1]])
    found = bounds(losses, labels, ["a"], kept, 400, STREAM)
    entropy = stats.entropy([1 / 3, 2 / 3])
    assert found["entropy"].item() == pytest.approx(entropy)
    assert found["bound"].item() == pytest.approx(entropy - 0.5)
    # A draw of one context alone: H(Y) = 0 and a loss of .3, or log 2 and .6.
    assert found[["low", "high"]].to_numpy().ravel() == pytest.approx([-0.3, entropy - 0.5])


def test_other_tokens_than_those_that_are_kept_are_refused():
    with pytest.raises(ValueError, match=r"`tokens` must be as many as are kept \(=3\), and above 0; not 4."):
        bounds(np.ones((4, 1)), np.ones((4, 1), int), ["a"], whole(3, 3), 10, STREAM)


def test_too_few_tokens_to_hold_some_out_are_refused():
    with pytest.raises(ValueError, match=r"`tokens` must be enough to fit on some and hold out others; not 1."):
        fit_probe(torch.ones(1, 2), torch.zeros(1, 1, dtype=torch.long), [2], CONFIG, STREAM)


def test_the_numbers_of_a_label_that_never_varies_can_be_written():
    frame = pd.DataFrame(
        {
            "label": ["a", "b"],
            "entropy": [0.5, 0.0],
            "bound": [0.25, 0.0],
            "low": [0.25, 0.0],
            "high": [0.25, 0.0],
            "share": [0.5, np.nan],
            "lr": [0.1, 0.1],
            "representation": "x",
        }
    )
    assert nested(frame) == {
        "x": {
            "a": {"entropy": 0.5, "bound": 0.25, "low": 0.25, "high": 0.25, "share": 0.5},
            "b": {"entropy": 0.0, "bound": 0.0, "low": 0.0, "high": 0.0, "share": None},
        }
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "`epochs` must be above 0; not 0."),
        ("lr", [0.1, 0.0], r"`lr` must be one or more rates above 0; not \[0.1, 0.0\]."),
        ("weight_decay", [-1.0], r"`weight_decay` must be one or more numbers, 0 or above; not \[-1.0\]."),
        ("held_out", 1.0, "`held_out` must be between 0 and 1; not 1.0."),
    ],
)
def test_bad_settings_are_refused(name: str, value: object, message: str):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **{name: value})  # pyright: ignore[reportArgumentType]
