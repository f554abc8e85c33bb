"""The search tries as many settings for each kind, keeps what is finished, and takes the best on choosing samples."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from hsae import posthoc, search
from hsae.config import load
from hsae.ground_truth import GroundTruthConfig
from hsae.search import DONE, RESULT, Run, Search, build, overridden
from tests.project import TINY

ROOT = Path(__file__).resolve().parent.parent
GRIDS = {"hsae": {"start_l0": [1.0, 2.0], "phase1.lr": [1e-3]}, "topk": {"lr": [1e-3, 2e-3], "batch_size": [512]}}
DIFFICULTIES = {"plain": {}, "crowded": {"data.d_in": 48}}


def test_the_committed_search_has_24_settings_of_every_kind_that_all_are_taken():
    committed, section, difficulties = search.read_inputs()
    assert {len(committed.settings(kind)) for kind in committed.grids} == {24}
    assert len(committed.runs()) == 8 * 24 * 3 * 3
    assert len({run.name for run in committed.runs()}) == len(committed.runs())
    for run in (run for run in committed.runs() if run.seed == 0 and run.difficulty != "hard"):
        config = build(GroundTruthConfig, overridden(section, run.overrides(difficulties)))
        assert config.data.d_in == (48 if run.difficulty == "crowded" else 64)
        if run.kind not in ("hsae", "level1_alone"):
            assert vars(config.rival_settings[run.kind]) == run.setting
    assert section == search.read_inputs()[1], "overrides leave the section as it is"


def test_a_schema_is_built_as_params_yaml_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    assert build(GroundTruthConfig, search.read_inputs()[1]) == load(GroundTruthConfig, "synthetic")


def test_unknown_and_missing_keys_and_kinds_of_other_numbers_of_settings_are_refused():
    with pytest.raises(ValueError, match=r"`Search` must be of the keys seeds, difficulties, grids; not \['seeds'\]"):
        build(Search, {"seeds": [0]})
    with pytest.raises(ValueError, match=r"`override` must be a key of the section `synthetic`; not 'phase1\.rate'"):
        overridden({"phase1": {"lr": 1}}, {"phase1.rate": 2})
    with pytest.raises(ValueError, match=r"`grids` must be of as many settings for each kind; not \{'a': 2, 'b': 1\}"):
        Search([0], ["plain"], {"a": {"lr": [1, 2]}, "b": {"lr": [1]}})


def test_the_best_setting_is_that_of_the_highest_mean_and_an_unfinished_one_is_none():
    tried = Search([0, 1], ["plain", "crowded"], GRIDS)
    found = {
        run.name: {"edge_ap": 0.5 + 0.25 * run.seed * (run.setting.get("start_l0") == 2.0), "mcc": 0.5, "l0": 3.0}
        for run in tried.runs()
        if run.setting.get("lr") != 1e-3 or run.kind == "hsae"
    }
    kinds = search.summarize(tried, found)["kinds"]
    assert kinds["hsae"]["chosen"] == {"start_l0": 2.0, "phase1.lr": 1e-3}
    assert [one["edge_ap"] for one in kinds["hsae"]["settings"]] == [0.5, 0.625]
    assert kinds["hsae"]["settings"][1]["crowded"] == {"edge_ap": 0.625, "mcc": 0.5, "l0": 3.0}
    assert [one["setting"]["lr"] for one in kinds["topk"]["settings"]] == [2e-3]
    # Of two that are as good at edges, MCC says which.
    better = found | {run.name: {"edge_ap": 0.5, "mcc": 0.75, "l0": 3.0} for run in tried.runs() if run.kind == "topk"}
    better |= {
        run.name: {"edge_ap": 0.5, "mcc": 0.25, "l0": 3.0} for run in tried.runs() if 2e-3 in run.setting.values()
    }
    assert search.summarize(tried, better)["kinds"]["topk"]["chosen"] == {"lr": 1e-3, "batch_size": 512}
    assert search.summarize(tried, {})["kinds"]["topk"] == {"chosen": None, "settings": []}


def tiny_inputs() -> tuple[Search, dict[str, Any], dict[str, dict[str, Any]]]:
    section = OmegaConf.merge(yaml.safe_load((ROOT / "params.yaml").read_text())["synthetic"], TINY["synthetic"])
    values: dict[str, Any] = OmegaConf.to_container(section)  # pyright: ignore[reportAssignmentType]
    tiny = {"d_sae1": 32, "d_sae2": 96, "phase2": {**values["phase2"], "epochs": 0.1}}
    return Search([0], ["plain"], GRIDS), {**values, **tiny}, DIFFICULTIES


def in_process(label: str, n: int) -> Any:
    """A stand-in for `workers`."""

    class Here:
        def __enter__(self) -> Any:
            return map

        def __exit__(self, *_: object) -> None:
            pass

    assert (label, n) == ("search", 3)
    return Here()


def test_a_search_goes_on_where_it_was_and_shares_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(posthoc, "META_STEPS", 20)
    monkeypatch.setattr(search, "read_inputs", tiny_inputs)
    monkeypatch.setattr(search, "workers", in_process)
    search.main(["--jobs", "3", "--share", "1/2"])
    lines = DONE.read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["hsae", "topk"]
    search.main(["--jobs", "3"])
    longer = DONE.read_text().splitlines()
    assert longer[:2] == lines
    assert len(longer) == 4
    result = json.loads(RESULT.read_text())["kinds"]
    assert all(len(result[kind]["settings"]) == 2 and result[kind]["chosen"] for kind in GRIDS)
    search.main(["--jobs", "3"])
    assert DONE.read_text().splitlines() == longer
    # A run repeats.
    again = search.scored(
        *tiny_inputs()[1:], tmp_path / "again", Run("topk", {"lr": 1e-3, "batch_size": 512}, "plain", 0)
    )
    known = json.loads(longer[1])
    assert {**again, "seconds": 0} == {**known, "seconds": 0}


def test_a_share_that_is_none_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "read_inputs", tiny_inputs)
    with pytest.raises(SystemExit, match=r"^error: search: `share` must be i/n with i in 1\.\.n; not '3/2'\.$"):
        search.main(["--share", "3/2"])
