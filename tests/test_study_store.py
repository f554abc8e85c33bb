import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import pytest
from scipy.stats import chi2_contingency

from hsae.study import responses
from hsae.study.store import CODE_ALPHABET, Answer, Outcome, Place, Store, assign, new_code, read_code, secret
from hsae.study.trials import Kind, Role, Session, Trials
from tests.study import ARMS, SHORT, study

STUDY = study(SHORT)
BY_ID = {trial.id: trial for trial in STUDY.trials}


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    opened = Store(tmp_path / "study.sqlite", STUDY, "a" * 64, Random(0), clock)
    yield opened
    opened.close()


def current(store: Store, code: str) -> Place:
    place = store.current(code)
    assert place is not None
    return place


def some(trial: str) -> Answer:
    return Answer(rating=2, label="th") if BY_ID[trial].kind == Kind.clarity else Answer(choice=3)


# Assignment


def assignments(n: int, trials: Trials = STUDY) -> list[list[str]]:
    """What that many raters are asked, one after another."""
    random, counts, sessions = Random(0), Counter(), []
    for _ in range(n):
        sessions.append(assign(trials, counts, random))
        counts.update(sessions[-1])
    return sessions


def test_a_session_has_as_many_of_each_sort_as_asked_for_and_no_trial_twice():
    for session in assignments(50):
        sorts = Counter(t.kind if t.role == Role.main else t.role for t in map(BY_ID.__getitem__, session))
        assert sorts == asdict(SHORT)
        assert len(set(session)) == len(session) == 8


def test_trials_of_a_sort_are_asked_equally_often():
    for kind in Kind:
        ids = [t.id for t in STUDY.trials if t.kind == kind and t.role == Role.main]
        counts = Counter(trial for session in assignments(41) for trial in session)
        assert max(counts[i] for i in ids) - min(counts[i] for i in ids) <= 1


def test_a_rater_is_asked_about_a_feature_once_per_kind_and_arm_while_there_are_others():
    again = tuple(replace(t, id=f"again-{t.id}") for t in STUDY.trials if t.role == Role.main)
    session = Session(intruder=12, odd_child=12, clarity=13, gold=1, attention=1)
    doubled = Trials("kjv", 0, session, STUDY.trials + again)
    by_id = {t.id: t for t in doubled.trials}
    for asked in assignments(20, doubled):
        trials = [by_id[i] for i in asked if by_id[i].role == Role.main]
        features = Counter((t.arm, t.feature, t.kind) for t in trials)
        # There are twelve features of each kind: only the thirteenth trial on clarity has to ask about one again.
        assert Counter(features.values()) == {1: 35, 2: 1}


def test_a_trials_place_in_the_session_tells_nothing_of_its_arm_or_role():
    table = Counter(
        (BY_ID[trial].arm or BY_ID[trial].role, position)
        for session in assignments(600)
        for position, trial in enumerate(session)
    )
    rows = [[table[what, position] for position in range(8)] for what in (*ARMS, Role.gold, Role.attention)]
    p = chi2_contingency(rows).pvalue  # pyright: ignore[reportAttributeAccessIssue]
    assert p > 0.01  # of one fixed draw
    assert sum(map(sum, rows)) == 600 * 8


def test_ties_are_broken_by_chance():
    first = [assign(STUDY, {}, Random(seed)) for seed in range(40)]
    assert len({tuple(session) for session in first}) == 40
    assert {trial for session in first for trial in session} == set(BY_ID)


# Raters


def test_the_same_consent_twice_makes_one_rater(store: Store):
    code = store.join("form")
    assert store.join("form") == code
    assert store.join("another form") != code
    assert store.knows(code)
    assert not store.knows("0000000000")
    assert store.current("0000000000") is None


def test_codes_are_ten_characters_that_are_not_mistaken_for_others():
    codes = {new_code() for _ in range(1000)}
    assert len(codes) == 1000
    assert set("".join(codes)) == set(CODE_ALPHABET)
    assert {len(code) for code in codes} == {10}
    assert not set("ILOU") & set(CODE_ALPHABET)


@pytest.mark.parametrize("text", ["0a1bc-def12", " OAIBC DEFL2\n", "oalbc-def1-2"])
def test_a_code_is_read_however_it_is_written(text: str):
    assert read_code(text) == "0A1BCDEF12"


# Answers


def test_answers_lead_through_the_session_and_come_out_as_they_went_in(store: Store, clock: Clock):
    code, expected = store.join("form"), []
    for position in range(1, 9):
        place = current(store, code)
        assert place.position == position
        clock.now += 2
        given = Answer() if position == 4 else some(place.trial)
        assert store.answer(code, place.trial, given, 1500 + position) == Outcome.stored
        expected.append(
            (position, place.trial, given.choice, given.rating, given.label, position == 4, 1500 + position)
        )
    assert store.current(code) is None
    found = store.responses()
    alias = found.responses[0].rater
    assert [tuple(asdict(row).values()) for row in found.responses] == [(alias, *row) for row in expected]
    assert responses.loads(responses.dumps(found)) == found


def test_the_code_itself_is_in_no_response(store: Store):
    code = store.join("form")
    place = current(store, code)
    store.answer(code, place.trial, some(place.trial), None)
    assert code not in responses.dumps(store.responses())


def test_an_answer_again_is_neither_stored_nor_changes_what_was(store: Store):
    code = store.join("form")
    first = current(store, code).trial
    store.answer(code, first, some(first), None)
    before = store.responses()
    assert store.answer(code, first, some(first), None) == Outcome.repeated
    assert store.answer(code, first, Answer(), None) == Outcome.refused
    assert store.responses() == before


def test_only_the_current_trial_can_be_answered(store: Store):
    code, other = store.join("form"), store.join("another form")
    later = [trial for trial in BY_ID if trial != current(store, code).trial]
    assert {store.answer(code, trial, some(trial), None) for trial in later} == {Outcome.refused}
    assert store.answer(code, "no such", Answer(choice=3), None) == Outcome.refused
    assert store.answer("0000000000", current(store, other).trial, Answer(), None) == Outcome.refused
    assert store.responses().responses == ()


@pytest.mark.parametrize(("measured", "stored"), [(700, 700), (9000, 2000), (-5, 0), (None, 2000)])
def test_a_time_is_kept_within_what_passed_here(store: Store, clock: Clock, measured: int | None, stored: int):
    code = store.join("form")
    for _ in range(2):  # the second trial's turn begins with the first one's answer
        clock.now += 2
        place = current(store, code)
        store.answer(code, place.trial, some(place.trial), measured)
    assert [row.milliseconds for row in store.responses().responses] == [stored, stored]


def test_a_clock_that_is_set_back_gives_no_negative_time(store: Store, clock: Clock):
    code = store.join("form")
    clock.now -= 60
    place = current(store, code)
    store.answer(code, place.trial, Answer(), 500)
    assert store.responses().responses[0].milliseconds == 0


def test_threads_that_answer_the_same_trial_store_it_once(store: Store):
    code = store.join("form")
    trial = current(store, code).trial
    outcomes = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(store.answer(code, trial, some(trial), None)))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(outcomes) == {Outcome.stored: 1, Outcome.repeated: 15}
    assert len(store.responses().responses) == 1


def test_who_is_forgotten_leaves_nothing_in_the_files(store: Store, tmp_path: Path):
    kept, code = store.join("form"), store.join("another form")
    for rater in (kept, code):
        for _ in range(8):
            trial = current(store, rater).trial
            store.answer(rater, trial, replace(some(trial), label="mark-of-" + rater), None)
    aliases = {row.rater for row in store.responses().responses}
    alias = store.forget(code)
    assert {row.rater for row in store.responses().responses} == aliases - {alias}
    assert not store.knows(code)
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert code.encode() not in content
    assert alias.encode() not in content
    assert kept.encode() in content
    with pytest.raises(ValueError, match="`code` must be that of a rater; not '0000000000'"):
        store.forget("0000000000")


# The file


def reopen(path: Path, sha256: str = "a" * 64) -> Store:
    return Store(path, STUDY, sha256)


def test_a_database_that_is_opened_again_has_everything(store: Store, tmp_path: Path):
    code = store.join("form")
    trial = current(store, code).trial
    store.answer(code, trial, some(trial), None)
    again = reopen(tmp_path / "study.sqlite")
    assert again.responses() == store.responses()
    assert again.current(code) == store.current(code)
    again.close()


def test_every_commit_reaches_the_disk(store: Store):
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_a_transaction_that_fails_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hsae.study.store.assign", lambda *_: ["twice", "twice"])
    with pytest.raises(sqlite3.IntegrityError):
        store.join("form")
    monkeypatch.undo()
    assert current(store, store.join("form")).position == 1


def test_a_database_of_other_trials_is_refused(store: Store, tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds answers to other trials \(sha256 aaaaaaaaaaaa, not bbbbbbbbbbbb\)"):
        reopen(tmp_path / "study.sqlite", "b" * 64)
    assert store.knows(store.join("form"))


def test_what_is_no_database_of_a_study_is_refused(tmp_path: Path):
    (tmp_path / "text").write_text("not a database at all, but long enough to be looked at" * 20)
    with sqlite3.connect(tmp_path / "other") as db:
        db.execute("CREATE TABLE recipes (name TEXT)")
    db.close()
    for name in ("text", "other"):
        with pytest.raises(ValueError, match="is not the database of a study"):
            reopen(tmp_path / name)


def test_only_the_owner_can_read_the_database_and_the_secret(store: Store, tmp_path: Path):
    store.join("form")
    key = secret(tmp_path / "study.secret")
    files = list(tmp_path.iterdir())
    assert len(files) == 4  # with SQLite's journal and index
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert secret(tmp_path / "study.secret") == key
    assert len(key) == 64
    assert secret(tmp_path / "other.secret") != key


def test_a_damaged_secret_is_refused(tmp_path: Path):
    (tmp_path / "study.secret").write_text("short")
    with pytest.raises(ValueError, match=r"study.secret` must be 64: remove it, and every session ends; not 5"):
        secret(tmp_path / "study.secret")
