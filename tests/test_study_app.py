import base64
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import itsdangerous
import pytest

from hsae.study.app import HEADERS, create_app, runs
from hsae.study.forms import LIMIT
from hsae.study.store import Store
from hsae.study.trials import Kind, Session, Snippet, Trials
from tests.study import ARMS, SHORT, Page, Quick, Rater, process, serving, study, study_at, write

SECRET = "s" * 64
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&lt;"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def everything(changes: dict[str, object]) -> Trials:
    """A study whose raters are asked about every trial that there is; `changes` are to all trials."""
    n = len(ARMS) * 2
    found = study(Session(n, n, n, 3, 3), features=2)
    return replace(found, trials=tuple(replace(trial, **changes) for trial in found.trials))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store(tmp_path_factory.mktemp("study") / "study.sqlite", study(SHORT), "a" * 64)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def url(store: Store) -> Iterator[str]:
    with serving(create_app(store.trials, store, SECRET)) as address:
        yield address


@pytest.fixture
def rater(url: str) -> Iterator[Rater]:
    with Rater(url) as client:
        yield client


@pytest.fixture
def other(url: str) -> Iterator[Rater]:
    with Rater(url) as client:
        yield client


def n_stored(store: Store) -> int:
    return len(store.responses().responses)


# A session


def test_a_session_from_consent_to_thanks(store: Store, rater: Rater):
    before = n_stored(store)
    first = rater.join()
    assert "Question 1 of 8" in first.text
    assert rater.get("/done").headers["location"] == "/trial"
    assert len(set(rater.answer_all())) == 8
    assert "Thank you" in rater.page("/done").text
    assert rater.get("/").headers["location"] == "/trial"
    assert n_stored(store) - before == 8


def test_without_a_session_every_page_leads_to_the_start(rater: Rater):
    assert [rater.get(path).headers["location"] for path in ("/trial", "/done")] == ["/", "/trial"]
    assert "Take part" in rater.page("/").text


def test_consent_is_asked_for(rater: Rater):
    response = rater.post("/consent", data=rater.page("/").hidden)
    assert response.status_code == 422
    assert "Please tick the box" in response.text
    assert rater.get("/trial").headers["location"] == "/"


def test_consent_that_is_sent_twice_makes_one_rater(rater: Rater, other: Rater):
    form = {**rater.page("/").hidden, "consent": "yes"}
    other.cookies = httpx.Cookies(rater.cookies)
    trials = []
    for client in (rater, other):
        assert client.post("/consent", data=form).status_code == 303
        trials.append(client.page().hidden["trial"])
    assert trials[0] == trials[1]


def test_a_code_goes_on_in_another_browser_and_a_wrong_one_does_not(rater: Rater, other: Rater):
    page = rater.join()
    rater.answer(page)
    code = page.text.split("another browser: ")[1].split()[0]
    form = other.page("/").hidden
    for wrong in ("", "0000000000", "x" * 5000, "'; DROP TABLE raters; --", "é\x00"):
        response = other.post("/resume", data={**form, "code": wrong})
        assert response.status_code == 422
        assert "There is no such code" in response.text
    assert other.post("/resume", data={**form, "code": code.lower()}).headers["location"] == "/trial"
    assert other.page().hidden["trial"] == rater.page().hidden["trial"]


def test_a_rater_who_was_forgotten_starts_anew(store: Store, rater: Rater):
    page = rater.join()
    store.forget(page.text.split("another browser: ")[1].split()[0].replace("-", ""))
    assert rater.get("/trial").headers["location"] == "/"
    assert rater.join().hidden["trial"]


# Refusals


def forged(content: object, key: str) -> str:
    return itsdangerous.TimestampSigner(key).sign(base64.b64encode(json.dumps(content).encode())).decode()


def test_a_forged_session_is_no_session(store: Store, rater: Rater):
    code = store.join("somebody's form")
    cut = forged({"rater": code}, SECRET)[:-4]  # not one character less: the last one carries bits that mean nothing
    for cookie in (forged({"rater": code}, "guess"), "nonsense", "", cut, cut + "____"):
        response = rater.get("/trial", headers={"Cookie": f"study={cookie}"})
        assert response.headers["location"] == "/"
    response = rater.get("/trial", headers={"Cookie": f"study={forged({'rater': code, 'csrf': 'x'}, SECRET)}"})
    assert response.status_code == 200  # so the test forges well


@pytest.mark.parametrize("path", ["/consent", "/resume", "/answer"])
@pytest.mark.parametrize("token", [None, "", "wrong", "é", "another's"])
def test_a_form_without_the_sessions_token_is_refused(
    store: Store, rater: Rater, other: Rater, path: str, token: str | None
):
    page, before = rater.join(), n_stored(store)
    sent = {**page.hidden, "consent": "yes", "choice": "1", "rating": "1"}
    sent["csrf"] = other.page("/").hidden["csrf"] if token == "another's" else token or ""
    if token is None:
        del sent["csrf"]
    assert rater.post(path, data=sent).status_code == 403
    with httpx.Client(base_url=str(rater.base_url), trust_env=False) as stranger:
        assert stranger.post(path, data=sent).status_code == 403
    assert n_stored(store) == before


def test_a_trial_that_is_not_ones_own_or_not_yet_is_refused(store: Store, rater: Rater):
    page, before = rater.join(), n_stored(store)
    others = {trial.id for trial in store.trials.trials} - {page.hidden["trial"]}
    for trial in (*others, "no such", "", HOSTILE):
        response = rater.post("/answer", data={**page.hidden, "trial": trial, "choice": "1", "rating": "1"})
        assert response.status_code == 409
        assert ("a", {"class": "button", "href": "/"}) in Page(response.text).tags
    assert n_stored(store) == before
    assert rater.page().hidden["trial"] == page.hidden["trial"]


def test_a_form_that_is_sent_again_leads_on_and_stores_nothing(store: Store, rater: Rater):
    first = rater.join()
    rater.answer(first)
    second, before = rater.page(), n_stored(store)
    assert rater.answer(first).headers["location"] == "/trial"
    assert rater.page().hidden["trial"] == second.hidden["trial"]
    assert rater.answer(first, skip="yes").status_code == 409  # an answer that is changed is not passed over in silence
    assert n_stored(store) == before


def to(rater: Rater, kind: Kind) -> Page:
    """Join, and go on to a trial that asks for a rating, or to one that does not."""
    page = rater.join()
    while ("rating" in page.names) != (kind == Kind.clarity):
        rater.answer(page)
        page = rater.page()
    return page


@pytest.mark.parametrize("value", ["", "5", "-1", "1.0", "one", "٣", "0 ", "9" * 5000, "null"])
def test_a_choice_is_one_of_the_options(store: Store, rater: Rater, value: str):
    page = to(rater, Kind.intruder)
    before = n_stored(store)
    assert rater.answer(page, choice=value).status_code == 422
    assert rater.answer(page, rating="1").status_code == 422
    assert n_stored(store) == before


@pytest.mark.parametrize("value", ["", "0", "6", "-1", "3.5", "²"])
def test_a_rating_is_one_of_five(store: Store, rater: Rater, value: str):
    page = to(rater, Kind.clarity)
    before = n_stored(store)
    assert rater.answer(page, rating=value, label="th").status_code == 422
    assert rater.answer(page, choice="1").status_code == 422
    assert n_stored(store) == before


@pytest.mark.parametrize("value", ["x", "1e3", "nan", "٣x", "--5", "-", "9" * 16, "1.5"])
def test_a_time_is_a_number(rater: Rater, value: str):
    assert rater.post("/answer", data={**rater.join().hidden, "skip": "yes", "milliseconds": value}).status_code == 422


@pytest.mark.parametrize(
    ("label", "kept"),
    [
        (HOSTILE, HOSTILE),
        ("  a\x00b\x1b[31m\r\n\tc‮d  ", "a b [31m c d"),
        ("é" * 120, "é" * 120),
        ("", None),
        (" \n", None),
    ],
)
def test_a_label_is_kept_as_text_without_control_characters(store: Store, rater: Rater, label: str, kept: str | None):
    page = to(rater, Kind.clarity)
    assert rater.answer(page, rating="3", label=label).status_code == 303
    assert kept in [r.label for r in store.responses().responses if r.trial == page.hidden["trial"]]


def test_a_label_of_more_than_120_characters_is_refused(rater: Rater):
    response = rater.answer(to(rater, Kind.clarity), rating="3", label="x" * 121)
    assert response.status_code == 422
    assert "may have 120 characters" in response.text


@pytest.mark.parametrize("path", ["/consent", "/resume", "/answer"])
def test_oversized_bodies_are_refused_whether_or_not_they_tell_their_size(rater: Rater, path: str):
    rater.join()
    big = b"label=" + b"x" * LIMIT
    assert rater.post(path, content=big, headers=FORM).status_code == 413
    assert rater.post(path, content=iter([big[:9000], big[9000:]]), headers=FORM).status_code == 413
    assert rater.page()


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"label=\xff", "application/x-www-form-urlencoded", 400),
        (b"label=%ff", "application/x-www-form-urlencoded; charset=utf-8", 400),
        (b"no equals sign", "application/x-www-form-urlencoded", 400),
        (b"a=1&a=2", "application/x-www-form-urlencoded", 400),
        (b"&".join(b"%d=" % i for i in range(17)), "application/x-www-form-urlencoded", 400),
        (b"", "application/x-www-form-urlencoded", 403),
        (b'{"choice": 1}', "application/json", 415),
        (b"--x\r\n", "multipart/form-data; boundary=x", 415),
        (b"choice=1", "", 415),
    ],
)
def test_bodies_that_are_no_forms_are_refused(rater: Rater, body: bytes, kind: str, status: int):
    rater.join()
    response = rater.post("/answer", content=body, headers={"Content-Type": kind})
    assert response.status_code == status
    assert "This did not work" in response.text


def test_addresses_and_methods_that_there_are_not_get_a_page(rater: Rater):
    for method, path, status in (
        ("GET", "/nothing", 404), ("GET", "/docs", 404), ("GET", "/openapi.json", 404), ("GET", "/trial/", 404),
        ("GET", "/static/../store.py", 404), ("GET", "/static/%2e%2e/store.py", 404), ("GET", "/static/", 404),
        ("GET", "/answer", 405), ("POST", "/trial", 405), ("DELETE", "/", 405),
    ):  # fmt: skip
        response = rater.request(method, path)
        assert response.status_code == status, path
        assert "This did not work" in response.text


def test_an_answer_that_cannot_be_stored_is_not_taken_for_stored(rater: Rater, monkeypatch: pytest.MonkeyPatch):
    page = rater.join()

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Store, "answer", full)
    response = rater.answer(page)
    assert response.status_code == 503
    assert "could not be stored" in response.text
    monkeypatch.undo()
    assert rater.answer(page).status_code == 303


def test_no_page_can_be_framed_or_cached_or_load_anything_from_elsewhere(rater: Rater):
    rater.join()
    for path in ("/", "/trial", "/nothing", "/static/study.js"):
        response = rater.get(path)
        assert {name: response.headers.get(name) for name in HEADERS} == HEADERS
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


def test_the_session_is_for_this_site_alone(store: Store, rater: Rater):
    cookie = rater.get("/").headers["set-cookie"].lower()
    assert {"httponly", "samesite=lax", "path=/", "max-age=2592000"} <= set(cookie.split("; "))
    assert "secure" not in cookie
    with serving(create_app(store.trials, store, SECRET, https=True)) as url, Rater(url) as client:
        assert "secure" in client.get("/").headers["set-cookie"].lower()


# What is shown


def test_highlights_are_runs_and_line_ends_are_visible():
    assert runs(Snippet("ab\ncd", (1, 2, 4))) == [("a", False), ("b⏎", True), ("c", False), ("d", True)]
    assert runs(Snippet("ab", ())) == [("ab", False)]
    assert runs(Snippet("", ())) == []


def pages(tmp_path: Path, trials: Trials) -> tuple[dict[str, Page], str]:
    """A rater's pages by trial, and all else that the server sent: headers, cookies, code."""
    found, sent = {}, ""
    store = Store(tmp_path / "study.sqlite", trials, "a" * 64)
    with serving(create_app(trials, store, SECRET)) as url, Rater(url) as rater:
        rater.join()
        while (response := rater.get("/trial")).status_code == 200:
            page = Page(response.text)
            found[page.hidden["trial"]] = page
            answered = rater.answer(page)
            sent += f"{response.text} {response.headers} {answered.headers}"
        for cookie in rater.cookies.jar:
            sent += str(base64.b64decode((cookie.value or "").split(".")[0]))
    store.close()
    return found, sent


def test_pages_differ_only_in_their_text_whatever_their_trials_are_for(tmp_path: Path):
    # Each kind's options are of the same shape: one snippet in which nothing or everything stands out the same way.
    snippet = Snippet("With this same very iron", (5, 6))
    shapes = {Kind.intruder: 5 * ((snippet,),), Kind.odd_child: 5 * ((snippet,) * 2,), Kind.clarity: ((snippet,) * 3,)}
    trials = everything({})
    trials = replace(trials, trials=tuple(replace(t, options=shapes[t.kind]) for t in trials.trials))
    found, _ = pages(tmp_path, trials)
    assert len(found) == len(trials.trials)
    changing = ("value", "max")  # the trial's id, and how far the rater is
    structures = {kind: set() for kind in Kind}
    for trial in trials.trials:
        tags = [
            (tag, *((k, v) for k, v in attributes.items() if attributes.get("type") == "radio" or k not in changing))
            for tag, attributes in found[trial.id].tags
        ]
        structures[trial.kind].add(str(tags))
    assert [len(found) for found in structures.values()] == [1, 1, 1]


def test_nothing_that_is_sent_tells_where_a_trial_is_from(tmp_path: Path):
    trials = everything({"feature": 271828, "density": 0.31415})
    _, sent = pages(tmp_path, trials)
    for word in (
        *ARMS,
        "271828",
        "31415",
        "gold",
        "attention",
        "decile",
        "intruder",
        "odd_child",
        "clarity",
        "answer=",
    ):
        assert word not in sent, word


def test_an_attention_check_shows_what_to_do_and_snippets(tmp_path: Path):
    trials = everything({})
    found, _ = pages(tmp_path, trials)
    for trial in trials.trials:
        assert ("This one is a check" in found[trial.id].text) == bool(trial.instruction)
        for option in trial.options:
            for snippet in option:
                assert snippet.text.replace("\n", "⏎") in found[trial.id].text


def test_hostile_text_in_trials_is_shown_and_not_obeyed(tmp_path: Path):
    options = 5 * ((Snippet(HOSTILE, (0, 1)),),)
    trials = everything({})
    changed = tuple(replace(t, options=options[: len(t.options)], instruction=HOSTILE) for t in trials.trials)
    found, _ = pages(tmp_path, replace(trials, trials=changed))
    for page in found.values():
        assert [tag for tag, _ in page.tags].count("script") == 1
        assert "img" not in {tag for tag, _ in page.tags}
        assert page.text.count(HOSTILE) in (2, 6)


# Many at once, and a server that is killed


def test_24_raters_at_once_have_each_of_50_answers_stored_once(tmp_path: Path):
    path = write(tmp_path)
    with process(path, tmp_path / "study.sqlite") as (_, url), ThreadPoolExecutor(24) as threads:
        asked = list(threads.map(lambda _: Quick(url).rate(), range(24)))
    found = study_at(path, tmp_path / "study.sqlite")
    assert len(found.responses) == 24 * 50
    by_rater: dict[str, list[str]] = {}
    for response in found.responses:
        by_rater.setdefault(response.rater, []).append(response.trial)
    assert sorted(by_rater.values()) == sorted(asked)


def test_a_server_that_is_killed_has_every_answer_that_it_acknowledged(tmp_path: Path):
    path, database = write(tmp_path, Session(8, 4, 4, 2, 2)), tmp_path / "study.sqlite"
    acknowledged: list[list[str]] = [[] for _ in range(4)]
    with process(path, database) as (server, url):
        raters = [Rater(url) for _ in acknowledged]
        for rater in raters:
            rater.join()

        def rate(rater: Rater, done: list[str]) -> None:
            try:
                while True:
                    page = rater.page()
                    assert rater.answer(page).status_code == 303
                    done.append(page.hidden["trial"])
            except httpx.TransportError:
                pass

        threads = [threading.Thread(target=rate, args=work) for work in zip(raters, acknowledged, strict=True)]
        for thread in threads:
            thread.start()
        while sum(map(len, acknowledged)) < 30:
            time.sleep(0.005)
        server.kill()
        for thread in threads:
            thread.join()
    with process(path, database) as (_, url):
        for rater, done in zip(raters, acknowledged, strict=True):
            rater.base_url = url
            left = rater.answer_all()  # with the session from before
            # The server may have stored one more, of which nobody heard.
            assert 20 - len(done) - len(left) in (0, 1)
            assert not set(done) & set(left)
            rater.close()
    found = study_at(path, database).responses
    assert len(found) == 4 * 20
    assert {trial for done in acknowledged for trial in done} <= {response.trial for response in found}
