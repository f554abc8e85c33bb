import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from hsae import feature_plots, latent_effects, variants
from hsae.activations import Store
from hsae.causal import Basis
from hsae.dictionary import DictionaryConfig
from hsae.gpt import GPT
from hsae.latent_effects import (
    EffectsConfig,
    Raised,
    chosen_and_scored,
    effects,
    extremes,
    random_directions,
    strongest,
    summarize,
)
from hsae.streams import Stream

STREAM = Stream(0, "test")
ALL = EffectsConfig(latents=99, contexts=1000, contexts_per_latent=1000)


@pytest.fixture
def basis(store: Store) -> Basis:
    """Two latents that read coordinates, one on a fifth and one on half of the tokens; and one that is never active."""
    x = store.x(slice(None))
    cutoff = torch.stack([x[:, 0].quantile(0.8), x[:, 1].quantile(0.5), torch.tensor(1e9)])
    directions = torch.randn(3, 8, generator=torch.Generator().manual_seed(3))
    return Basis(lambda rows: (rows[..., :3] - cutoff).relu(), directions)


def one_by_one(model: GPT, store: Store, basis: Basis, latent: int) -> tuple[int, float, torch.Tensor]:
    """Tokens, mean divergence and mean change of log probability, context by context and token by token."""
    n, kl, change = 0, 0.0, torch.zeros(5, dtype=torch.double)
    for stream in store.activations.acts.unflatten(0, (-1, store.context)):
        own = basis.encode(store.normalizer(stream))[:, latent]
        removed = own[:, None] * basis.directions[latent] * store.normalizer.scale
        with_it, without = (
            model.logits(s[None], store.layer)[0].log_softmax(-1).double() for s in (stream, stream - removed)
        )
        for token in torch.nonzero(own)[:, 0].tolist():
            n += 1
            kl += float((with_it[token].exp() * (with_it[token] - without[token])).sum())
            change += with_it[token] - without[token]
    return n, kl / n, change / n


def test_every_latent_is_removed_wherever_it_is_active(gpt: GPT, store: Store, basis: Basis):
    found = effects(gpt, store, basis, ALL, "test", STREAM)
    for latent in (0, 1):
        n, kl, change = one_by_one(gpt, store, basis, latent)
        row = found.table.to_dict("records")[latent]
        assert row["tokens"] == n
        assert row["kl"] == pytest.approx(kl, rel=1e-4)
        np.testing.assert_allclose(found.raised[latent], change, rtol=1e-3, atol=1e-5)


def test_masked_tokens_have_no_part_in_effects(gpt: GPT, store: Store, masked: Store, harmless: Store, basis: Basis):
    absurd, found = (effects(gpt, own, basis, ALL, "test", STREAM) for own in (masked, harmless))
    pd.testing.assert_frame_equal(absurd.table, found.table)
    torch.testing.assert_close(absurd.raised, found.raised)
    on = basis.encode(store.x(slice(None)))[masked.kept] > 0
    assert found.table["tokens"].tolist() == on.sum(0).tolist()


def test_a_latent_that_is_never_active_has_no_effect_to_speak_of(gpt: GPT, store: Store, basis: Basis):
    found = effects(gpt, store, basis, ALL, "test", STREAM)
    row = found.table.to_dict("records")[2]
    assert row["tokens"] == 0
    assert np.isnan(row["kl"])
    assert not found.raised[2].any()


def test_the_null_removes_as_much_in_another_direction(gpt: GPT, store: Store, basis: Basis):
    longer = Basis(basis.encode, 3 * basis.directions)
    short, long = (effects(gpt, store, own, ALL, "test", STREAM).table.to_dict("list") for own in (basis, longer))
    for latent in (0, 1):
        assert long["kl_null"][latent] > 2 * short["kl_null"][latent]
        assert short["kl_null"][latent] != short["kl"][latent]


def test_contexts_are_drawn_among_those_where_the_latent_is_active(gpt: GPT, store: Store, basis: Basis):
    few = EffectsConfig(latents=99, contexts=30, contexts_per_latent=2)
    first, second = (effects(gpt, store, basis, few, "test", STREAM) for _ in range(2))
    pd.testing.assert_frame_equal(first.table, second.table)
    whole = effects(gpt, store, basis, ALL, "test", STREAM).table["tokens"].tolist()
    for own, of_all in zip(first.table["tokens"].tolist()[:2], whole, strict=False):
        assert 2 <= own <= 2 * store.context
        assert own < of_all


def test_characters_are_chosen_on_one_text_and_have_the_nats_of_the_other():
    tokens = extremes(torch.tensor([[0.5, -2.0, 0.0, 1.25, -0.1], [-1.0] * 5]))
    assert tokens[0].tolist() == [3, 0, -1, -1, -1, 1, 4, -1, -1, -1]
    assert tokens[1, :5].tolist() == [-1] * 5
    # On the other text the first is raised less than the second, and one that was lowered is raised.
    nats = np.take_along_axis(np.array([[0.75, -1.0, 9.0, 0.25, 0.5], [-0.5] * 5]), np.maximum(tokens.numpy(), 0), 1)
    raised = Raised(tokens.numpy(), nats)
    assert strongest(raised, 0, "abcde", 2) == ([["d", 0.25], ["a", 0.75]], [["b", -1.0], ["e", 0.5]])
    up, down = strongest(raised, 1, "abcde", 2)
    assert up == []
    assert [value for _, value in down] == [-0.5, -0.5]


def halves(store: Store) -> tuple[Store, Store]:
    """The first and the last contexts."""
    own, middle = store.activations, len(store) // (2 * store.context) * store.context
    rows = (slice(0, middle), slice(middle, len(store)))
    first, last = (type(own)(**{name: values[part] for name, values in vars(own).items()}) for part in rows)
    return dataclasses.replace(store, activations=first), dataclasses.replace(store, activations=last)


def test_what_is_chosen_and_what_is_scored_come_from_two_texts(gpt: GPT, store: Store, basis: Basis):
    val, test = halves(store)
    table, raised = chosen_and_scored(gpt, val, test, basis, ALL, "level1", STREAM)
    again, _ = chosen_and_scored(gpt, val, test, basis, ALL, "level1", STREAM)
    pd.testing.assert_frame_equal(table, again)
    for latent in (0, 1):
        row = table.to_dict("records")[latent]
        of_choice, of_score = (one_by_one(gpt, own, basis, latent) for own in (val, test))
        assert row["tokens"] == of_score[0]
        assert row["kl"] == pytest.approx(of_score[1], rel=1e-3)
        assert row["kl_choice"] == pytest.approx(of_choice[1], rel=1e-3)
        order = of_choice[2].argsort(descending=True)
        n = int((of_choice[2] > 0).sum())
        assert raised.tokens[latent, :n].tolist() == order[:n].tolist()
        np.testing.assert_allclose(raised.nats[latent, :n], of_score[2][order[:n]], atol=1e-4)
        assert row["kl_null"] != row["kl_null_choice"]
    assert (raised.tokens[2] == -1).all(), "never active"
    assert np.isfinite(raised.nats).all()


def test_text_that_chooses_can_change_without_what_is_scored_but_for_what_is_listed(
    gpt: GPT, store: Store, basis: Basis
):
    val, test = halves(store)
    one, other = (chosen_and_scored(gpt, own, test, basis, ALL, "level1", STREAM)[0] for own in (val, test))
    scored = ["latent", "tokens", "kl", "kl_null"]
    pd.testing.assert_frame_equal(one.filter(scored), other.filter(scored))
    assert one["kl_choice"].tolist()[:2] != other["kl_choice"].tolist()[:2]
    # The same text, but random directions of its own: a lucky null is not met twice.
    assert other["kl_choice"].tolist()[:2] == pytest.approx(other["kl"].tolist()[:2])
    for latent in (0, 1):
        assert other["kl_null_choice"].tolist()[latent] != other["kl_null"].tolist()[latent]


def test_text_that_chooses_says_which_latents_are_removed_from_the_other(gpt: GPT, store: Store, basis: Basis):
    val, test = halves(store)
    x = {"val": val.x(slice(None)), "test": test.x(slice(None))}
    # Scaled so that each text has another strongest latent.
    of_val = (basis.encode(x["val"]).sum(0), basis.encode(x["test"]).sum(0))
    scale = torch.tensor([1.0, 1.0, 1.0])
    scale[1] = float((of_val[0][0] / of_val[0][1] + of_val[1][0] / of_val[1][1]) / 2)
    own = Basis(lambda rows: basis.encode(rows) * scale, basis.directions)
    strongest_on = [int(own.encode(x[name]).sum(0).argmax()) for name in ("val", "test")]
    assert strongest_on[0] != strongest_on[1]
    table, _ = chosen_and_scored(gpt, val, test, own, dataclasses.replace(ALL, latents=1), "level1", STREAM)
    assert np.flatnonzero(table["tokens"]).tolist() == strongest_on[:1]
    assert np.flatnonzero(np.isfinite(table["kl_choice"])).tolist() == strongest_on[:1]


def test_the_figure_shows_both_levels_before_and_after_training():
    table = pd.DataFrame({"level": [1, 2], "kl": [0.5, 0.25], "kl_null": [0.1, 0.2]})
    axes = feature_plots.latent_effects(table, table.assign(kl=0.1)).axes[0]
    legend = axes.get_legend()
    assert legend
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["1", "2", "untrained 1", "untrained 2"]


@pytest.mark.parametrize("seed", range(5))
def test_no_random_direction_is_where_a_latent_started(seed: int):
    config = DictionaryConfig(seed, 4.0, 1.0)
    for level, (d_in, d_sae) in {1: (64, 256), 2: (64, 64)}.items():
        start = variants.drawn("relu", d_in, d_sae, k=4, beta=0.1, stream=config.weights(level)).W_dec.detach()
        basis = Basis(lambda x: x, start)
        names = ("latent_effects/chosen on/level1", "latent_effects/scored on/level1", "steering", "causal_tracing")
        for name in names:
            random = random_directions(basis, config.stream(name).of("random directions"))
            torch.testing.assert_close(random.norm(dim=1), start.norm(dim=1))
            cosines = torch.nn.functional.normalize(random, dim=1) @ torch.nn.functional.normalize(start, dim=1).T
            assert cosines.abs().max() < 0.8


def test_summary_by_hand():
    table = pd.DataFrame(
        {"level": [1, 1, 1, 2], "kl": [4.0, 2.0, np.nan, 1.0], "kl_null": [1.0, 4.0, np.nan, 2.0], "latent": range(4)}
    )
    found = summarize(table, STREAM)
    assert found["level1"]["latents"] == 2
    assert found["level1"]["kl"] == 3.0
    assert found["level1"]["log2_ratio"] == 0.5  # of 2 and -1
    assert found["level1"]["above_null"] == 0.5
    assert found["level2"] == {
        "latents": 1, "kl": None, "kl_null": None, "log2_ratio": None, "interval": None, "above_null": None,
    }  # fmt: skip


def test_no_contexts_are_refused():
    with pytest.raises(ValueError, match="`contexts` must be above 0; not 0"):
        EffectsConfig(latents=99, contexts=0, contexts_per_latent=1)


def test_batches_do_not_matter(gpt: GPT, store: Store, basis: Basis, monkeypatch: pytest.MonkeyPatch):
    whole = effects(gpt, store, basis, ALL, "test", STREAM).table
    monkeypatch.setattr(latent_effects, "BATCH", 7)
    pd.testing.assert_frame_equal(effects(gpt, store, basis, ALL, "test", STREAM).table, whole, rtol=1e-4)
