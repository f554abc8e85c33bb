import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array

from hsae import latent_effects
from hsae.activations import Store
from hsae.causal import Basis
from hsae.gpt import GPT
from hsae.latent_effects import EffectsConfig, effects, strongest, summarize

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
    found = effects(gpt, store, basis, ALL, "test", seed=0)
    for latent in (0, 1):
        n, kl, change = one_by_one(gpt, store, basis, latent)
        row = found.table.to_dict("records")[latent]
        assert row["tokens"] == n
        assert row["kl"] == pytest.approx(kl, rel=1e-4)
        np.testing.assert_allclose(found.raised[[latent]].toarray()[0], change, rtol=1e-3, atol=1e-5)


def test_a_latent_that_is_never_active_has_no_effect_to_speak_of(gpt: GPT, store: Store, basis: Basis):
    found = effects(gpt, store, basis, ALL, "test", seed=0)
    row = found.table.to_dict("records")[2]
    assert row["tokens"] == 0
    assert np.isnan(row["kl"])
    assert not found.raised[[2]].nnz
    assert strongest(found.raised, 2, "abcde", 2) == ([], [])


def test_the_null_removes_as_much_in_another_direction(gpt: GPT, store: Store, basis: Basis):
    longer = Basis(basis.encode, 3 * basis.directions)
    short, long = (effects(gpt, store, own, ALL, "test", seed=0).table.to_dict("list") for own in (basis, longer))
    for latent in (0, 1):
        assert long["kl_null"][latent] > 2 * short["kl_null"][latent]
        assert short["kl_null"][latent] != short["kl"][latent]


def test_contexts_are_drawn_among_those_where_the_latent_is_active(gpt: GPT, store: Store, basis: Basis):
    few = EffectsConfig(latents=99, contexts=30, contexts_per_latent=2)
    first, second = (effects(gpt, store, basis, few, "test", seed=0) for _ in range(2))
    pd.testing.assert_frame_equal(first.table, second.table)
    whole = effects(gpt, store, basis, ALL, "test", seed=0).table["tokens"].tolist()
    for own, of_all in zip(first.table["tokens"].tolist()[:2], whole, strict=False):
        assert 2 <= own <= 2 * store.context
        assert own < of_all


def test_characters_are_named_with_what_they_gain_and_lose():
    raised = csr_array(np.array([[0.5, -2.0, 0.0, 1.25, -0.1], [-1.0] * 5]))
    assert strongest(raised, 0, "abcde", 2) == ([["d", 1.25], ["a", 0.5]], [["b", -2.0], ["e", -0.1]])
    assert strongest(raised, 1, "abcde", 2)[0] == []


def test_summary_by_hand():
    table = pd.DataFrame(
        {"level": [1, 1, 1, 2], "kl": [4.0, 2.0, np.nan, 1.0], "kl_null": [1.0, 4.0, np.nan, 2.0], "latent": range(4)}
    )
    found = summarize(table)
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
    whole = effects(gpt, store, basis, ALL, "test", seed=0).table
    monkeypatch.setattr(latent_effects, "BATCH", 7)
    pd.testing.assert_frame_equal(effects(gpt, store, basis, ALL, "test", seed=0).table, whole, rtol=1e-4)
