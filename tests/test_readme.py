"""The README tells the truth about the committed results and files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hsae import readme

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", readme.TABLES)
def test_the_tables_are_made_from_the_committed_results(name: str):
    sources, table = readme.TABLES[name]
    match = readme.block(name).search(TEXT)
    assert match is not None
    assert match.group() == table(*(json.loads((ROOT / source).read_text(encoding="utf-8")) for source in sources))


def test_the_table_shows_each_dictionary_with_rounded_metrics():
    metrics = {
        "latents": 1024, "l0": 25.04, "dead_fraction": 0.0123, "fvu": 0.07149,
        "ce_recovered_zero": 0.98, "ce_recovered_mean": 0.95, "kl_recovered_mean": 0.9,
    }  # fmt: skip
    lines = readme.results({"hsae": {"level1": metrics}}).splitlines()
    assert lines[0].startswith("| dictionary | latents | L0 |")
    assert lines[2:] == ["| HSAE level1 | 1,024 | 25.0 | 1.2% | 0.071 | 0.980 | 0.950 | 0.900 |"]


def test_the_speed_table_shows_ratios_and_the_share_of_the_limit():
    times = {
        ("relu", "hsae"): 100_000, ("relu", "sae_lens"): 40_000,
        ("relu", "matrix products"): 80_000, ("relu", "matrix products in chunks"): 125_000,
        ("topk", "hsae"): 300_000, ("topk", "sparsify"): 60_000, ("topk", "matrix products"): 600_000,
        ("batchtopk", "hsae"): 150_000,
    }  # fmt: skip
    rows = [
        {"d": 128, "d_sae": 1024, "batch": readme.BATCH, "kind": kind, "method": method, "tokens_per_s": value}
        for (kind, method), value in times.items()
    ]
    rows.append({**rows[0], "batch": 1024, "tokens_per_s": 1})
    assert readme.speed({"rows": rows}).splitlines()[2:] == [
        "| relu, 128 → 1,024 | 100k |  | 2.5 |  |  | 0.80 |",
        "| topk, 128 → 1,024 | 300k |  |  |  | 5.0 | 0.50 |",
        "| batchtopk, 128 → 1,024 | 150k |  |  |  |  | 0.25 |",
    ]


def test_the_table_of_the_levels_shows_both_ways_to_compute_gradients():
    rows = [
        {"batch": readme.BATCH, "kind": "phase 3", "method": "by hand", "ms": 50.2},
        {"batch": readme.BATCH, "kind": "phase 3", "method": "autograd", "ms": 251.0},
        {"batch": 1, "kind": "phase 3", "method": "autograd", "ms": 1.0},
    ]
    assert readme.levels({"rows": rows}).splitlines()[2:] == ["| phase 3 | 50 ms | 251 ms | 5.0 |"]


def test_the_table_of_the_pipeline_adds_up_the_items_of_a_stage():
    everything = {"phase3": 10.2, "flat_baseline@topk": 4.0, "flat_baseline@relu": 5.0, "report": 2.6}
    some = {"phase3": 9.6, "flat_baseline@topk": 4.4}
    runs = {
        "from nothing": {"seconds": 25.0, "peak_bytes": 2_000_000_000, "stages": everything},
        "beta2=0.2": {"seconds": 15.3, "peak_bytes": 1_960_000_000, "stages": some},
    }
    assert readme.pipeline({"runs": runs}).splitlines() == [
        "|  | from nothing | beta2=0.2 |",
        "| --- | ---: | ---: |",
        "| phase3 | 10 s | 10 s |",
        "| flat_baseline | 9 s (2) | 4 s (1) |",
        "| report | 3 s |  |",
        "| all | 25 s | 15 s |",
        "| memory of the largest process | 2.0 GB | 2.0 GB |",
    ]


def test_the_table_of_the_frontier_has_a_part_per_level_with_methods_at_matched_l0():
    ours = {"level1.l0_16.fvu": {"mean": 0.0264}, "level1.l0_16.ce_recovered_mean": {"mean": 0.972}}
    level2 = {"level2.l0_0.5.fvu": {"mean": 0.1}, "level2.l0_0.5.ce_recovered_mean": {"mean": 0.9}}
    topk = {
        f"level1.l0_{l0}.{m}": {"mean": 0.5, "p_holm": p}
        for l0 in (16, 8)
        for m, p in (("fvu", 0.04), ("ce_recovered_mean", 0.06))
    }
    assert readme.frontier({"methods": {"HSAE": ours | level2, "topk": topk}}).splitlines() == [
        "| level 1: FVU / CE recovered | L0 8 | L0 16 |",
        "| --- | ---: | ---: |",
        "| HSAE |  | 0.026 / 0.972 |",
        "| topk | 0.500* / 0.500 | 0.500* / 0.500 |",
        "",
        "| level 2: FVU / CE recovered | L0 0.5 |",
        "| --- | ---: |",
        "| HSAE | 0.100 / 0.900 |",
    ]


def test_the_table_of_mutual_information_extrapolates_from_a_pair():
    seconds = {"bins": 1.5, "all pairs": 0.5, "a pair, scikit-learn": 0.01}
    lines = readme.information({"latents": [1000, 200], "seconds": seconds}).splitlines()
    assert lines[2:] == ["| 1,000 x 200 | 2.0 s | 2,000 s | 1,000 |"]


def test_every_module_has_its_line_and_every_picture_exists():
    for module in (ROOT / "hsae").glob("[!_]*.py"):
        assert f"hsae/{module.name}" in TEXT, module.name
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", TEXT):
        assert (ROOT / picture).is_file(), picture


def test_the_table_of_the_hierarchy_says_where_no_control_differs():
    information = {
        "levels": {
            "parents_with_child": 1.0, "u_children": 0.1, "u_others": 0.01, "weight_correlation_children": 0.5,
            "weight_correlation": 0.1,
        },
        "conditional_entropy": {"8": {"median": 0.5}},
    }  # fmt: skip
    information["untrained"] = {**information, "levels": {**information["levels"], "parents_with_child": 0.25}}
    p = "p_parent_given_child"
    tree = {
        f"{p}_decoder": 0.8, f"{p}_null_decoder": 0.1, f"{p}_beyond_chance_decoder": 0.78,
        f"{p}_beyond_chance_coactivation": 0.6,
    }  # fmt: skip
    evaluation = {"hierarchy": tree, "untrained": {"hierarchy": {**tree, f"{p}_beyond_chance_decoder": 0.5}}}
    names = ("level2_by_coactivation", "flat_by_coactivation", "level2_by_decoder", "flat_by_decoder")
    taxonomy = {name: {"current_character": 0.2} for name in names}
    clusters = {"taxonomy": taxonomy, "untrained": {"taxonomy": taxonomy}}

    def rows(*shares: float) -> list[str]:
        controls = [{"information": {"parents_with_child": share}} for share in shares]
        return readme.hierarchy(evaluation, information, clusters, *controls).splitlines()

    assert rows(1.0, 1.0)[2:6] == [
        "| P(parent active given child) | 0.80 | 0.80 | 0.10 with parents shuffled |",
        "| the same beyond chance | 0.78 | 0.50 |  |",
        "| the same, parents by co-activation | 0.60 | 0.60 |  |",
        "| parents with a child that tells of them | 100.0% | 25.0% | 100.0% in every control |",
    ]
    assert rows(1.0, 0.97)[5].endswith("| 97.0% or more in the controls |")


def test_the_table_of_known_hierarchies_has_a_column_per_difficulty():
    def scores(ap: float) -> dict[str, Any]:
        return {"edge_ap": {"mean": ap, "least": ap / 2}, "mcc": {"mean": 0.5}, "l0": {"mean": 4.75}}

    found = {"plain": {"untrained_hsae": scores(0.05), "hsae": scores(1.0)}, "hard": {"hsae": scores(0.75)}}
    assert readme.known({"chosen": found}).splitlines()[2:] == [
        "| untrained hsae | 0.050 (0.025) / 0.500 / 4.8 |  |",
        "| hsae | 1.000 (0.500) / 0.500 / 4.8 | 0.750 (0.375) / 0.500 / 4.8 |",
    ]


def test_the_table_of_causal_tracing_marks_what_differs_from_neurons():
    def value(x: float) -> dict[str, float]:
        return {"value": x}

    cpr = {"neurons": 0.8, "level1": 0.9, "level2": 0.7, "flat jumprelu": 0.81, "PCA": 1.0}
    found = {
        "methods": {name: {"cpr": value(x), "cmd": value(1 - x)} for name, x in cpr.items()},
        "shares": {
            name: {"sufficient": value(x), "necessary": value(-x)} for name, x in {"e0": 0.1, "e1": 0.02}.items()
        },
        "economy": {"share": value(0.5), "level1_latents": 40.2, "level2_latents": 10},
        "total_effect": value(5.25),
        "character_before": value(0.061),
    }
    p_holm = {"level1": 0.01, "level2": 0.049, "flat jumprelu": 0.2, "PCA": 0.05}
    against = {name: {"word_end": {"p_holm": p}} for name, p in p_holm.items()}
    result = {
        "tasks": {"word_end": found},
        "pairs": {"word_end": {"discovery": {"kept": 100}, "test": {"kept": 56, "asked": 70}}, "gone": {}},
        "comparisons": {"cpr": {"neurons": against}, "cmd": {"neurons": {"level1": {"word_end": {"p_holm": 0.001}}}}},
    }
    row = readme.causal(result).splitlines()[2]
    assert row == (
        "| word end | 56 of 70 | 5.2 | 0.06 | 0.80 / 0.20 | 0.90* / 0.10* | 0.70* / 0.30 | 0.81 / 0.19 | 1.00 / 0.00"
        " | 0.12 / -0.12 | 0.50 (10 of 40) |"
    )
    found["character_before"] = None
    assert readme.causal(result).splitlines()[2] == row.replace("| 0.06 |", "|  |")
