import numpy as np
import pandas as pd
import pytest
import torch

from hsae import variants
from hsae.hierarchical import HierarchicalSAE
from hsae.recurrence import recurrence, summarize


def hsae(seed: int) -> HierarchicalSAE:
    torch.manual_seed(seed)
    level1 = variants.build("relu", 12, 30, k=4, beta=0.1)
    return HierarchicalSAE(level1, variants.build("relu", 30, 8, k=2, beta=0.1, nonnegative=True))


def test_the_same_latents_in_another_order_are_all_found_again():
    own, other = hsae(0), hsae(0)
    with torch.no_grad():
        order1, order2 = torch.randperm(30), torch.randperm(8)
        other.level1.W_dec.copy_(own.level1.W_dec[order1])
        other.level2.W_dec.copy_(own.level2.W_dec[order2][:, order1])
    table = recurrence(own, other, seed=0)
    assert table["level"].tolist() == [1] * 30 + [2] * 8
    assert table["latent"].tolist() == [*range(30), *range(8)]
    np.testing.assert_allclose(table["cosine"], 1, atol=1e-6)
    assert max(table["null"]) < 0.99
    assert summarize(table)["level1"]["recurs"] == 1


def test_unrelated_latents_are_found_again_as_chance_has_it():
    found = summarize(recurrence(hsae(0), hsae(1), seed=0))
    assert found["level1"]["cosine"] == pytest.approx(found["level1"]["null"], abs=0.05)


def test_summary_by_hand():
    table = pd.DataFrame({"level": [1, 1], "latent": [0, 1], "cosine": [0.8, 0.4], "null": [0.3, 0.1]})
    assert summarize(table) == {"level1": {"cosine": pytest.approx(0.6), "null": 0.2, "recurs": 0.5, "recurs_null": 0}}
