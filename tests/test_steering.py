import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch

from hsae import causal_plots, steering
from hsae.activations import Store
from hsae.gpt import GPT
from hsae.steering import Response, SteeringConfig, adjusted, frame, gain_at, responses, summarize
from hsae.streams import Stream
from tests.conftest import LAYER

STREAM = Stream(0, "test")
CONFIG = SteeringConfig(contexts=10, doses=[0.1, 0.5, 2.0], damage=0.1)


def test_responses_are_what_the_model_says_with_the_direction_added(
    gpt: GPT, store: Store, corpus_tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(steering, "BATCH", 4)
    directions = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([[True, True, False, False, False], [False, False, False, False, True]])
    found = responses(gpt, store, corpus_tokens, directions, classes, CONFIG)
    assert len(found) == 2
    assert found[0].gain.shape == (2, 3, 10)
    acts, windows = store.activations.acts.unflatten(0, (-1, store.context))[:10], store.windows(corpus_tokens)[:10]
    norm = ((acts - store.normalizer.mean) / store.normalizer.scale).square().sum(-1).mean().sqrt()
    unit = directions[1] / directions[1].norm()
    p = [
        gpt.logits(acts + dose * norm * store.normalizer.scale * unit, LAYER).softmax(-1)
        for dose in (0.0, *CONFIG.doses)
    ]
    ce = [-own.gather(2, windows[:, 1:, None].long()).log().mean((1, 2)) for own in p]
    for i in range(3):
        np.testing.assert_allclose(found[1].damage[i], ce[i + 1] - ce[0], atol=2e-4)
        gain = (p[i + 1][..., 4].log() - p[0][..., 4].log()).mean(1)
        np.testing.assert_allclose(found[1].gain[1, i], gain, atol=2e-4, rtol=1e-4)


def test_masked_tokens_are_neither_steered_nor_counted(
    gpt: GPT, masked: Store, harmless: Store, corpus_tokens: torch.Tensor
):
    directions, classes = torch.ones(1, 8) * torch.arange(8), torch.tensor([[True, True, False, False, False]])
    (absurd,), (found,) = (
        responses(gpt, own, corpus_tokens, directions, classes, CONFIG) for own in (masked, harmless)
    )
    np.testing.assert_allclose(absurd.gain, found.gain, atol=1e-5)
    np.testing.assert_allclose(absurd.damage, found.damage, atol=1e-5)
    # The first position, if it is masked, is not steered: what is known there alone does not change.
    first = replace(harmless.activations, kept=harmless.activations.positions > 0)
    own = replace(harmless, activations=first)
    (other,) = responses(gpt, own, corpus_tokens, directions, classes, CONFIG)
    assert not np.allclose(other.damage, found.damage)


def test_samples_are_not_steered_at_masked_positions(gpt: GPT):
    prompt, added = torch.tensor([1, 2, 3]), 1e6 * torch.arange(8.0)[None]
    everywhere, nowhere, plain = (
        steering.sample(gpt, LAYER, prompt, own, positions, 9, STREAM).tolist()
        for own, positions in ((added, []), (added, [*range(6)]), (0 * added, []))
    )
    assert nowhere == plain != everywhere


def test_a_direction_of_any_length_is_the_same_direction(gpt: GPT, store: Store, corpus_tokens: torch.Tensor):
    directions = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    directions[1] *= 7
    one, two = responses(gpt, store, corpus_tokens, directions, torch.ones(1, 5, dtype=torch.bool), CONFIG)
    np.testing.assert_allclose(one.damage, two.damage, atol=1e-5)
    np.testing.assert_allclose(one.gain, 0, atol=1e-5)  # all characters together have probability 1


def test_too_few_contexts_are_refused(gpt: GPT, store: Store, corpus_tokens: torch.Tensor):
    config = dataclasses.replace(CONFIG, contexts=41)
    with pytest.raises(ValueError, match="`contexts` must be at most the store's 40; not 41"):
        responses(gpt, store, corpus_tokens, torch.ones(1, 8), torch.ones(1, 5, dtype=torch.bool), config)


def test_gains_are_compared_at_one_damage():
    gains, damages = np.array([1.0, 3.0]), np.array([0.1, 0.3])
    assert gain_at(0.05, gains, damages) == pytest.approx(0.5)
    assert gain_at(0.2, gains, damages) == pytest.approx(2)
    assert np.isnan(gain_at(0.4, gains, damages))
    # Damage that shrinks again counts as what it had been.
    assert gain_at(0.3, gains, np.array([0.3, 0.2])) == pytest.approx(3)


def response(gain: float, damage: float) -> Response:
    """Gain and damage that grow with the dose, a little different in every context."""
    doses, contexts = np.array(CONFIG.doses)[:, None], np.linspace(0.9, 1.1, 10)
    return Response((gain * doses * contexts)[None], damage * doses * contexts)


def test_directions_are_ranked_at_equal_damage_among_what_chance_gives_instead():
    random = [response(1.0, 1.0), response(2.0, 1.0), response(9.0, 1e-3)]  # the last never does so much damage
    chance = {"level1": random, "level2": [response(5.0, 1.0)]}
    responses = {"level1": response(3.0, 2.0), "level2": response(4.0, 1.0), "untrained level1": response(6.0, 1.0)}
    found = summarize(responses, chance, 0, CONFIG, STREAM)
    assert found["random"] == {
        "level1": {"n": 2, "mean": pytest.approx(0.15)},
        "level2": {"n": 1, "mean": pytest.approx(0.5)},
    }
    own = found["level1"]
    assert own["gain_at_damage"] == pytest.approx(0.15)
    assert own["p"] == pytest.approx(2 / 3), "one of two random directions gains more"
    assert found["level2"]["p"] == 1, "among its own random directions, of which there is one"
    assert own["interval"] == pytest.approx([0.15, 0.15])  # gain and damage go together in every context
    assert own["gain"] == pytest.approx([0.3, 1.5, 6.0])
    assert own["damage"] == pytest.approx([0.2, 1.0, 4.0])
    assert found["difference"]["value"] == pytest.approx(0.25)
    assert found["difference"]["interval"] == pytest.approx([0.25, 0.25])
    assert found["untrained level1"]["gain_at_damage"] == pytest.approx(0.6)
    assert "p" not in found["untrained level1"]
    weak = summarize({**responses, "level1": response(9.0, 1e-3)}, chance, 0, CONFIG, STREAM)
    assert [weak["level1"][key] for key in ("gain_at_damage", "interval", "p")] == [None] * 3
    assert [weak["difference"][key] for key in ("value", "interval")] == [None] * 2


def test_p_is_adjusted_over_all_tasks_and_levels_that_have_one():
    p = {"a": {"level1": 0.01, "level2": None}, "b": {"level1": 0.02, "level2": 0.5}}
    tasks = {task: {"random": 1, **{level: {"p": own} for level, own in levels.items()}} for task, levels in p.items()}
    found = adjusted(tasks, ["level1", "level2"])
    assert found == {
        "a": {"random": 1, "level1": {"p": 0.01, "p_holm": 0.03}, "level2": {"p": None, "p_holm": None}},
        "b": {"random": 1, "level1": {"p": 0.02, "p_holm": 0.04}, "level2": {"p": 0.5, "p_holm": 0.5}},
    }
    assert adjusted({}, ["level1"]) == {}


def test_the_figure_has_a_panel_per_task_and_a_line_per_direction():
    random = {"b": [response(1, 1), response(3, 1)]}
    rows = frame({"a": response(1, 1), "b": response(2, 1)}, random, 0, CONFIG.doses)
    assert rows.columns.tolist() == ["direction", "dose", "gain", "damage"]
    assert len(rows) == 9
    assert rows.query("direction == 'b, random (mean)'")["gain"].tolist() == pytest.approx([0.2, 1, 4])
    figure = causal_plots.steering(rows.assign(task="one_task"))
    assert figure.axes[0].get_title() == "one task"
    assert len([line for line in figure.axes[0].lines if np.size(line.get_xdata()) == 3]) == 3


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("contexts", 0, "above 0"),
        ("doses", [-1.0, 1.0], "ascending, above 0"),
        ("doses", [], "ascending, above 0"),
        ("damage", 0.0, "above 0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(key: str, value: object, allowed: str):
    with pytest.raises(ValueError, match=f"`{key}` must be {allowed}"):
        dataclasses.replace(CONFIG, **{key: value})
