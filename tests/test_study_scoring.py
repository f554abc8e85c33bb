import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from hsae.study import responses as responses_file
from hsae.study import trials as trials_file
from hsae.study.answers import ScoreConfig, answer_frame, exclusions
from hsae.study.responses import Response, Responses
from hsae.study.scoring import score
from hsae.study.trials import Kind, Role, Session, Trials
from tests.project import ROOT
from tests.raters import SHA256, changed, code, responses, study, trial

CONFIG = ScoreConfig(
    reference="flat", min_gold=0.7, max_failed_attention=0, min_median_ms=2000, p1=0.7, p2=0.8, power=0.8, alpha=0.05
)
ARMS = ["flat", "level2"]
STUDY = study(ARMS, 12, (Kind.intruder, Kind.clarity))
FOUND = responses(STUDY, 6, {"flat": 0.5, "level2": 2.0})
NOBODY = Responses("", ())

# Two features, two raters: everything below can be counted.
SMALL = Trials(
    "a corpus", 0, Session(intruder=2, odd_child=0, clarity=0, gold=0, attention=0),
    (trial("a", Kind.intruder, Role.main, "flat", 7, 3), trial("b", Kind.intruder, Role.main, "level2", 7, 0)),
)  # fmt: skip


def response(rater: str, position: int, name: str, choice: int | None, milliseconds: int = 3000) -> Response:
    return Response(rater, position, name, choice, None, None, choice is None, milliseconds)


def metrics(found: Responses, asked: Trials = STUDY, config: ScoreConfig = CONFIG) -> dict[str, Any]:
    result = score(asked, SHA256, found, config).metrics
    json.dumps(result, allow_nan=False)
    return result


def without(found: Responses, rater: str) -> Responses:
    return Responses(found.trials_sha256, tuple(r for r in found.responses if r.rater != rater))


def estimates(result: object) -> list[object]:
    """All estimates in it: what is no count, no name and no reason."""
    if isinstance(result, dict):
        plain = {"answers", "features", "raters", "responses", "simulated", "excluded", "by_density", "failed"}
        return [leaf for key, value in result.items() if key not in plain for leaf in estimates(value)]
    return [leaf for value in result for leaf in estimates(value)] if isinstance(result, list) else [result]


def test_shares_by_hand():
    given = (
        response("r", 1, "a", 3),
        response("r", 2, "b", 0, 5000),
        response("s", 1, "a", 2),
        response("s", 2, "b", None),
    )
    result = metrics(Responses(SHA256, given), SMALL)
    flat, level2 = (result["intruder"]["arms"][arm] for arm in ARMS)
    assert (flat["mean"], flat["answers"], flat["features"], flat["raters"], flat["skipped"]) == (0.5, 2, 1, 2, 0)
    assert (level2["mean"], level2["answers"], level2["raters"], level2["skipped"]) == (1, 1, 1, 0.5)
    assert (flat["median_seconds"], level2["median_seconds"]) == (3, 5)
    assert result["intruder"]["against_reference"]["level2"]["difference"] == 0.5
    assert result["intruder"]["session"]["accuracy"] == [0.5, None, 1, None, None]
    assert result["intruder"]["session"]["median_seconds"] == [3, None, 5, None, None]
    assert "odd_child" not in result, "nobody was asked that"


def test_answers_stand_beside_what_was_asked():
    given = (response("s", 2, "b", 1), response("r", 1, "a", 3))
    frame = answer_frame(SMALL, given)
    assert frame[["rater", "arm", "index", "feature", "correct"]].to_numpy().tolist() == [
        ["r", "flat", 7, 0, 1.0],
        ["s", "level2", 7, 1, 0.0],
    ]


def test_every_result_of_a_study_is_there():
    result = metrics(FOUND)
    assert (result["responses"], result["raters"]) == (len(FOUND.responses), 6)
    for arm in ARMS:
        own = result["intruder"]["arms"][arm]
        assert own["interval"][0] < own["mean"] < own["interval"][1]
        assert own["answers"] == 72
        assert own["answers_per_feature"] == 6
        assert 12 <= own["effective_answers"] <= 72
        assert own["alpha"]["interval"][0] < own["alpha"]["mean"] < own["alpha"]["interval"][1]
        rating = result["clarity"]["arms"][arm]
        assert 1 <= rating["interval"][0] < rating["mean"] < rating["interval"][1] <= 5
    against = result["intruder"]["against_reference"]["level2"]
    arms = result["intruder"]["arms"]
    assert against["difference"] == pytest.approx(arms["level2"]["mean"] - arms["flat"]["mean"])
    assert against["interval"][0] < against["difference"] < against["interval"][1]
    odds = against["odds_ratio"]
    assert 1 < odds["interval"][0] < odds["mean"] < odds["interval"][1]
    assert against["p_holm"] == odds["p"] < 0.05
    assert 0 < against["power"] < 0.5
    assert 0.1 < against["smallest_difference"] < 0.3
    assert None not in estimates(result["intruder"]["session"])


def test_labels_are_listed_by_feature_as_they_were_written():
    given = changed(FOUND, code(2), "clarity-flat-3", label="<b>{x}</b>, ünicode")
    given = changed(given, code(3), "clarity-flat-3", label=None)
    labels = metrics(given)["clarity"]["labels"]
    assert len(labels) == 24
    (own,) = (row["labels"] for row in labels if (row["arm"], row["feature"]) == ("flat", 3))
    assert own == ["pattern 3"] * 2 + ["<b>{x}</b>, ünicode"] + ["pattern 3"] * 2


def test_the_order_of_responses_does_not_matter():
    shuffled = list(FOUND.responses)
    random.Random(0).shuffle(shuffled)
    assert metrics(Responses(SHA256, tuple(shuffled))) == metrics(FOUND)


@pytest.mark.parametrize(
    ("reason", "prefix", "values"),
    [
        ("gold", "gold-", {"skipped": True, "choice": None}),
        ("attention", "attention-0", {"choice": 4}),
        ("speed", "", {"milliseconds": 1999}),
    ],
)
def test_a_rater_who_fails_a_filter_is_told_and_not_counted(reason: str, prefix: str, values: dict[str, Any]):
    bad = code(0)
    given = changed(FOUND, bad, prefix, **values)
    assert exclusions(answer_frame(STUDY, given.responses), CONFIG) == {bad: [reason]}
    result, rest = metrics(given), metrics(without(FOUND, bad))
    assert result["excluded"] == {"raters": 1, "gold": 0, "attention": 0, "speed": 0, reason: 1}
    for arm in ARMS:
        own = result["intruder"]["arms"][arm]
        # What is left is as if the rater had never come, but for the accuracy without exclusions.
        assert own["without_exclusions"] == metrics(FOUND)["intruder"]["arms"][arm]["mean"]
        assert own == {**rest["intruder"]["arms"][arm], "without_exclusions": own["without_exclusions"]}
    assert result["intruder"]["against_reference"] == rest["intruder"]["against_reference"]


def test_filters_hold_at_their_limits():
    assert not metrics(changed(FOUND, code(0), "", milliseconds=2000))["excluded"]["raters"]
    wrong = changed(FOUND, code(0), "gold-0", skipped=True, choice=None)  # three of four are right
    assert not metrics(wrong)["excluded"]["raters"]
    assert metrics(wrong, config=replace(CONFIG, min_gold=0.76))["excluded"]["gold"] == 1
    failed = changed(FOUND, code(0), "attention-0", choice=4)
    assert not metrics(failed, config=replace(CONFIG, max_failed_attention=1))["excluded"]["raters"]


def test_everyone_excluded_leaves_no_estimate_but_that_without_exclusions():
    result = metrics(FOUND, config=replace(CONFIG, min_median_ms=1e6))
    assert result["excluded"]["raters"] == 6
    assert result["intruder"]["arms"]["flat"]["mean"] is None
    assert result["intruder"]["arms"]["flat"]["without_exclusions"] > 0.2


def test_responses_to_other_trials_are_counted_and_not_scored():
    result = metrics(replace(FOUND, trials_sha256="cd" * 32))
    assert (result["responses"], result["responses_to_other_trials"]) == (0, len(FOUND.responses))
    assert result["raters"] == result["simulated"] == 0
    assert {**result, "responses_to_other_trials": 0} == metrics(NOBODY)


def test_without_responses_there_is_no_number():
    result = metrics(NOBODY)
    counts = ("responses", "responses_to_other_trials", "raters", "simulated")
    assert [result[name] for name in counts] == [0, 0, 0, 0]
    for kind in ("intruder", "clarity"):
        for arm in ARMS:
            assert result[kind]["arms"][arm]["answers"] == 0
        labels = result[kind].pop("labels", [])
        assert labels == []
        assert set(estimates(result[kind])) == {None}
    assert result["intruder"]["model"]["failed"] == "no answers"
    frame = score(STUDY, SHA256, NOBODY, CONFIG).frame
    assert frame["answers"].tolist() == [0] * 4
    assert frame["value"].isna().to_numpy().all()


def test_one_rater_gives_means_and_no_interval():
    result = metrics(Responses(SHA256, tuple(r for r in FOUND.responses if r.rater == code(1))))
    own = result["intruder"]["arms"]["flat"]
    assert own["mean"] is not None
    assert own["interval"] is None
    assert own["alpha"] == {"mean": None, "interval": None}
    assert own["effective_answers"] == own["answers"] == 12, "single answers about each feature"
    assert result["intruder"]["against_reference"]["level2"]["interval"] is None


def test_one_feature_gives_means_and_no_interval():
    asked = study(ARMS, 1)
    result = metrics(responses(asked, 8, {}), asked)["intruder"]
    assert result["arms"]["flat"]["answers"] == 8
    assert result["arms"]["flat"]["interval"] is None
    assert result["against_reference"]["level2"]["interval"] is None
    assert result["model"]["failed"]


def test_all_right_is_no_certainty():
    result = metrics(responses(STUDY, 6, {arm: 50.0 for arm in ARMS}))["intruder"]
    own = result["arms"]["flat"]
    assert own["mean"] == 1
    assert own["interval"] == pytest.approx([0.025 ** (1 / 6), 1])
    assert result["model"]["failed"] == "flat: all answers are right"
    assert result["against_reference"]["level2"]["odds_ratio"] == {"mean": None, "interval": None, "p": None}
    assert result["intraclass_correlation"] is None


def test_all_skipped_is_no_answer():
    skipped = [replace(r, choice=None, rating=None, label=None, skipped=True) for r in FOUND.responses]
    result = metrics(Responses(SHA256, tuple(skipped)), config=replace(CONFIG, min_gold=0.0, max_failed_attention=9))
    own = result["intruder"]["arms"]["flat"]
    assert (own["mean"], own["answers"], own["skipped"]) == (None, 0, 1)
    assert result["excluded"]["raters"] == 0


def test_fatigue_shows_in_the_fifths_and_in_the_slope():
    session = metrics(responses(STUDY, 12, {}, sd_feature=0.2, sd_rater=0.2, per_position=-0.08))["intruder"]["session"]
    assert session["accuracy"][0] > session["accuracy"][4] + 0.3
    slope = session["log_odds_per_10_trials"]
    assert slope["interval"][0] < -0.8 < slope["interval"][1] < 0


def test_people_are_not_simulated_and_simulated_raters_are_counted():
    assert metrics(FOUND)["simulated"] == 6
    real = [replace(r, rater="7ZK3M9QX0T") if r.rater == code(0) else r for r in FOUND.responses]
    assert metrics(Responses(SHA256, tuple(real)))["simulated"] == 5


def test_what_does_not_fit_the_trials_is_refused_in_one_line():
    with pytest.raises(ValueError, match="`reference` must be an arm of the study: flat, level2; not 'kmeans'"):
        metrics(FOUND, config=replace(CONFIG, reference="kmeans"))
    with pytest.raises(ValueError, match=r"`trial` must be one of trials\.json; not 'c'"):
        metrics(Responses(SHA256, (response("r", 1, "c", 1),)), SMALL)
    rated = Response("r", 1, "a", None, 3, None, False, 10)
    with pytest.raises(
        ValueError, match="`answer of r to a` must be a choice, as it is of kind intruder; not 'a rating'"
    ):
        metrics(Responses(SHA256, (rated,)), SMALL)
    silent = replace(SMALL, trials=(replace(SMALL.trials[0], density=0.0), SMALL.trials[1]))
    with pytest.raises(ValueError, match=r"`density of a` must be above 0; not 0\.0"):
        metrics(NOBODY, silent)


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_gold", 1.1), ("max_failed_attention", -1), ("min_median_ms", -1.0), ("p1", 0.0), ("p2", 0.7), ("p2", 1.0),
     ("power", 0.04), ("power", 1.0), ("alpha", 0.0)],
)  # fmt: skip
def test_parameters_out_of_range_are_refused_by_name(name: str, value: float):
    with pytest.raises(ValueError, match=f"`{name}` must be .*; not {value}"):
        replace(CONFIG, **{name: value})


def run_stage(folder: Path, asked: Trials, found: Responses) -> subprocess.CompletedProcess[str]:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "versions", folder / "versions", dirs_exist_ok=True)
    for name in ("data/study", "study"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "data/study/trials.json").write_text(trials_file.dumps(asked), encoding="utf-8")
    (folder / "study/responses.jsonl").write_text(responses_file.dumps(found), encoding="utf-8")
    command = [sys.executable, "-m", "stages.score_study"]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


def test_the_stage_binds_responses_to_the_bytes_of_the_trials(tmp_path: Path):
    reference = "flat jumprelu"  # of params.yaml
    asked = study([reference, "level2"], 4)
    found = replace(responses(asked, 3, {}), trials_sha256=sha256(trials_file.dumps(asked).encode()).hexdigest())
    for given, n in ((found, len(found.responses)), (NOBODY, 0)):
        run = run_stage(tmp_path, asked, given)
        assert run.returncode == 0, run.stderr
        assert json.loads((tmp_path / "metrics/study.json").read_text())["responses"] == n
        header, *rows = (tmp_path / "plots/study.csv").read_text().splitlines()
        assert header == "kind,arm,value,low,high,answers,features"
        assert len(rows) == 2
        assert (tmp_path / "plots/study.png").stat().st_size > 1000
