import numpy as np
import pandas as pd
import pytest

from hsae.evidence import Evidence


@pytest.fixture
def evidence() -> Evidence:
    """Three level-1 latents, of which the last is known to no stage, and two level-2 latents."""
    interval = {"value": 0.25, "interval": [0.125, 0.5]}
    found = [{"latent": 1, "sufficient": interval, "necessary": interval}]
    return Evidence(
        edges=pd.DataFrame({"parent": [0, 0, 1], "child": [2, 0, 1], "weight": [0.5, 0.9, 0.9]}),
        proxies=pd.DataFrame(
            {
                "latent": [0, 1], "length": [2, 1], "proxy_f1": [0.75, 0.5], "proxy_f1_null": [0.1, 0.0],
                "rule": ['["ab", "cd"]', '["x"]'], "codes": ["[7, 8]", "[9]"],
                "method": ["HSAE level1", "HSAE level2"],
            }
        ),
        information=pd.DataFrame({"parent": [0, 1], "child": [0, 2], "u": [0.25, 0.5], "q": [0.001, 0.5]}),
        recurrence=pd.DataFrame(
            {"level": [1, 1, 2], "latent": [0, 1, 0], "cosine": [0.9, 0.3, 0.5], "null": [0.0, 1.0, 0.5]}
        ),
        effects=pd.DataFrame(
            {
                "level": [1, 2], "latent": [1, 0], "tokens": [5, 7], "kl": [0.5, 0.25], "kl_null": [0.125, 0.5],
                "kl_choice": [0.75, 0.25], "kl_null_choice": [0.25, 0.5],
            }
        ),
        causal={"q_u": {"latents": {"level1": [], "level2": found}}, "untraced": {}},
    )  # fmt: skip


def test_a_row_for_every_latent_with_nan_where_nothing_is_known(evidence: Evidence):
    table = evidence.latents(1, 3)
    assert table.index.tolist() == [0, 1, 2]
    assert table["rule"].tolist()[0] == '["ab", "cd"]'
    assert np.isnan(table.loc[2, ["proxy_f1", "cosine", "kl"]].to_numpy(float)).all()
    assert table["cosine"][:2].tolist() == [0.9, 0.3]
    assert table["cosine_null"].tolist() == [0.95] * 3
    np.testing.assert_array_equal(table["kl"], [np.nan, 0.5, np.nan])
    np.testing.assert_array_equal(table["kl_choice"], [np.nan, 0.75, np.nan])
    assert evidence.latents(2, 2)["rule"].tolist()[1] == '["x"]'


def test_children_come_by_weight_with_what_they_tell(evidence: Evidence):
    children = evidence.children
    assert children["child"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(children["u"], [0.25, np.nan, np.nan])  # the pairs that were tested are others


def test_causal_shares_are_those_of_restoring(evidence: Evidence):
    assert evidence.causal_shares().to_dict("records") == [
        {"level": 2, "latent": 1, "task": "q_u", "share": 0.25, "low": 0.125, "high": 0.5}
    ]
