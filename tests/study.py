"""A small study, its app as a server, and raters without a browser."""

import hashlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode

import httpx
import uvicorn
from fastapi import FastAPI

from hsae.study.responses import Responses
from hsae.study.store import Store
from hsae.study.trials import Kind, Role, Session, Snippet, Trial, Trials, dumps, loads

ARMS = ("arm-level1", "arm-topk", "arm-random")
LINES = (
    "That thou shouldst think there is the truth",
    "And with the other fling it at thy face",
    "The king is come; deal mildly with his youth\nFor the",
    "I thank thee, gentle servant. What think you",
    "My mother: father and mother is man and wife",
    "Why, this it is: my heart accords thereto",
    "Farewell, thou art too dear for my possessing",
    "With this same very iron to burn them out",
)


def marked(line: str, pattern: str) -> Snippet:
    """A line of which what matches is highlighted."""
    return Snippet(line, tuple(i for match in re.finditer(pattern, line) for i in range(*match.span())))


def trial(n: int, kind: Kind, role: Role = Role.main, arm: str = "", feature: int = 0, lines: int = 3) -> Trial:
    """A trial on "th" whose intruder has other letters highlighted; always of the same shape."""
    n_options = 1 if kind == Kind.clarity else 5
    per_option = {Kind.intruder: 1, Kind.odd_child: 2, Kind.clarity: lines}[kind]
    answer = None if kind == Kind.clarity else n % 5
    options = tuple(
        tuple(marked(LINES[(n + i + j) % 8], "[iy]s?" if i == answer else "[Tt]h") for j in range(per_option))
        for i in range(n_options)
    )
    instruction = "This one is a check: please answer 4, whatever you see below." if role == Role.attention else ""
    decile = None if n % 2 else 9
    return Trial(f"{n * 7919:08x}", kind, role, arm, feature, 0.0123, decile, options, answer, instruction)


def study(session: Session, features: int = 4) -> Trials:
    """As many features of each of the arms, each with a trial of each kind; a gold and a check of each kind."""
    n = iter(range(1, 10**6))
    main = [trial(next(n), kind, Role.main, arm, f) for arm in ARMS for f in range(features) for kind in Kind]
    extra = [trial(next(n), kind, role) for role in (Role.gold, Role.attention) for kind in Kind]
    return Trials("kjv", 0, session, (*main, *extra))


SHORT = Session(intruder=3, odd_child=1, clarity=2, gold=1, attention=1)
FIFTY = Session(intruder=22, odd_child=11, clarity=11, gold=3, attention=3)


def write(folder: Path, session: Session = FIFTY, features: int = 8) -> Path:
    """A trials.json."""
    path = folder / "trials.json"
    path.write_text(dumps(study(session, features)), encoding="utf-8")
    return path


def study_at(trials: Path, database: Path) -> Responses:
    """What a database holds."""
    content = trials.read_bytes()
    store = Store(database, loads(content.decode()), hashlib.sha256(content).hexdigest())
    found = store.responses()
    store.close()
    return found


# Servers


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The address of a server that runs in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def process(trials: Path, database: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`hsae study serve` and its address."""
    command = [sys.executable, "-m", "hsae", "study", "serve", "--port", "0"]
    command += ["--trials", str(trials), "--database", str(database)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout
            yield running, running.stdout.readline().split()[-1]
        finally:
            running.kill()


# Raters


class Page(HTMLParser):
    """A page's tags with their attributes, its forms' hidden fields, and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        inputs = [attributes for tag, attributes in self.tags if tag == "input"]
        self.hidden = {str(i["name"]): i["value"] or "" for i in inputs if i.get("type") == "hidden"}
        self.names = {i["name"] for i in inputs}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


class Rater(httpx.Client):
    """A browser without JavaScript. It does not follow redirects by itself."""

    def __init__(self, url: str):
        # Certificates take long to read and are of no use here.
        super().__init__(base_url=url, verify=False, trust_env=False, timeout=60)

    def page(self, path: str = "/trial") -> Page:
        """A page that is there."""
        response = self.get(path)
        assert response.status_code == 200, response.text
        return Page(response.text)

    def join(self) -> Page:
        """Consent; the first trial."""
        response = self.post("/consent", data={**self.page("/").hidden, "consent": "yes"})
        assert (response.status_code, response.headers["location"]) == (303, "/trial")
        return self.page()

    def answer(self, page: Page, **fields: str) -> httpx.Response:
        """Answer the trial of a page: as given, or the first option, or a rating and a label."""
        some = {"rating": "5", "label": "th"} if "rating" in page.names else {"choice": "0"}
        return self.post("/answer", data={**page.hidden, **(fields or some)})

    def answer_all(self) -> list[str]:
        """Go on until the end. The trials, in their order."""
        trials = []
        while (response := self.get("/trial")).status_code == 200:
            page = Page(response.text)
            trials.append(page.hidden["trial"])
            assert self.answer(page).status_code == 303
        assert response.headers["location"] == "/done"
        return trials


class Quick:
    """A rater who costs little; notes how long each request took, in milliseconds."""

    def __init__(self, url: str):
        self.times: list[float] = []
        self._connection = HTTPConnection(url.removeprefix("http://"))
        self._headers = {"Content-Type": "application/x-www-form-urlencoded"}

    def request(self, method: str, path: str, fields: dict[str, str] | None = None) -> str:
        """A page's text; "" for one that leads elsewhere."""
        start = time.perf_counter()
        self._connection.request(method, path, urlencode(fields or {}), self._headers)
        response = self._connection.getresponse()
        text = response.read().decode()
        self.times.append(1000 * (time.perf_counter() - start))
        assert response.status in (200, 303), text
        cookie = response.getheader("Set-Cookie")
        if cookie:
            self._headers["Cookie"] = cookie.split(";")[0]
        return text

    def rate(self, pause: float = 0.0, first: float = 0.0) -> list[str]:
        """A whole session, begun after `first` seconds. The trials, in their order."""
        trials = []
        time.sleep(first)
        self.request("POST", "/consent", {**hidden(self.request("GET", "/")), "consent": "yes"})
        while page := self.request("GET", "/trial"):
            time.sleep(pause)
            self.request("POST", "/answer", {**hidden(page), "choice": "0", "rating": "5", "label": "th"})
            trials.append(hidden(page)["trial"])
        self.close()
        return trials

    def close(self) -> None:
        """Hang up; the next request calls again."""
        self._connection.close()


def hidden(page: str) -> dict[str, str]:
    """The hidden fields of a page's (first) form."""
    return dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page))
