import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from hsae import untrained, variants
from hsae.activations import Activations, Normalizer, Store
from hsae.dictionary import Activation, LatentConfig, Start
from hsae.hierarchical import HierarchicalSAE
from hsae.recurrence import recurrence, summarize
from hsae.streams import Stream
from tests.rows import Rows

STREAM = Stream(0, "test")


def hsae(seed: int) -> HierarchicalSAE:
    torch.manual_seed(seed)
    level1 = variants.build("relu", 12, 30, k=4, beta=0.1)
    return HierarchicalSAE(level1, variants.build("relu", 30, 8, k=2, beta=0.1, nonnegative=True))


@pytest.fixture
def val() -> Store:
    """Tokens on which every latent of `hsae` is active somewhere."""
    x, places = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)), torch.arange(500)
    return Store(
        Activations(x, places, places, places, places >= 0), Normalizer(torch.zeros(12), torch.tensor(1.0)), 0, 10
    )


def kill(model: HierarchicalSAE, level: int, latents: list[int]) -> None:
    """Silence some latents."""
    with torch.no_grad():
        (model.level1, model.level2)[level - 1].b_enc[latents] = -1e6


def test_the_same_latents_in_another_order_are_all_found_again(val: Store):
    own, other = hsae(0), hsae(0)
    with torch.no_grad():
        order1, order2 = torch.randperm(30), torch.randperm(8)
        other.level1.W_dec.copy_(own.level1.W_dec[order1])
        other.level2.W_dec.copy_(own.level2.W_dec[order2][:, order1])
    table = recurrence(own, other, val, STREAM)
    assert table["level"].tolist() == [1] * 30 + [2] * 8
    assert table["latent"].tolist() == [*range(30), *range(8)]
    np.testing.assert_allclose(table["cosine"], 1, atol=1e-6)
    assert max(table["null"]) < 0.99
    assert summarize(table)["level1"]["recurs"] == 1
    pd.testing.assert_frame_equal(table, recurrence(own, other, val, STREAM), check_exact=True)


def test_unrelated_latents_are_found_again_as_chance_has_it(val: Store):
    found = [summarize(recurrence(hsae(2 * i), hsae(2 * i + 1), val, Stream(i, "test")))["level1"] for i in range(10)]
    cosine, null = (np.mean([one[name] for one in found]) for name in ("cosine", "null"))
    assert cosine == pytest.approx(null, abs=0.05)


def test_dead_latents_are_not_matched_and_one_without_a_partner_is_not_found_again(val: Store):
    own, other = hsae(0), hsae(0)
    kill(own, 1, [3, 7])
    kill(own, 2, [5])
    kill(other, 2, [2])
    table = recurrence(own, other, val, STREAM)
    of_level1, of_level2 = (
        dict(table.loc[table["level"] == level, ["latent", "cosine"]].to_numpy().tolist()) for level in (1, 2)
    )
    assert [*of_level1] == [latent for latent in range(30) if latent not in (3, 7)]
    assert [*of_level1.values()] == pytest.approx([1] * 28)
    assert [*of_level2] == [0, 1, 2, 3, 4, 6, 7]
    assert of_level2[2] < 1 - 1e-6, "its copy is dead"
    kill(other, 2, [0, 1])
    table = recurrence(own, other, val, STREAM)
    assert np.isnan(table["cosine"].to_numpy()).sum() == 2
    assert summarize(table)["level2"]["recurs"] <= 5 / 7


def test_a_masked_token_gives_no_latent_life(val: Store):
    own, other = hsae(0), hsae(1)
    kept = torch.arange(500) % 10 != 0
    with torch.no_grad():
        own.level1.b_enc[3] = -1e4  # active on what is absurd alone
    acts = torch.where(kept[:, None], val.activations.acts, 1e6)
    absurd = replace(val, activations=replace(val.activations, acts=acts, kept=kept))
    alive = replace(absurd, activations=replace(absurd.activations, kept=kept | True))
    found, otherwise = (recurrence(own, other, some, STREAM).query("level == 1") for some in (absurd, alive))
    assert 3 not in found["latent"].tolist()
    assert 3 in otherwise["latent"].tolist()


def test_a_level_that_has_died_has_no_numbers(val: Store):
    own, other = hsae(0), hsae(1)
    kill(other, 2, [*range(8)])
    found = summarize(recurrence(own, other, val, STREAM))
    assert found["level2"] == {"cosine": None, "null": None, "recurs": 0, "recurs_null": 0}
    kill(own, 2, [*range(8)])
    found = summarize(recurrence(own, other, val, STREAM))
    assert set(found["level2"].values()) == {None}
    json.dumps(found, allow_nan=False)


def test_summary_by_hand():
    table = pd.DataFrame(
        {
            "level": [1, 1, 2, 2],
            "latent": [0, 1, 0, 1],
            "cosine": [0.8, 0.4, 0.9, np.nan],
            "null": [0.3, 0.1, 0.2, np.nan],
        }
    )
    assert summarize(table) == {
        "level1": {"cosine": pytest.approx(0.6), "null": 0.2, "recurs": 0.5, "recurs_null": 0},
        "level2": {"cosine": 0.9, "null": 0.2, "recurs": 0.5, "recurs_null": 0},
    }


def test_untrained_levels_are_found_again_no_more_often_than_random_directions():
    x = torch.randn(2000, 16, generator=torch.Generator().manual_seed(5))
    places = torch.arange(2000)
    store = Store(
        Activations(x, places, places, places, places >= 0), Normalizer(torch.zeros(16), torch.tensor(1.0)), 0, 10
    )
    latents = LatentConfig(Activation.jumprelu, k1=4, k2=3, dead_tokens=0, init_level2=Start.random, init_tokens=1000)
    own, other = (
        untrained.hierarchical((48, 12), (4.0, 3.0), Rows(x), 0.1, latents, STREAM.of(name)) for name in ("a", "b")
    )
    found = summarize(recurrence(own, other, store, STREAM))
    for level in found.values():
        assert level["cosine"] < level["null"] + 0.1
        assert level["recurs"] <= level["recurs_null"] + 0.1
