"""The search tries as many settings for each kind, keeps what is finished, and takes the best on choosing samples."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from hsae import posthoc, search
from hsae.config import load
from hsae.ground_truth import ALONE, GroundTruthConfig
from hsae.search import CHOSEN, DONE, RESULT, TRIED, Inputs, Run, Search, build, code_of, overridden
from tests.project import TINY

ROOT = Path(__file__).resolve().parent.parent
GRIDS = {"hsae": {"start_l0": [1.0, 2.0], "phase1.lr": [1e-3]}, "topk": {"lr": [1e-3, 2e-3], "batch_size": [512]}}
DIFFICULTIES = {"plain": {}, "crowded": {"data.d_in": 48}}
SEARCH = Search({"plain": [0], "crowded": [1]}, {"plain": [0, 1], "crowded": [0, 1]}, GRIDS)
INPUTS = search.read_inputs()[1]


def test_the_committed_search_has_8_settings_of_every_kind_that_all_are_taken():
    committed, inputs = search.read_inputs()
    assert ALONE not in committed.grids
    assert {len(committed.settings(kind)) for kind in committed.grids} == {8}
    assert len(committed.runs()) == 7 * 8 * 3
    assert len({run.name for run in committed.runs()}) == len(committed.runs())
    for run in (run for run in committed.runs() if run.difficulty != "hard"):
        section = run.section(inputs.section, inputs.difficulties)
        config = build(GroundTruthConfig, section)
        assert config.data.d_in == (48 if run.difficulty == "crowded" else 64)
        assert {kind: vars(own) for kind, own in config.rival_settings.items()} == (
            {} if run.kind == "hsae" else {run.kind: run.setting}
        )
    assert inputs == search.read_inputs()[1], "overrides leave the section as it is"


def test_params_yaml_has_what_the_committed_search_chose():
    section = INPUTS.section
    for kind, own in json.loads((ROOT / RESULT).read_text())["kinds"].items():
        best = max(own["settings"], key=lambda one: (one["edge_ap"], one["mcc"]))
        assert own["chosen"] == best["setting"]
        prefix = "" if kind == "hsae" else f"rival_settings.{kind}."
        assert overridden(section, {f"{prefix}{key}": value for key, value in own["chosen"].items()}) == section


def test_what_is_chosen_is_trained_beside_level_1_alone_and_kinds_at_their_start():
    hsae, topk = {"start_l0": 2.0, "phase1.lr": 5e-3}, {"lr": 2e-3, "batch_size": 512}
    runs = SEARCH.runs_of_chosen({"hsae": hsae, "topk": topk})
    assert [(run.kind, run.setting) for run in runs[::4]] == [
        ("untrained_hsae", {}), ("untrained_topk", {}), ("hsae", hsae), ("topk", topk), (ALONE, hsae),
    ]  # fmt: skip
    assert [(run.difficulty, run.seed) for run in runs[:4]] == [
        ("plain", 0), ("plain", 1), ("crowded", 0), ("crowded", 1),
    ]  # fmt: skip
    assert {run.purpose for run in runs} == {CHOSEN}
    alone = build(GroundTruthConfig, runs[-1].section(INPUTS.section, DIFFICULTIES))
    assert (alone.start_l0, alone.phase1.lr) == (2.0, 5e-3)


def test_a_schema_is_built_as_params_yaml_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    assert build(GroundTruthConfig, INPUTS.section) == load(GroundTruthConfig, "synthetic")


def test_unknown_and_missing_keys_and_kinds_of_other_numbers_of_settings_are_refused():
    with pytest.raises(ValueError, match=r"`Search` must be of the keys tried, chosen, grids; not \['tried'\]"):
        build(Search, {"tried": {}})
    with pytest.raises(ValueError, match=r"`override` must be a key of the section `synthetic`; not 'phase1\.rate'"):
        overridden({"phase1": {"lr": 1}}, {"phase1.rate": 2})
    with pytest.raises(ValueError, match=r"`grids` must be of as many settings for each kind; not \{'a': 2, 'b': 1\}"):
        Search({}, {}, {"a": {"lr": [1, 2]}, "b": {"lr": [1]}})
    with pytest.raises(ValueError, match=r"`grids\.hsae` must be of the keys start_l0, .*; not \['phase1\.epochs'\]"):
        Search({}, {}, {"hsae": {"phase1.epochs": [1]}})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("d_sae1", 256.0, r"`d_sae1` must be an integer; not 256\.0"),
        ("d_sae1", True, r"`d_sae1` must be an integer; not True"),
        ("start_l0", "1e-3", r"`start_l0` must be a number; not '1e-3'"),
        ("data.orthogonal", 1, r"`orthogonal` must be true or false; not 1"),
        ("activation", "x", r"`activation` must be one of relu, topk, .*; not 'x'"),
        ("rivals", "topk", r"`rivals` must be a list; not 'topk'"),
        ("rivals", [1], r"`rivals` must be a text; not 1"),
        ("phase1", 3, r"`phase1` must be a mapping; not 3"),
        ("rival_settings", [], r"`rival_settings` must be a mapping; not \[\]"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(key: str, value: object, message: str):
    with pytest.raises(ValueError, match=message):
        build(GroundTruthConfig, overridden(INPUTS.section, {key: value}))


def test_the_best_setting_is_that_of_the_highest_mean_and_an_unfinished_one_is_none():
    found = {
        run.name: {
            "difficulty": run.difficulty, "edge_ap": 0.5 + 0.25 * run.seed * (run.setting.get("start_l0") == 2.0),
            "mcc": 0.5, "l0": 3.0,
        }
        for run in SEARCH.runs()
        if run.setting.get("lr") != 1e-3 or run.difficulty == "plain"
    }  # fmt: skip
    kinds = search.summarize(SEARCH, found)["kinds"]
    assert kinds["hsae"]["chosen"] == {"start_l0": 2.0, "phase1.lr": 1e-3}
    assert [one["edge_ap"] for one in kinds["hsae"]["settings"]] == [0.5, 0.625]
    assert kinds["hsae"]["settings"][1]["crowded"] == {"edge_ap": 0.75, "mcc": 0.5, "l0": 3.0}
    assert [one["setting"]["lr"] for one in kinds["topk"]["settings"]] == [2e-3]
    # Of two that are as good at edges, MCC says which.
    mcc = {1e-3: 0.75, 2e-3: 0.25}
    better = found | {
        run.name: {"difficulty": run.difficulty, "edge_ap": 0.5, "mcc": mcc[run.setting["lr"]], "l0": 3.0}
        for run in SEARCH.runs()
        if run.kind == "topk"
    }
    assert search.summarize(SEARCH, better)["kinds"]["topk"]["chosen"] == {"lr": 1e-3, "batch_size": 512}
    assert search.summarize(SEARCH, {})["kinds"]["topk"] == {"chosen": None, "settings": []}


def test_code_is_what_is_imported_without_its_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "HERE", tmp_path / "hsae")
    (tmp_path / "hsae").mkdir()
    files = {name: tmp_path / "hsae" / name for name in ("a.py", "b.py", "c.py", "k.cpp")}
    texts = {"a.py": "from hsae import b\n", "b.py": '"""Text."""\nx = 1\n', "c.py": "y = 1\n", "k.cpp": "int z;"}
    for name, text in texts.items():
        files[name].write_text(text)
    first = code_of(files["a.py"])
    files["b.py"].write_text('"""Another text."""\n\nx = 1  # more\n')
    files["c.py"].write_text("y = 2\n")
    assert code_of(files["a.py"]) == first
    for name, text in (("b.py", "x = 2\n"), ("k.cpp", "int y;")):
        files[name].write_text(text)
        assert code_of(files["a.py"]) != first
        files[name].write_text(texts[name])
    assert code_of(files["a.py"]) == first


def test_the_search_depends_on_what_trains_and_scores(monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(search.json, "dumps", lambda found, **_: seen.extend(found) or "")
    code_of(Path(search.__file__))
    names = "search", "ground_truth", "ground_truth_scores", "training", "streams"
    assert {"kernels.cpp", *(f"hsae/{name}.py" for name in names)} <= {*seen}
    assert not {"hsae/sweep.py", "hsae/readme.py"} & {*seen}


def test_lines_of_other_parameters_or_code_are_stale_and_half_written_ones_too(tmp_path: Path):
    run = Run(TRIED, "topk", {"lr": 2e-3, "batch_size": 512}, "plain", 0)
    line = {**run._asdict(), "mcc": 1.0, "fingerprint": INPUTS.fingerprint(run)}
    done = tmp_path / "done"

    def left(inputs: Inputs) -> tuple[list[str], int]:
        found, n_stale = search.read(done, inputs.fingerprint)
        return list(found), n_stale

    assert left(INPUTS) == ([], 0)
    done.write_text(f"{json.dumps(line)}\n{json.dumps(line)[:-9]}")
    assert left(INPUTS) == ([run.name], 1)
    with done.open("a") as file:
        file.write(f"\n{json.dumps({**line, 'difficulty': 'gone'})}\n{json.dumps(run._asdict())}\n")
    assert left(INPUTS) == ([run.name], 3)

    def changed(**values: Any) -> Inputs:
        return replace(INPUTS, section=overridden(INPUTS.section, values))

    assert left(changed(d_sae1=32)) == ([], 4)
    assert left(changed(**{"phase1.epochs": 1})) == ([], 4)
    assert left(replace(INPUTS, code="other")) == ([], 4)
    others = {**INPUTS.difficulties, "plain": {"data.d_in": 32}}
    assert left(replace(INPUTS, difficulties=others)) == ([], 4)
    # What the run does not use: rivals, and settings that are not its own.
    assert left(changed(rivals=["relu"], **{"rival_settings.relu.lr": 9.0})) == ([run.name], 3)
    assert left(changed(**{"rival_settings.topk.lr": 9.0})) == ([run.name], 3), "the run's setting stands for it"
    assert left(changed(start_l0=9.0, **{"phase1.lr": 9.0})) == ([run.name], 3), (
        "those are the HSAE's, who searches them"
    )
    of_hsae = Run(TRIED, "hsae", {"start_l0": 2.0}, "plain", 0)
    rates = [changed(**{"phase1.lr": rate}) for rate in (1.0, 9.0)]
    assert len({inputs.fingerprint(of_hsae) for inputs in [*rates, changed(start_l0=9.0)]}) == 1
    assert len({inputs.fingerprint(of_hsae) for inputs in (INPUTS, changed(**{"phase1.epochs": 1}))}) == 2


def tiny_inputs() -> tuple[Search, Inputs]:
    section = OmegaConf.merge(INPUTS.section, TINY["synthetic"])
    values: dict[str, Any] = OmegaConf.to_container(section)  # pyright: ignore[reportAssignmentType]
    tiny = {"d_sae1": 32, "d_sae2": 96, "phase2": {**values["phase2"], "epochs": 0.1}}
    return Search({"plain": [0]}, {"plain": [0, 1]}, GRIDS), Inputs({**values, **tiny}, DIFFICULTIES, "code")


def in_process(label: str, n: int) -> Any:
    """A stand-in for `workers`."""

    class Here:
        def __enter__(self) -> Any:
            return map

        def __exit__(self, *_: object) -> None:
            pass

    assert (label, n) == ("search", 3)
    return Here()


def test_nothing_of_what_was_chosen_may_be_finished():
    settings = {"hsae": {"start_l0": 2.0}, "topk": {"lr": 1e-3, "batch_size": 512}}
    assert search.summarize_chosen(SEARCH, settings, {}) == {}


def test_a_search_goes_on_where_it_was_and_shares_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(posthoc, "META_STEPS", 20)
    monkeypatch.setattr(search, "read_inputs", tiny_inputs)
    monkeypatch.setattr(search, "workers", in_process)

    def lines() -> list[str]:
        return list(filter(None, DONE.read_text().splitlines()))

    search.main(["--jobs", "3", "--share", "1/2"])
    first = lines()
    assert [json.loads(line)["kind"] for line in first] == ["hsae", "topk"]
    assert capsys.readouterr().out.splitlines()[-1] == "search: 2 trainings are missing"
    with DONE.open("a") as file:
        file.write(first[0][:20])  # the process ended while it wrote
    search.main(["--jobs", "3"])
    assert lines()[:3] == [*first, first[0][:20]]
    entries = [json.loads(line) for line in lines() if line != first[0][:20]]
    kinds = ["untrained_hsae", "untrained_topk", "hsae", "topk", ALONE]
    assert [(one["purpose"], one["seed"]) for one in entries] == [(TRIED, 0)] * 4 + [(CHOSEN, 0), (CHOSEN, 1)] * 5
    assert [one["kind"] for one in entries] == ["hsae", "topk", "hsae", "topk", *np.repeat(kinds, 2)]
    assert capsys.readouterr().out.splitlines()[-1] == f"search: finished; 1 lines of {DONE} are stale"
    result = json.loads(RESULT.read_text())
    assert all(len(own["settings"]) == 2 and own["chosen"] for own in result["kinds"].values())
    plain = result["chosen"]["plain"]
    assert {kind: own["n"] for kind, own in plain.items()} == dict.fromkeys(kinds, 2)
    values = [one["mcc"] for one in entries[4:] if one["kind"] == "topk"]
    assert plain["topk"]["mcc"] == {"mean": pytest.approx(sum(values) / 2), "least": min(values), "most": max(values)}
    before = DONE.read_text()
    search.main(["--jobs", "3"])
    assert DONE.read_text() == before
    # A run repeats.
    run = Run(TRIED, "topk", {"lr": 1e-3, "batch_size": 512}, "plain", 0)
    again = search.scored(tiny_inputs()[1], tmp_path / "again", run)
    known = next(one for one in entries if one["kind"] == "topk" and one["setting"] == run.setting)
    assert {**again, "seconds": 0} == {**known, "seconds": 0}


def test_a_share_that_is_none_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "read_inputs", tiny_inputs)
    with pytest.raises(SystemExit, match=r"^error: search: `share` must be i/n with i in 1\.\.n; not '3/2'\.$"):
        search.main(["--share", "3/2"])


def test_an_unknown_difficulty_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "SWEEPS", tmp_path)
    shutil.copy(ROOT / "hsae/sweeps/recovery.yaml", tmp_path)
    text = (ROOT / "hsae/sweeps/search.yaml").read_text()
    (tmp_path / "search.yaml").write_text(text.replace("crowded: [2]", "dense: [2]"))
    with pytest.raises(SystemExit, match=r"^error: search: `difficulty` must be one of plain, .*; not 'dense'\.$"):
        search.main([])
