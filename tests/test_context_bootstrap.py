import numpy as np
import pytest
import torch

from hsae import context_bootstrap
from hsae.context_bootstrap import Run, intervals, metrics, read
from hsae.streams import Stream

N = 400
STREAM = Stream(0, "test")


def run(seed: int, better_by: float = 0.0) -> Run:
    """Contexts of 10 characters of very different difficulty, on which `a` loses `better_by` less than `b`."""
    generator = np.random.default_rng(seed)
    hard = generator.gamma(2, 1, N)
    shared = {
        "n_tokens": np.full(N, 10.0),
        "sum_squares": 40 * hard,
        "ce_clean": 10 * hard,
        "ce_mean_ablated": 30 * hard,
    }
    methods = {
        name: {"active": 50 * hard, "squared_error": 4 * hard, "ce": 12 * hard + generator.normal(0, 0.1, N) - gain}
        for name, gain in (("hsae/level1", better_by), ("flat/topk", 0.0))
    }
    return Run(shared, methods)


def test_metrics_of_all_contexts_by_hand():
    shared = {"n_tokens": [2, 2], "sum_squares": [4, 6], "ce_clean": [1, 3], "ce_mean_ablated": [5, 9]}
    own = {"active": [3, 9], "squared_error": [1, 0], "ce": [2, 3]}
    sums, own_sums = ({name: np.array(v, dtype=float) for name, v in part.items()} for part in (shared, own))
    found = metrics(sums, own_sums, np.array([[1, 1], [0, 2]]))
    assert found["l0"].tolist() == [12 / 4, 18 / 4]
    assert found["fvu"].tolist() == [1 / 10, 0]
    assert found["ce_recovered_mean"].tolist() == [pytest.approx((14 - 5) / (14 - 4)), (18 - 6) / (18 - 6)]


def test_the_interval_of_a_mean_is_as_wide_as_its_standard_error_says():
    runs = [run(0)]
    (row,) = intervals(runs, {"hsae/level1": "flat/topk"}, STREAM).query("metric == 'l0'").to_dict("records")
    active = runs[0].methods["hsae/level1"]["active"] / 10
    error = active.std(ddof=1) / np.sqrt(N)
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert row["low"] < active.mean() < row["high"]


def test_methods_are_paired_by_context():
    table = intervals([run(1, better_by=0.05)], {"hsae/level1": "flat/topk", "flat/topk": "flat/topk"}, STREAM)
    rows = table.set_index(["method", "metric"])
    ours = rows.loc[("hsae/level1", "ce_recovered_mean")]
    # .05 of a mean range of 40 nats: seen only because both have the same contexts.
    assert 0 < ours["difference_low"] < 0.05 / 40 < ours["difference_high"] < 0.003
    assert ours["high"] - ours["low"] < 0.003
    assert (rows.loc["flat/topk", ["difference_low", "difference_high"]] == 0).all(axis=None)


def test_the_mean_over_seeds_is_taken_draw_by_draw():
    one, two = run(0, 0.0), run(1, 1.0)
    both = intervals([one, two], {"hsae/level1": "flat/topk"}, STREAM).set_index("metric")
    alone = [intervals([r], {"hsae/level1": "flat/topk"}, STREAM).set_index("metric") for r in (one, two)]
    middle = [table.loc["ce_recovered_mean", ["difference_low", "difference_high"]].mean() for table in (both, *alone)]
    assert middle[0] == pytest.approx((middle[1] + middle[2]) / 2, abs=2e-4)
    assert both.equals(intervals([one, two], {"hsae/level1": "flat/topk"}, STREAM).set_index("metric"))


def test_runs_on_other_contexts_are_refused():
    long = run(0)
    methods = {method: {name: sums[:9] for name, sums in own.items()} for method, own in long.methods.items()}
    short = Run({name: sums[:9] for name, sums in long.shared.items()}, methods)
    with pytest.raises(ValueError, match="different numbers of contexts"):
        intervals([long, short], {"hsae/level1": "flat/topk"}, STREAM)


def test_a_commit_is_read_from_both_files(monkeypatch: pytest.MonkeyPatch):
    files = {
        "data/contexts/evaluate.safetensors": {"contexts/ce_clean": 1.0, "flat/topk/ce": 2.0},
        "data/contexts/hsae.safetensors": {"contexts/ce_clean": 1.0, "hsae/level1/ce": 3.0},
    }
    monkeypatch.setattr(
        context_bootstrap, "read_tensors",
        lambda commit, path: ({commit + key: torch.tensor([value]) for key, value in files[path].items()}, None),
    )  # fmt: skip
    found = read("")
    assert found.shared == {"ce_clean": np.array([1.0])}
    assert found.methods == {"flat/topk": {"ce": np.array([2.0])}, "hsae/level1": {"ce": np.array([3.0])}}
