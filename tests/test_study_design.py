from collections import Counter
from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_array, csr_array

from hsae.coactivation import among
from hsae.streams import Stream
from hsae.study import trials
from hsae.study.design import SHUFFLED, StudyConfig, build, matched, random_directions
from hsae.study.snippets import DECILES, Feature, Sampler
from hsae.study.trials import Kind, Role, Session, Trial, Trials

N = 20_000
STREAM = Stream(0, "test")
SESSION = Session(intruder=4, odd_child=2, clarity=2, gold=1, attention=1)
CONFIG = StudyConfig(
    tokens=N, features=6, trials=3, parents=3, snippet_chars=24, clarity_snippets=5, child_snippets=2, gold=4,
    attention=3, session=SESSION,
)  # fmt: skip


@cache
def text() -> str:
    rng = np.random.default_rng(0)
    letters = np.array(list("aaaeeeiioot nnsrhld"))
    return "".join(rng.choice(letters, N))


def acts(n_features: int, density: float, seed: int) -> csc_array:
    """Features that are active here and there, more or less strongly."""
    rng = np.random.default_rng(seed)
    own = density * np.exp(rng.normal(0, 0.3, n_features))
    return csc_array(np.where(rng.random((N, n_features)) < own, rng.exponential(1.0, (N, n_features)), 0.0))


@pytest.fixture(scope="module")
def arms() -> dict[str, csc_array]:
    return {"level1": acts(30, 0.012, 1), "level2": acts(12, 0.016, 2), "kmeans": acts(20, 0.012, 3)}


@pytest.fixture(scope="module")
def edges() -> pd.DataFrame:
    children = np.arange(30)
    return pd.DataFrame({"parent": children % 5, "child": children, "weight": np.linspace(1, 0.1, 30)})


@pytest.fixture(scope="module")
def study(arms: dict[str, csc_array], edges: pd.DataFrame) -> Trials:
    return build(arms, edges, text(), CONFIG, "test", STREAM)


def of(study: Trials, kind: Kind, role: Role = Role.main) -> list[Trial]:
    return [trial for trial in study.trials if trial.kind == kind and trial.role == role]


def starts(trial: Trial) -> list[list[int]]:
    return [[text().find(snippet.text) for snippet in option] for option in trial.options]


def test_there_are_as_many_trials_as_were_asked_for(study: Trials):
    assert Counter(trial.arm for trial in of(study, Kind.intruder)) == dict.fromkeys(("level1", "level2", "kmeans"), 18)
    assert Counter(trial.arm for trial in of(study, Kind.clarity)) == dict.fromkeys(("level1", "level2", "kmeans"), 6)
    assert Counter(trial.arm for trial in of(study, Kind.odd_child)) == {"level2": 3, SHUFFLED: 3}
    assert len(of(study, Kind.intruder, Role.gold)) == 4
    assert len(of(study, Kind.intruder, Role.attention)) == 3


def test_the_intruder_alone_is_text_on_which_the_feature_is_silent(study: Trials, arms: dict[str, csc_array]):
    for trial in of(study, Kind.intruder):
        on = arms[trial.arm][:, [trial.feature]].toarray().ravel() > 0
        for place, [start] in enumerate(starts(trial)):
            [snippet] = trial.options[place]
            active = tuple(np.flatnonzero(on[start : start + 24]).tolist())
            if place == trial.answer:
                assert active == ()
                assert snippet.marks
            else:
                assert snippet.marks == active
                assert 18 in snippet.marks  # the token that it is shown for stands at three quarters


def test_snippets_of_a_trial_are_of_one_decile_and_do_not_overlap(study: Trials, arms: dict[str, csc_array]):
    for trial in of(study, Kind.intruder):
        values = arms[trial.arm][:, [trial.feature]].toarray().ravel()
        positive = np.sort(values[18 : N - 5][values[18 : N - 5] > 0])
        assert trial.decile is not None
        part = np.array_split(positive, DECILES)[trial.decile - 1]
        places = [start for i, [start] in enumerate(starts(trial)) if i != trial.answer]
        peaks = values[np.array(places) + 18]
        assert ((peaks >= part[0]) & (peaks <= part[-1])).all()
        assert (np.diff(sorted(places)) >= 24).all()


def test_deciles_are_balanced_and_a_features_trials_are_of_different_ones(study: Trials):
    for arm in ("level1", "level2", "kmeans"):
        own = [trial for trial in of(study, Kind.intruder) if trial.arm == arm]
        counts = Counter(trial.decile for trial in own)
        assert max(counts.values()) <= 2  # 18 trials in 10 deciles


def test_an_odd_child_is_none_of_the_parents(study: Trials, arms: dict[str, csc_array], edges: pd.DataFrame):
    for trial in of(study, Kind.odd_child):
        assert [len(option) for option in trial.options] == [2] * 5
        if trial.arm != "level2":
            continue
        family = set(edges.query(f"parent == {trial.feature}")["child"])
        for place, option in enumerate(trial.options):
            found = [
                child
                for child in range(30)
                if all(
                    tuple(np.flatnonzero(arms["level1"][start : start + 24, [child]].toarray().ravel()))
                    == snippet.marks
                    for snippet, start in zip(option, starts(trial)[place], strict=True)
                )
            ]
            assert len(found) == 1
            assert (found[0] in family) == (place != trial.answer)


def test_answers_stand_anywhere(study: Trials):
    counts = Counter(trial.answer for trial in of(study, Kind.intruder))
    assert set(counts) == {0, 1, 2, 3, 4}


def test_gold_items_highlight_one_letter_but_in_the_intruder(study: Trials):
    for trial in of(study, Kind.intruder, Role.gold):
        highlighted = [{s.text[mark] for s in option for mark in s.marks} for option in trial.options]
        assert trial.answer is not None
        odd = highlighted.pop(trial.answer)
        [letter] = set.union(*highlighted)
        assert letter not in odd


def test_an_attention_check_says_another_number_than_the_snippets_would(study: Trials):
    for trial in of(study, Kind.intruder, Role.attention):
        assert trial.answer is not None
        assert f"number {trial.answer + 1}" in trial.instruction
        letters = [{s.text[mark] for s in option for mark in s.marks} for option in trial.options]
        assert len(set.union(*(own for i, own in enumerate(letters) if i != trial.answer))) > 1


def test_clarity_shows_weak_and_strong_activations(study: Trials, arms: dict[str, csc_array]):
    for trial in of(study, Kind.clarity):
        values = arms[trial.arm][:, [trial.feature]].toarray().ravel()
        peaks = [values[start + 18] for start in starts(trial)[0]]
        assert len(peaks) == 5
        assert peaks[0] > np.quantile(values[values > 0], 0.85)
        assert peaks[-1] < np.quantile(values[values > 0], 0.15)


def test_the_same_seed_gives_the_same_study_and_ids_tell_nothing(
    study: Trials, arms: dict[str, csc_array], edges: pd.DataFrame
):
    assert trials.dumps(build(arms, edges, text(), CONFIG, "test", STREAM)) == trials.dumps(study)
    assert trials.dumps(build(arms, edges, text(), CONFIG, "test", Stream(1, "test"))) != trials.dumps(study)
    assert len({trial.id for trial in study.trials}) == len(study.trials)
    kinds = [trial.kind for trial in study.trials]
    assert kinds != sorted(kinds)


def test_trials_survive_the_file(study: Trials):
    assert trials.loads(trials.dumps(study)) == study


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-40], "trials.json is damaged"),
        (lambda text: text.replace("hsae-trials-1", "hsae-trials-0"), "`format` must be hsae-trials-1"),
        (lambda text: text.replace('"intruder": 4', '"intruder": 400'), "`session.intruder` must be 0 to 54"),
        (lambda text: text.replace('"density"', '"densety"', 1), "`keys of a Trial` must be id, kind"),
        (lambda text: text.replace('"kind": "clarity"', '"kind": "clearness"', 1), "clearness"),
        (lambda _: "[1]", "`format` must be"),
    ],
)
def test_another_file_is_refused_in_one_line(study: Trials, damage, message: str):
    with pytest.raises(ValueError, match=message) as error:
        trials.loads(damage(trials.dumps(study)))
    assert "\n" not in str(error.value)


def feature(density: float, index: int = 0) -> Feature:
    return Feature("", index, density, np.zeros(0, dtype=int), [])


def test_features_are_matched_by_how_often_they_are_active():
    rare = [feature(density, i) for i, density in enumerate([0.001, 0.01, 0.02, 0.04, 0.9])]
    often = [feature(density, i) for i, density in enumerate([0.0005, 0.011, 0.019, 0.041, 0.8])]
    found = matched({"a": rare, "b": often}, 3)
    assert [one.index for one in found["a"]] == [1, 2, 3]
    assert [one.index for one in found["b"]] == [1, 2, 3]


def test_an_arm_that_cannot_be_shown_is_left_out_and_sessions_are_as_long_as_can_be(arms, edges: pd.DataFrame):
    rare = csc_array(np.eye(N, 2))
    config = StudyConfig(**{**vars(CONFIG), "session": Session(400, 2, 2, 1, 1)})
    study = build({**arms, "kmeans": rare}, edges, text(), config, "test", STREAM)
    assert {trial.arm for trial in of(study, Kind.intruder)} == {"level1", "level2"}
    assert study.session == Session(36, 2, 2, 1, 1)


def test_without_any_arm_there_is_no_study():
    with pytest.raises(ValueError, match="`arms` must be at least one with features that can be shown; not 0"):
        matched({}, 3)


def test_random_directions_are_active_as_often_as_asked():
    projections = np.random.default_rng(0).normal(size=(1000, 3))
    found = random_directions(projections, np.array([0.1, 0.01, 0.5]))
    assert np.diff(found.indptr).tolist() == [100, 10, 500]
    strongest = np.argsort(-projections[:, 1])[:10]
    assert set(found[:, [1]].nonzero()[0].tolist()) == set(strongest.tolist())


def test_a_masked_token_is_neither_shown_nor_marked():
    kept = np.arange(1000) % 10 != 0
    on = csc_array(among(csr_array(np.ones((900, 1))), kept))
    own = Sampler("x" * 1000, 8, np.random.default_rng(0)).feature("", on, 0)
    assert own.active.tolist() == np.flatnonzero(kept).tolist()
    assert kept[np.concatenate(own.deciles)].all()


def test_an_equally_active_feature_is_not_shown_by_its_first_places():
    on = csc_array(np.ones((1000, 1)))
    own = Sampler("x" * 1000, 8, np.random.default_rng(0)).feature("", on, 0)
    assert own.deciles[0].mean() == pytest.approx(500, abs=100)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"trials": 11}, "`trials` must be at most 10"), ({"features": 0}, "`features` must be above 0")],
)
def test_settings_out_of_range_are_refused(change: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        StudyConfig(**{**vars(CONFIG), **change})
