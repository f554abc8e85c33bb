import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from omegaconf import OmegaConf

from hsae import claims, context_bootstrap, experiments, presets, search, seed_models, sweep, sweep_config
from hsae.claims import Claim
from hsae.config import flatten
from hsae.experiments import Recipe
from hsae.ground_truth import GroundTruthConfig
from hsae.losses import Coefficients
from hsae.statistics import paired_comparison
from hsae.streams import Stream
from hsae.sweep import activations_of, main
from hsae.sweep_config import SCHEMAS, Ablations, Comparison, Controls, Frontier, GroundTruth, load
from hsae.sweep_results import collect, compare, judge, matched, points, summarize, tidy
from hsae.training import Phase
from hsae.workers import share

ROOT = Path(__file__).resolve().parent.parent
PARAMS = {"seed": 0, "beta1": 0.01, "phase1.epochs": 2.0, "phase2.epochs": 1.0}


def ablations(**changes: Any) -> Ablations:
    values = {
        "target": "evaluate_hsae",
        "metrics": ["metrics/hsae.json"],
        "seeds": [0, 1],
        "budget": {"phase1.epochs": 1.0},
        "conditions": {"reference": {}, "off": {"beta1": 0.0}, "long": {"phase1": {"epochs": 3.0}}},
        "headline": {"level1.fvu": "level 1: FVU", "level1.l0": "level 1: L0"},
        "reference": "reference",
        "claims": [],
    }
    return Ablations(**{**values, **changes})


def frontier(**changes: Any) -> Frontier:
    values = {
        "target": "evaluate",
        "metrics": ["metrics/evaluate.json"],
        "seeds": [0],
        "budget": {},
        "conditions": {"dense": {}, "sparse": {"beta1": 1.0}},
        "headline": {"fvu": "FVU", "dead_fraction": "dead"},
        "reference": "HSAE",
        "matched_l0": {"level1": [4, 100], "level2": [2]},
    }
    return Frontier(**{**values, **changes})


def claim(condition: str, metric: str = "level1.fvu", direction: str = "up", compared: str = "as is") -> Claim:
    """Of a component that is called as the condition that lacks it."""
    return Claim(condition, condition, metric, compared, direction)


def test_every_condition_is_run_from_every_seed_and_seeds_of_a_condition_stand_together():
    runs = ablations().runs(PARAMS)
    assert [*runs] == [("reference", 0), ("reference", 1), ("off", 0), ("off", 1), ("long", 0), ("long", 1)]
    assert runs["off", 1] == {"phase1.epochs": 1.0, "beta1": 0.0, "seed": 1}


def test_a_condition_goes_before_its_preset_and_that_before_the_budget(monkeypatch: pytest.MonkeyPatch):
    of_preset = {"phase1.epochs": 20.0, "beta1": 0.1}
    monkeypatch.setattr(presets, "overrides", lambda choices: of_preset if choices == ["run=run_1"] else {})
    conditions = {"reference": {"preset": "run_1"}, "own": {"preset": "run_1", "phase1.epochs": 5.0}}
    swept = ablations(conditions=conditions, budget={"phase1.epochs": 1.0, "phase2.epochs": 0.5})
    assert swept.overrides("reference", PARAMS) == {"phase1.epochs": 20.0, "phase2.epochs": 0.5, "beta1": 0.1}
    assert swept.overrides("own", PARAMS) == {"phase1.epochs": 5.0, "phase2.epochs": 0.5, "beta1": 0.1}


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"phase1.epoch": 1}, "condition off: `phase1.epoch` is no key of params.yaml."),
        ({"phase1": {"epoch": 1}}, "condition off: `phase1.epoch` is no key of params.yaml."),
        ({"phase1": 1}, "condition off: `phase1` is no key of params.yaml."),
        ({"seed": 3}, "condition off: `seed` is set by `seeds`."),
        ({"preset": "run_9"}, "condition off: no preset `run=run_9`; allowed: "),
    ],
)
def test_what_a_condition_cannot_change_is_refused_with_its_name(condition: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        ablations(conditions={"reference": {}, "off": condition}).runs(PARAMS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "`seeds` must be at least one, each once; not []"),
        ({"seeds": [1, 1]}, "`seeds` must be at least one, each once; not [1, 1]"),
        ({"conditions": {"No cosine": {}}}, "`conditions` must be named in lower case, digits and _; not 'No cosine'"),
        ({"reference": "gone"}, "`reference` must be one of the conditions reference, off, long; not 'gone'"),
        ({"claims": [claim("gone")]}, "`claims.condition` must be one of off, long; not 'gone'"),
        ({"claims": [claim("reference")]}, "`claims.condition` must be one of off, long; not"),
        ({"claims": [claim("off"), claim("off")]}, "`claims.component` must be each once; not ['off', 'off']"),
    ],
)
def test_a_bad_description_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        ablations(**changes)


def test_a_frontier_knows_two_levels():
    with pytest.raises(ValueError, match="`matched_l0` must be level1 or level2; not 'level3'"):
        frontier(matched_l0={"level3": [1]})


def test_the_recovery_sweep_has_settings_that_the_ground_truth_takes():
    section = search.read_inputs()[1].section
    for overrides in load("recovery").runs(committed_params()).values():
        changes = {k.removeprefix("synthetic."): v for k, v in overrides.items() if k != "seed"}
        config = search.build(GroundTruthConfig, search.overridden(section, changes))
        beside = load("recovery").beside  # pyright: ignore[reportAttributeAccessIssue]
        assert config.data.orthogonal or set(beside) <= set(config.methods)


def test_known_hierarchies_are_reported_on_seeds_that_the_search_has_not_seen():
    seen = search.read_inputs()[0]
    used = {seed for seeds in (seen.tried, seen.chosen) for own in seeds.values() for seed in own}
    assert used
    assert not used & {*load("recovery").seeds}


def committed_params() -> dict[str, Any]:
    return flatten(OmegaConf.to_container(OmegaConf.load(ROOT / "params.yaml")))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_committed_sweeps_change_what_there_is_to_values_that_the_schemas_take(name: str):
    params = committed_params()
    runs = load(name).runs(params)
    for overrides in runs.values():
        values = params | overrides
        Coefficients(**{key: values[key] for key in Coefficients.__annotations__})
        for phase in ("phase1", "phase2", "phase3"):
            Phase(**{key: values[f"{phase}.{key}"] for key in Phase.__annotations__})
    shared = ["device", "threads", "prepare_data"]
    if name != "controls":  # which train language models of their own
        shared += ["train_transformer", "extract_activations"]
    assert not [key for overrides in runs.values() for key in overrides if key.split(".")[0] in shared]


def test_conditions_without_a_phase_give_no_level_fewer_tokens_than_the_reference():
    params, seen = committed_params(), {}
    for (condition, _), overrides in load("ablations").runs(params).items():
        first, second, both = ((params | overrides)[f"phase{i}.epochs"] for i in (1, 2, 3))
        seen[condition] = (first + both, second + both)
    reference = seen["reference"]
    for condition in ("no_phase1", "no_phase2", "no_phase3", "all_off", "no_x_from_h1"):
        assert seen[condition][0] >= reference[0]
        assert seen[condition][1] >= reference[1]
    assert seen["no_phase1"][0] == seen["no_x_from_h1"][0] == seen["all_off"][0] == reference[0]
    assert seen["no_phase2"][1] == seen["no_phase3"][1] == reference[1]


def test_a_description_with_an_unknown_or_missing_key_or_no_yaml_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sweep_config, "SWEEPS", tmp_path)
    good = OmegaConf.to_container(OmegaConf.load(ROOT / "hsae/sweeps/frontier.yaml"))
    assert isinstance(good, dict)
    bad = {"bugdet": OmegaConf.to_yaml({**good, "bugdet": {}}), "seeds": OmegaConf.to_yaml({**good, "seeds": ["x"]})}
    bad |= {"metrics": OmegaConf.to_yaml({k: v for k, v in good.items() if k != "metrics"}), "": "conditions: {"}
    for key, text in bad.items():
        (tmp_path / "frontier.yaml").write_text(text)
        with pytest.raises(ValueError, match=rf"^frontier.yaml: .*{key}.*$") as error:
            load("frontier")
        assert "\n" not in str(error.value)


def test_metrics_files_become_rows_without_words_and_with_nan_for_null():
    frame = tidy({("off", 3): {"level1": {"l0": 2, "fvu": None}, "language_model": {"device": "cpu"}}})
    assert frame.drop(columns="value").to_dict("records") == [
        {"condition": "off", "seed": 3, "metric": "level1.l0"},
        {"condition": "off", "seed": 3, "metric": "level1.fvu"},
    ]
    np.testing.assert_array_equal(frame["value"], [2, np.nan])


def results(fvu: dict[str, list[float | None]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Contents of metrics/hsae.json with these FVUs of level 1 by condition, seeds counted from 0."""
    return {
        (condition, seed): {"level1": {"fvu": value, "l0": 8.0 + seed, "ce": 1.0}, "level2": {"l0": 1.0}}
        for condition, values in fvu.items()
        for seed, value in enumerate(values)
    }


HEADLINE = ["level1.fvu", "level1.l0"]
STREAM = Stream(0, "test")


def test_headline_metrics_are_compared_with_the_reference_as_far_as_seeds_are_shared():
    frame = tidy(results({"reference": [0.5, 0.6, 0.7], "off": [0.6, 0.8, None], "long": [0.4]}))
    comparisons = compare(frame, HEADLINE, "reference", STREAM)
    rows = comparisons.set_index(["condition", "metric"])
    assert [*rows.index] == [("off", "level1.fvu"), ("off", "level1.l0")]
    assert rows.loc[("off", "level1.fvu"), "n"] == 2
    assert rows.loc[("off", "level1.fvu"), "difference"] == pytest.approx(0.15)
    assert rows.loc[("off", "level1.l0"), ["n", "difference"]].tolist() == [3, 0]
    expected = paired_comparison(frame.query("condition != 'long' and metric == 'level1.l0'"), "reference", STREAM)
    assert rows.loc[("off", "level1.l0"), "p"] == expected["p"].item()


def test_without_two_shared_seeds_nothing_is_compared():
    frame = tidy(results({"reference": [0.5], "off": [0.6]}))
    assert compare(frame, HEADLINE, "reference", STREAM).empty
    assert compare(frame.query("condition == 'off'"), HEADLINE, "reference", STREAM).empty


def test_a_headline_metric_that_no_result_has_is_refused():
    frame = tidy(results({"reference": [0.5], "off": [0.6]}))
    with pytest.raises(
        ValueError, match=r"`headline` must be a metric of the results \(level1.fvu, .*\); not 'level1.x'"
    ):
        compare(frame, ["level1.x"], "reference", STREAM)


def comparison(component: str, difference: float, p: float) -> dict[str, Any]:
    low, high = difference - 1, difference + 1
    return {
        "condition": component, "metric": component, "n": 8, "difference": difference, "low": low, "high": high, "p": p,
    }  # fmt: skip


def test_claims_hold_by_sign_and_by_holm_over_the_claims_alone():
    rows = [comparison("a", 1, 0.01), comparison("b", 1, 0.02), comparison("c", -1, 0.03), comparison("d", 1, 0.001)]
    extra = [comparison(f"unclaimed{i}", 1, 0.0001) for i in range(20)]
    said = [claim("a"), claim("b", direction="down"), claim("c", direction="down")]
    judged = judge(pd.DataFrame(extra + rows), said)
    # .01 * 3, .02 * 2 and .03 * 1, the last raised to the one before it.
    np.testing.assert_allclose([row["p_holm"] for row in judged], [0.03, 0.04, 0.04])
    assert [row["holds"] for row in judged] == [True, False, True]
    assert judged[0] == {
        "component": "a", "condition": "a", "metric": "level1.fvu", "compared": "as is", "direction": "up",
        "null": None, "how": None, "n": 8, "difference": 1, "low": 0, "high": 2, "p": 0.01,
        "p_holm": pytest.approx(0.03), "holds": True,
    }  # fmt: skip


def test_a_claim_that_cannot_be_tested_yet_does_not_hold_and_counts_in_the_family():
    judged = judge(pd.DataFrame([comparison("a", 1, 0.02)]), [claim("a"), claim("b"), claim("c")])
    assert judged[0]["p_holm"] == pytest.approx(0.06)
    assert [row["holds"] for row in judged] == [False] * 3
    assert [judged[1][key] for key in ("n", "difference", "low", "high", "p", "p_holm")] == [None] * 6
    assert judge(pd.DataFrame([comparison("a", 1, 0.02)]), []) == []


def test_a_claim_of_few_seeds_does_not_hold_and_counts_in_the_family_with_p_1():
    few = {**comparison("a", 1, 0.001), "n": 5}
    first, second = judge(pd.DataFrame([few, {**comparison("b", 1, 0.02), "n": 6}]), [claim("a"), claim("b")])
    assert (first["n"], first["p"], first["p_holm"], first["holds"]) == (5, 0.001, None, False)
    assert (second["p_holm"], second["holds"]) == (0.04, True)


def test_the_summary_has_means_of_all_seeds_and_comparisons_where_there_are_any():
    frame = tidy(results({"reference": [0.5, 0.7], "off": [0.6, 0.9], "long": [0.4]}))
    headline = ["level1.fvu"]
    summary = summarize(frame, compare(frame, headline, "reference", STREAM), headline, STREAM)
    assert summary["reference"] == {"level1.fvu": {"mean": pytest.approx(0.6), "interval": [0.5, 0.7], "n": 2}}
    assert summary["long"] == {"level1.fvu": {"mean": 0.4, "interval": None, "n": 1}}
    off = summary["off"]["level1.fvu"]
    assert off["mean"] == pytest.approx(0.75)
    assert off["difference"] == pytest.approx(0.15)
    assert {*off} == {"mean", "interval", "n", "difference", "low", "high", "p", "p_holm"}


def dictionary(latents: int, l0: float, fvu: float, dead: float | None = 0.0) -> dict[str, Any]:
    return {"latents": latents, "l0": l0, "fvu": fvu, "dead_fraction": dead, "ce": 1.0}


def evaluation(l0: float, fvu: float) -> dict[str, Any]:
    """Contents of metrics/evaluate.json at one sparsity: 64 latents at level 1 and 16 at level 2."""
    return {
        "language_model": {"ce_clean": 1.5, "device": "cpu"},
        "hsae": {"level1": dictionary(64, l0, fvu), "level2": dictionary(16, l0 / 2, 2 * fvu)},
        "flat": {"topk": dictionary(64, l0, fvu / 2, None), "topk_level2": dictionary(16, l0 / 2, fvu)},
        "clustering": {
            "kmeans": dictionary(64, 1, 0.3),
            "ward": dictionary(16, 1, 0.4),
            "pca": dictionary(16, min(l0, 8), 0.5),  # as wide as level 2 by chance, as sparse as level 1 by design
        },
    }


EVALUATIONS = {("dense", 0): evaluation(16, 0.1), ("dense", 1): evaluation(20, 0.2), ("sparse", 0): evaluation(2, 0.4)}


def test_points_are_rows_by_method_level_sparsity_and_seed_and_clusterings_stand_there_once_a_seed():
    table = points(EVALUATIONS, ["fvu", "dead_fraction"])
    assert table.columns.tolist() == ["method", "level", "condition", "seed", "l0", "fvu", "dead_fraction"]
    found: dict[tuple[str, int], list[list[Any]]] = {}
    for row in table.to_dict("records"):
        found.setdefault((row["method"], row["level"]), []).append([row[k] for k in ("condition", "seed", "l0", "fvu")])
    assert found == {
        ("HSAE", 1): [["dense", 0, 16, 0.1], ["dense", 1, 20, 0.2], ["sparse", 0, 2, 0.4]],
        ("HSAE", 2): [["dense", 0, 8, 0.2], ["dense", 1, 10, 0.4], ["sparse", 0, 1, 0.8]],
        ("topk", 1): [["dense", 0, 16, 0.05], ["dense", 1, 20, 0.1], ["sparse", 0, 2, 0.2]],
        ("topk", 2): [["dense", 0, 8, 0.1], ["dense", 1, 10, 0.2], ["sparse", 0, 1, 0.4]],
        ("kmeans", 1): [["dense", 0, 1, 0.3], ["dense", 1, 1, 0.3]],
        ("ward", 2): [["dense", 0, 1, 0.4], ["dense", 1, 1, 0.4]],
        ("pca", 1): [["dense", 0, 8, 0.5], ["dense", 1, 8, 0.5], ["sparse", 0, 2, 0.5]],
    }
    assert table["method"].iloc[0] == "HSAE"
    flat = table.query("method == 'topk' and level == 1")
    np.testing.assert_array_equal(flat["dead_fraction"], [np.nan] * 3)


def test_methods_are_read_off_at_matched_l0_seed_by_seed_and_never_beyond_what_was_swept():
    evaluations = {(name, seed): evaluation(l0, fvu + seed / 10) for name, l0, fvu in SPARSITIES for seed in (0, 1)}
    table = points(evaluations, ["fvu", "dead_fraction"])
    frame = matched(table.assign(dead_fraction=table["dead_fraction"].fillna(0.5)), frontier())
    found = {(row["condition"], row["seed"], row["metric"]): row["value"] for row in frame.to_dict("records")}
    of_level1 = {method for method, _, metric in found if metric.startswith("level1.l0_4.")}
    assert of_level1 == {"HSAE", "topk", "pca"}, "one point is no frontier"
    # log2 4 = 2 lies a third of the way from 1 to 4.
    assert found["HSAE", 0, "level1.l0_4.fvu"] == pytest.approx(0.3)
    assert found["HSAE", 1, "level1.l0_4.fvu"] == pytest.approx(0.4)
    assert found["topk", 1, "level1.l0_4.fvu"] == pytest.approx(0.2)
    assert found["topk", 0, "level1.l0_4.dead_fraction"] == pytest.approx(0.5)
    assert np.isnan(found["HSAE", 0, "level1.l0_100.fvu"])
    assert {method for method, _, metric in found if metric.startswith("level2.")} == {"HSAE", "topk"}


SPARSITIES = [("dense", 16, 0.1), ("sparse", 2, 0.4)]


def strict(path: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(Path(path).read_text(), parse_constant=refuse)


def test_ablations_are_collected_into_a_table_a_summary_and_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    swept = ablations(claims=[claim("off"), claim("long")])
    of_seeds = results({"reference": [0.5, 0.7], "off": [0.6, 0.9], "long": [0.4, None]})
    collect("ablations", swept, of_seeds, ["ablations-long-2"])
    assert pd.read_csv("metrics/ablations.csv").columns.tolist() == ["condition", "seed", "metric", "value"]
    assert len(pd.read_csv("metrics/ablations.csv")) == 6 * 4
    summary = strict("metrics/ablations.json")
    assert summary["budget"] == {"phase1.epochs": 1.0}
    assert summary["overrides"]["long"] == {"phase1.epochs": 3.0}
    assert summary["missing"] == ["ablations-long-2"]
    assert summary["conditions"]["off"]["level1.fvu"]["difference"] == pytest.approx(0.15)
    assert [claim["p"] is None for claim in summary["claims"]] == [False, True]
    assert Path("plots/ablations.png").stat().st_size > 1000


def test_ablations_of_one_seed_have_means_but_no_comparison_and_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    swept = ablations(claims=[claim("off")])
    collect("ablations", swept, results({"reference": [0.5], "off": [0.6]}), [])
    assert strict("metrics/ablations.json")["conditions"]["off"]["level1.fvu"] == {
        "mean": 0.6,
        "interval": None,
        "n": 1,
    }
    assert not Path("plots").exists()


def test_claims_at_matched_l0_are_judged_by_the_frontier_of_the_same_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    swept = ablations(seeds=[*range(7)], claims=[claim("off", compared="matched L0"), claim("long", "level1.l0")])
    of_seeds = results({"reference": [0.5] * 7, "off": [*[0.75, 1.0] * 3, 1.5]})
    for (condition, _), content in of_seeds.items():
        content["level1"]["l0"] = 8.0 if condition == "off" else 16.0
    points = [
        {"seed": seed, "level": 1, "l0": l0, "fvu": fvu} for seed in range(6) for l0, fvu in ((8.0, 0.75), (16.0, 0.5))
    ]
    collect("ablations", swept, of_seeds, [], own_frontier=pd.DataFrame(points))
    first, second = strict("metrics/ablations.json")["claims"]
    # Beyond the frontier off has 0 and .25, the reference nothing; seed 6 has no frontier.
    assert (first["n"], first["difference"]) == (6, pytest.approx(0.125))
    assert first["p_holm"] == pytest.approx(2 * first["p"]), "the claim that cannot be tested yet counts with p = 1"
    assert second["p_holm"] is None


def test_the_frontier_is_read_from_what_is_kept_under_the_names_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "load", lambda name: {"frontier": frontier()}[name])
    monkeypatch.setattr(sweep, "read_recipe", lambda target: Recipe(target, {}, {}, PARAMS))
    monkeypatch.setattr(Recipe, "name", lambda _self, label, _overrides: f"{label}-now")
    kept = {"frontier-dense-0-now": evaluation(16, 0.125), "frontier-sparse-0-old": evaluation(2, 0.5)}
    sweep.write_kept("frontier", "a" * 32, kept)
    own = sweep.read_frontier("a" * 32)
    assert own[["method", "level", "seed", "l0", "fvu"]].iloc[0].tolist() == ["HSAE", 1, 0, 16, 0.125]
    assert set(own["condition"]) == {"dense"}
    assert sweep.read_frontier("b" * 32).empty


@pytest.mark.parametrize("seeds", [[100], [*range(99, 107)]])
def test_ablations_run_the_seeds_of_their_claims(monkeypatch: pytest.MonkeyPatch, seeds: list[int]):
    monkeypatch.setattr(claims, "read", lambda: {"seeds": seeds, "claims": []})
    with pytest.raises(
        ValueError, match=rf"ablations.yaml: `seeds` must be those of the claims, {re.escape(str(seeds))}"
    ):
        load("ablations")


def test_known_hierarchies_are_collected_by_method_and_difficulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    swept = GroundTruth(
        target="synthetic", metrics=["metrics/synthetic.json"], seeds=[0, 1], budget={}, reference="hsae",
        conditions={"easy": {}, "hard": {}}, headline={"easy.mcc": "MCC", "hard.mcc": "hard: MCC"},
        beside=["untrained_hsae"],
    )  # fmt: skip
    of_seeds = {
        (difficulty, seed): {
            "data": {"features": 9, "mcc": 1.0}, "hsae": {"mcc": ours + seed / 8}, "topk": {"mcc": ours / 2},
            "untrained_hsae": {"mcc": 0.25}, "random_directions": {"mcc": 0.125},
            "samples": [{"what": "matching", "role": "chosen"}],
        }
        for difficulty, ours in {"easy": 0.75, "hard": 0.5}.items()
        for seed in (0, 1)
    }  # fmt: skip
    del of_seeds["hard", 1]
    collect("recovery", swept, of_seeds, ["recovery-hard-1"])
    methods = strict("metrics/recovery.json")["methods"]
    assert [*methods] == ["data", "hsae", "topk", "untrained_hsae", "random_directions"]
    assert [name for name, own in methods.items() if "p" in own["easy.mcc"]] == ["topk"], "chance is not compared"
    assert methods["hsae"]["easy.mcc"] == {"mean": 0.8125, "interval": [0.75, 0.875], "n": 2}
    assert methods["hsae"]["hard.mcc"] == {"mean": 0.5, "interval": None, "n": 1}
    assert methods["topk"]["easy.mcc"]["difference"] == -0.4375
    assert "difference" not in methods["topk"]["hard.mcc"], "one seed says nothing"
    assert Path("plots/recovery.png").stat().st_size > 1000


def controls_sweep(**changes: Any) -> Controls:
    values = {
        "target": "control",
        "metrics": ["metrics/control/trained.json", "metrics/control/shuffled.json"],
        "seeds": [0, 1, 2, 3],
        "budget": {},
        "conditions": {"default": {}},
        "headline": {"hierarchy.p": "P", "recovered.ce": "CE"},
        "reference": "trained",
        "seeds_per_language_model": 2,
    }
    return Controls(**{**values, **changes})


def test_each_language_model_of_the_controls_serves_two_seeds():
    runs = load("controls").runs(committed_params())
    assert [*runs] == [("default", seed) for seed in range(8)]
    found = [
        (values["seed"], values["train_transformer.seed"], values["extract_activations.seed"])
        for values in runs.values()
    ]
    assert found == [(seed, seed // 2, seed // 2) for seed in range(8)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditions": {"a": {}, "b": {}}}, "`conditions` must be one; not ['a', 'b']"),
        ({"reference": "gone"}, "`reference` must be one of trained, shuffled; not 'gone'"),
        ({"seeds_per_language_model": 0}, "`seeds_per_language_model` must be above 0; not 0"),
    ],
)
def test_a_bad_description_of_controls_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        controls_sweep(**changes)


def test_controls_are_collected_with_what_the_trained_one_has_beyond_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    swept = controls_sweep()

    def of_seed(seed: int) -> dict[str, Any]:
        ours, theirs = {"p": 0.8 + seed / 100, "samples": [{"what": "p"}]}, {"p": 0.5 + seed / 50}
        files = {
            "metrics/control/trained.json": {"hierarchy": ours, "recovered": {"ce": 0.9}},
            "metrics/control/shuffled.json": {"hierarchy": theirs, "recovered": None},
        }
        return swept.content(files)

    collect("controls", swept, {("default", seed): of_seed(seed) for seed in range(4)}, [])
    found = strict("metrics/controls.json")["controls"]
    assert [*found] == ["trained", "shuffled"]
    assert found["trained"]["hierarchy.p"]["mean"] == pytest.approx(0.815)
    assert "difference" not in found["trained"]["hierarchy.p"]
    shuffled = found["shuffled"]["hierarchy.p"]
    assert shuffled["difference"] == pytest.approx(0.285), "trained - shuffled"
    assert shuffled["low"] < 0.285 < shuffled["high"]
    assert shuffled["p_holm"] < 0.05
    assert "recovered.ce" not in found["shuffled"], "there is nothing to recover"
    assert Path("plots/controls_sweep.png").stat().st_size > 1000
    assert not Path("plots/controls.png").exists(), "that is the pipeline's"


def test_other_language_models_have_other_activations(fake: "FakeProject", monkeypatch: pytest.MonkeyPatch):
    swept = controls_sweep(metrics=["metrics/control/trained.json"], headline={"hierarchy.p": "P"})
    monkeypatch.setattr(sweep, "load", lambda _: swept)
    params = {"seed": 0, "train_transformer.seed": 0, "extract_activations.seed": 0}
    monkeypatch.setattr(sweep, "read_recipe", lambda _: Recipe("control", fake.stages, {}, params))
    monkeypatch.setattr(
        experiments, "git", lambda *a: fake.locks[a[1][0]] if "lock" in a[1] else '{"hierarchy": {"p": 1}}'
    )
    fake.done = {f"controls-default-{seed}": str(seed) for seed in range(4)}
    fake.locks = {str(seed): LOCK.format(md5="ab"[seed // 2] * 32) for seed in range(4)}
    main(["controls", "--collect"])
    assert strict("metrics/controls.json")["controls"]["trained"]["hierarchy.p"]["n"] == 4
    assert strict("metrics/sweeps/controls.json")["activations"] == "a" * 32
    fake.locks["1"] = LOCK.format(md5="c" * 32)  # made on another processor
    with pytest.raises(SystemExit, match=r"^error: sweep: `controls-default-1` has activations of md5 c"):
        main(["controls", "--collect"])


def test_a_frontier_is_collected_into_points_a_summary_at_matched_l0_and_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    of_seeds = {
        (name, seed): evaluation(l0, fvu + seed * seed / 10) for name, l0, fvu in SPARSITIES for seed in (0, 1, 2)
    }
    # No latent was ever active: it has no place on a log scale.
    of_seeds["sparse", 0]["hsae"]["level2"] = dictionary(16, 0, 1)
    del of_seeds["dense", 2]  # so that its seed has no frontier yet
    collect("frontier", frontier(seeds=[0, 1, 2]), of_seeds, ["frontier-dense-2"])
    table = pd.read_csv("metrics/frontier.csv")
    assert table.query("method == 'HSAE' and level == 2")["l0"].tolist() == [8, 8, 0, 1, 1]
    methods = strict("metrics/frontier.json")["methods"]
    assert methods["HSAE"]["level1.l0_4.fvu"] == {"mean": pytest.approx(0.35), "interval": [0.3, 0.4], "n": 2}
    assert methods["HSAE"]["level2.l0_2.fvu"]["n"] == 1
    topk = methods["topk"]["level1.l0_4.fvu"]
    assert (topk["mean"], topk["difference"]) == (pytest.approx(0.175), pytest.approx(-0.175))
    assert {"low", "high", "p", "p_holm"} < {*topk}
    assert "difference" not in methods["topk"]["level2.l0_2.fvu"], "the HSAE's is there from one seed only"
    assert "level1.l0_100.fvu" not in methods["topk"]
    assert Path("plots/frontier.png").stat().st_size > 1000


def test_a_frontier_of_which_no_seed_is_whole_has_points_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    collect("frontier", frontier(), {("dense", 0): evaluation(16, 0.1)}, ["frontier-sparse-0"])
    assert strict("metrics/frontier.json")["methods"] == {}
    assert len(pd.read_csv("metrics/frontier.csv")) == 7


def comparison_sweep(**changes: Any) -> Comparison:
    values = {
        "target": "evaluate",
        "metrics": ["metrics/evaluate.json", "metrics/hsae.json"],
        "seeds": [0, 1],
        "budget": {},
        "conditions": {"default": {}},
        "headline": {"level1.fvu": "level 1: FVU", "level2.fvu": "level 2: FVU", "hierarchy.p": "P"},
        "reference": "topk",
        "models": {"HSAE": "models/phase3.safetensors", "topk": "models/flat_baseline/topk.safetensors"},
    }
    return Comparison(**{**values, **changes})


def test_the_models_of_the_comparison_are_outputs_of_the_pipeline():
    committed = load("comparison")
    assert isinstance(committed, Comparison)
    pipeline: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "dvc.yaml"), resolve=False)
    flat = pipeline["vars"][0]["flat"]
    assert {*committed.models.values()} <= {
        "models/phase3.safetensors",
        "models/untrained/hsae.safetensors",
        *(f"models/flat_baseline/{name}.safetensors" for name in flat),
    }


def test_a_comparison_has_one_condition():
    with pytest.raises(ValueError, match=r"`conditions` must be one; not \['default', 'other'\]"):
        comparison_sweep(conditions={"default": {}, "other": {}})


def test_a_reference_that_no_model_or_method_is_called_is_refused():
    with pytest.raises(ValueError, match="`reference` must be one of the models HSAE, topk; not 'tpk'"):
        comparison_sweep(reference="tpk")
    with pytest.raises(ValueError, match="one of the models HSAE, topk; not 'topk level 2'"):
        comparison_sweep(reference="topk level 2", models={**comparison_sweep().models, "topk level 2": "x"})
    committed = load("recovery")
    assert isinstance(committed, GroundTruth)
    with pytest.raises(ValueError, match=r"`reference` must be one of hsae, level1_alone, relu, .*; not 'HSAE'"):
        GroundTruth(**{**vars(committed), "reference": "HSAE"})


def context_sums(generator: np.random.Generator, ce: float) -> dict[str, np.ndarray]:
    """Of 50 contexts of 10 characters."""
    noise = generator.normal(0, 1, 50)
    return {"active": 20 + noise, "squared_error": 3 + noise.clip(-2), "ce": ce + 0.1 * noise}


def context_run(evaluated: dict[str, Any], seed: int) -> context_bootstrap.Run:
    generator = np.random.default_rng(seed)
    shared = {"n_tokens": 10.0, "sum_squares": 30.0, "ce_clean": 10.0, "ce_mean_ablated": 30.0}
    paths = [f"{family}/{name}" for family in ("hsae", "flat", "clustering") for name in evaluated[family]]
    methods = {path: context_sums(generator, 11 + i) for i, path in enumerate(paths)}
    return context_bootstrap.Run({name: np.full(50, value) for name, value in shared.items()}, methods)


def test_methods_are_compared_with_a_flat_autoencoder_level_by_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    of_seeds: Any = {("default", 0): evaluation(16, 0.1), ("default", 1): evaluation(16, 0.2)}
    for (_, seed), content in of_seeds.items():
        content["hierarchy"] = {"p": 0.5 + seed}
        content["untrained"] = {"level1": {"fvu": 0.9}, "hierarchy": {"p": 0.25}}
    runs = [context_run(evaluation(16, 0.1), seed) for seed in (0, 1)]
    collect("comparison", comparison_sweep(), of_seeds, [], runs)
    found = strict("metrics/comparison.json")["methods"]
    assert {*found} == {"HSAE", "untrained HSAE", "topk", "kmeans", "ward", "pca"}
    assert found["untrained HSAE"]["hierarchy.p"]["mean"] == 0.25
    assert {*found["untrained HSAE"]["level1.fvu"]} == {"mean", "interval", "n"}, "chance is compared with nothing"
    assert found["HSAE"]["hierarchy.p"]["mean"] == 1
    assert "difference" not in found["HSAE"]["hierarchy.p"], "the flat one has no hierarchy"
    assert found["HSAE"]["level2.fvu"]["mean"] == pytest.approx(0.3)
    # Level 1's .1 and .2 against half of them, and level 2's .2 and .4 likewise.
    assert found["HSAE"]["level1.fvu"]["difference"] == pytest.approx(0.075)
    assert found["HSAE"]["level2.fvu"]["difference"] == pytest.approx(0.15)
    assert {*found["kmeans"]} == {"level1.fvu"}
    assert {*found["ward"]} == {"level2.fvu"}
    assert {*found["topk"]["level1.fvu"]["contexts"]} == {"interval"}
    assert {*found["HSAE"]["level2.fvu"]["contexts"]} == {"interval", "difference"}
    low, high = found["HSAE"]["level2.fvu"]["contexts"]["interval"]
    assert 0.05 < low < 0.1 < high < 0.15  # 3 of 30, whatever metrics/evaluate.json says
    assert len(pd.read_csv("metrics/comparison.csv").query("condition == 'HSAE' and metric == 'hierarchy.p'")) == 2
    assert Path("plots/comparison.png").stat().st_size > 1000


class FakeProject:
    """A sweep of three runs of which some are finished, and what `main` does with them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.done: dict[str, str] = {}
        self.ran: list[dict[str, Any]] = []
        swept = ablations(seeds=[0, 1], conditions={"reference": {}, "off": {"beta1": 0.0}})
        monkeypatch.setattr(sweep, "load", lambda _: swept)
        self.stages: dict[str, Any] = {"extract_activations": {}, "evaluate_hsae": {}}
        self.locks: dict[str, str] = {}  # commit -> dvc.lock
        monkeypatch.setattr(sweep, "read_recipe", lambda _: Recipe("evaluate_hsae", self.stages, {}, PARAMS))
        monkeypatch.setattr(Recipe, "name", lambda _self, label, _overrides: label)
        monkeypatch.setattr(experiments, "finished", lambda names: {n: self.done[n] for n in names if n in self.done})
        monkeypatch.setattr(experiments, "run", self.run)
        monkeypatch.setattr(experiments, "git", self.git)

    def run(self, wanted: dict[str, Any], recipe: Recipe, jobs: int, label: str) -> dict[str, str]:
        self.ran.append({"wanted": wanted, "target": recipe.target, "jobs": jobs, "label": label})
        return {name: self.done[name] for name in wanted if name in self.done}

    def git(self, *arguments: str) -> str:
        commit, path = arguments[1].split(":")
        if path == "dvc.lock":
            return self.locks.get(commit, "")
        level1 = {"fvu": int(arguments[1][0]) / 10, "l0": 8.0}
        assert arguments == ("show", f"{arguments[1][0]}:metrics/hsae.json")
        return json.dumps({"level1": level1})


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProject:
    monkeypatch.chdir(tmp_path)
    return FakeProject(monkeypatch)


LABELS = ["ablations-reference-0", "ablations-reference-1", "ablations-off-0", "ablations-off-1"]


def test_the_command_runs_every_condition_and_seed_and_collects_them(
    fake: FakeProject, capsys: pytest.CaptureFixture[str]
):
    fake.done = dict(zip(LABELS, "1235", strict=True))
    main(["ablations", "--jobs", "2"])
    assert fake.ran[0]["jobs"] == 2
    assert fake.ran[0]["target"] == "evaluate_hsae"
    assert [*fake.ran[0]["wanted"]] == LABELS
    assert fake.ran[0]["wanted"]["ablations-off-1"] == {"phase1.epochs": 1.0, "beta1": 0.0, "seed": 1}
    # Each value comes from its own commit: differences .3 - .1 and .5 - .2.
    off = strict("metrics/ablations.json")["conditions"]["off"]["level1.fvu"]
    assert off["difference"] == pytest.approx(0.25)
    assert "4 of 4 experiments are finished; 0 are missing" in capsys.readouterr().out


def test_the_command_has_claims_at_matched_l0_judged_by_the_frontier_on_the_same_activations(
    fake: FakeProject, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str | None] = []

    def read_frontier(activations: str | None) -> pd.DataFrame:
        asked.append(activations)
        return pd.DataFrame([{"level": 1, "seed": seed, "l0": 8.0, "fvu": seed / 8} for seed in (0, 1)])

    conditions = {"reference": {}, "off": {"beta1": 0.0}}
    swept = ablations(conditions=conditions, claims=[claim("off", compared="matched L0")])
    monkeypatch.setattr(sweep, "load", lambda _: swept)
    monkeypatch.setattr(sweep, "read_frontier", read_frontier)
    fake.locks = dict.fromkeys("1235", LOCK.format(md5="a" * 32))
    fake.done = dict(zip(LABELS, "1235", strict=True))
    main(["ablations", "--collect"])
    assert asked == ["a" * 32]
    judged = strict("metrics/ablations.json")["claims"][0]
    assert (judged["n"], judged["difference"]) == (2, pytest.approx(0.25))


def test_what_failed_ends_the_command_with_one_line_after_the_rest_is_collected(fake: FakeProject):
    fake.done = dict(zip(LABELS[:3], "123", strict=True))
    with pytest.raises(
        SystemExit, match=r"^error: sweep: failed or not run: ablations-off-1; see `dvc queue logs a[^\n]*$"
    ):
        main(["ablations"])
    assert strict("metrics/ablations.json")["missing"] == ["ablations-off-1"]


def test_collecting_runs_nothing_and_takes_what_there_is(fake: FakeProject):
    main(["ablations", "--collect"])
    assert not Path("metrics").exists()
    fake.done = dict(zip(LABELS[:1], "1", strict=True))
    main(["ablations", "--collect"])
    assert strict("metrics/ablations.json")["missing"] == LABELS[1:]
    assert fake.ran == []


LOCK = """schema: '2.0'
stages:
  evaluate_hsae:
    cmd: python -m stages.evaluate_hsae
    deps:
    - path: data/activations/train
      hash: md5
      md5: 00000000000000000000000000000000.dir
  extract_activations:
    cmd: python -m stages.extract_activations
    deps:
    - path: models/transformer.safetensors
      hash: md5
      md5: 11111111111111111111111111111111
    outs:
    - path: data/activations/test
      hash: md5
      md5: 22222222222222222222222222222222.dir
    - path: data/activations/train
      hash: md5
      md5: {md5}.dir
      size: 12
      nfiles: 1
  phase1:
    cmd: python -m stages.phase1
"""


def test_the_activations_of_a_lock_are_those_that_extraction_made_and_matter_where_it_is_part_of_the_recipe():
    recipe = Recipe("evaluate_hsae", {"extract_activations": {}}, {}, PARAMS)
    assert activations_of(LOCK.format(md5="a" * 32), recipe) == "a" * 32
    assert activations_of("", recipe) is None
    assert activations_of(LOCK.format(md5="a" * 32), Recipe("synthetic", {"synthetic": {}}, {}, PARAMS)) is None
    committed = (ROOT / "dvc.lock").read_text()
    made = yaml.safe_load(committed)["stages"]["extract_activations"]["outs"]
    expected = next(out["md5"] for out in made if out["path"] == "data/activations/train")
    assert activations_of(committed, recipe) == expected.removesuffix(".dir")


def test_what_a_clone_has_measured_no_other_runs_again_unless_on_other_activations(
    fake: FakeProject, capsys: pytest.CaptureFixture[str]
):
    fake.locks = dict.fromkeys("1235", LOCK.format(md5="a" * 32))
    Path("dvc.lock").write_text(LOCK.format(md5="a" * 32))
    fake.done = dict(zip(LABELS[:3], "123", strict=True))
    main(["ablations", "--collect"])
    first = strict("metrics/ablations.json")
    fake.done = {LABELS[3]: "5"}  # a fresh clone, in which the last one alone is run
    main(["ablations"])
    assert [*fake.ran[0]["wanted"]] == LABELS[3:]
    whole = strict("metrics/ablations.json")
    assert (first["missing"], whole["missing"]) == (LABELS[3:], [])
    assert whole["conditions"]["off"]["level1.fvu"]["difference"] == pytest.approx(0.25)
    fake.done = {}
    main(["ablations", "--collect"])
    assert strict("metrics/ablations.json") == whole
    assert "4 of 4 experiments are finished; 0 are missing" in capsys.readouterr().out
    Path("dvc.lock").write_text(LOCK.format(md5="b" * 32))
    main(["ablations", "--collect"])
    assert strict("metrics/ablations.json") == whole, "what is not known is not collected"
    assert "0 of 4 experiments are finished; 4 are missing" in capsys.readouterr().out
    fake.done = dict(zip(LABELS[:1], "1", strict=True))
    fake.locks = {"1": LOCK.format(md5="b" * 32)}
    main(["ablations", "--collect"])
    kept = strict("metrics/sweeps/ablations.json")
    assert (kept["activations"], [*kept["results"]]) == ("b" * 32, LABELS[:1])


@pytest.mark.parametrize("kept", [True, False])
def test_results_on_other_activations_are_not_mixed(fake: FakeProject, kept: bool):
    Path("dvc.lock").write_text(LOCK.format(md5="a" * 32))
    fake.locks = {"1": LOCK.format(md5="a" * 32), "2": LOCK.format(md5="b" * 32)}
    if kept:
        fake.done = {LABELS[0]: "1"}
        main(["ablations", "--collect"])
        fake.done = {LABELS[1]: "2"}  # a clone on another processor, in which nothing was reproduced before
    else:
        fake.done = {LABELS[0]: "1", LABELS[1]: "2"}
    with pytest.raises(
        SystemExit,
        match=rf"^error: sweep: `{LABELS[1]}` has activations of md5 b{{32}}, `{LABELS[0]}` a{{32}}: [^\n]*$",
    ):
        main(["ablations", "--collect"])


def test_what_was_kept_of_code_that_is_no_more_is_dropped(fake: FakeProject):
    Path("dvc.lock").write_text(LOCK.format(md5="a" * 32))
    sweep.write_kept("ablations", "a" * 32, {"ablations-reference-0-of-old": {"level1": {"fvu": 9.0}}})
    fake.done = {LABELS[0]: "1"}
    fake.locks = {"1": LOCK.format(md5="b" * 32)}
    main(["ablations", "--collect"])
    kept = strict("metrics/sweeps/ablations.json")
    assert (kept["activations"], [*kept["results"]]) == ("b" * 32, LABELS[:1])


def test_a_sweep_that_needs_no_activations_keeps_its_results_whatever_dvc_lock_has(fake: FakeProject):
    fake.stages = {"synthetic": {}}
    fake.done = dict(zip(LABELS, "1235", strict=True))
    Path("dvc.lock").write_text(LOCK.format(md5="a" * 32))
    main(["ablations", "--collect"])
    fake.done = {}
    Path("dvc.lock").write_text(LOCK.format(md5="b" * 32))
    main(["ablations"])
    assert fake.ran[0]["wanted"] == {}
    assert strict("metrics/ablations.json")["missing"] == []


def test_a_refusal_is_one_line(fake: FakeProject, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise ValueError("`jobs` must be above 0; not 0.")

    assert fake.ran == []
    monkeypatch.setattr(experiments, "run", refuse)
    with pytest.raises(SystemExit, match=r"^error: sweep: `jobs` must be above 0; not 0.$"):
        main(["ablations"])


def test_after_a_comparison_the_models_of_its_finished_seeds_are_compared(
    fake: FakeProject, monkeypatch: pytest.MonkeyPatch
):
    compared: list[Any] = []
    over_contexts: list[Any] = []
    monkeypatch.setattr(sweep, "load", lambda _: comparison_sweep(seeds=[4, 5, 6], metrics=["metrics/evaluate.json"]))
    monkeypatch.setattr(sweep, "collect", lambda *arguments: over_contexts.append(arguments[-1]))
    monkeypatch.setattr(sweep, "read_committed", lambda *_: {})
    monkeypatch.setattr(context_bootstrap, "read", lambda commit: f"run {commit}")
    monkeypatch.setattr(seed_models, "collect", lambda *arguments: compared.append(arguments[:2]))
    fake.done = {"comparison-default-4": "a"}
    main(["comparison", "--collect"])
    assert compared == [], "one seed has nothing to be compared with"
    fake.done["comparison-default-6"] = "b"
    main(["comparison", "--collect"])
    assert compared == [({4: "a", 6: "b"}, comparison_sweep().models)]
    assert over_contexts == [["run a"], ["run a", "run b"]]


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("name", SCHEMAS)
def test_the_shares_of_a_sweep_are_all_of_it_and_each_experiment_is_in_one(name: str, parts: int):
    runs = [*load(name).runs(committed_params())]
    shares = [runs[share(f"{part}/{parts}")] for part in range(1, parts + 1)]
    assert sorted(run for own in shares for run in own) == sorted(runs)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_seed_with_all_its_conditions_is_in_one_share_where_their_number_divides_that_of_the_seeds():
    sweep = load("ablations")
    own = [*sweep.runs(committed_params())][share("2/4")]
    assert {seed for _, seed in own} == {101, 105}
    assert len(own) == 2 * len(sweep.conditions)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/0", "0/0", "-1/2", "1", "1/2/3", "a/2", "1/2 ", "1.0/2", "", "²/3"])
def test_another_share_is_refused_in_one_line(fake: FakeProject, text: str):
    message = f"error: sweep: `share` must be i/n with i in 1..n; not {text!r}."
    with pytest.raises(SystemExit, match=f"^{re.escape(message)}$"):
        main(["ablations", f"--share={text}"])
    assert fake.ran == []


def test_a_share_is_run_under_the_names_of_the_whole_and_nothing_is_collected(
    fake: FakeProject, capsys: pytest.CaptureFixture[str]
):
    fake.done = dict(zip(LABELS, "1235", strict=True))
    main(["ablations", "--share", "2/2"])
    assert [*fake.ran[0]["wanted"]] == [LABELS[1], LABELS[3]]
    assert not Path("metrics").exists()
    assert "ablations: 2 of 2 experiments are finished; 0 are missing" in capsys.readouterr().out


def test_what_failed_of_a_share_ends_the_command_with_one_line(fake: FakeProject):
    fake.done = dict(zip(LABELS[:3], "123", strict=True))
    with pytest.raises(SystemExit, match=r"^error: sweep: failed or not run: ablations-off-1; see [^\n]*$"):
        main(["ablations", "--share", "2/2"])


def test_a_share_is_not_collected(fake: FakeProject, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["ablations", "--share", "1/2", "--collect"])
    assert "error: argument --collect: not allowed with argument --share" in capsys.readouterr().err
    assert fake.ran == []
