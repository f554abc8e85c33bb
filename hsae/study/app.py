"""The web app that raters use. Nothing that it sends tells where a trial's feature is from or what is right.

Handlers call the store directly, in the one event loop: an answer takes it a millisecond, and SQLite lets one process
write at a time anyway.
"""

import secrets
import sqlite3
import sys
from dataclasses import astuple
from functools import cache
from itertools import groupby
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hsae.study import forms
from hsae.study.responses import LABEL_CHARS
from hsae.study.store import Outcome, Store, read_code
from hsae.study.trials import Snippet, Trials

SESSION_DAYS = 30
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Form = Annotated[dict[str, str], Depends(forms.form)]


def create_app(trials: Trials, store: Store, secret: str, https: bool = False) -> FastAPI:
    """The app. `secret` signs the sessions; with `https`, browsers send their session over HTTPS only."""
    site = Site(trials, store)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.mount("/static", StaticFiles(packages=[("hsae.study", "static")]))
    app.get("/")(site.start)
    app.post("/consent")(site.consent)
    app.post("/resume")(site.resume)
    app.get("/trial")(site.trial)
    app.post("/answer")(site.answer)
    app.get("/done")(site.done)
    app.exception_handler(StarletteHTTPException)(site.refuse)
    app.exception_handler(sqlite3.Error)(site.unavailable)
    app.exception_handler(ClientDisconnect)(site.gone)
    app.add_middleware(
        SessionMiddleware,
        secret_key=secret,
        session_cookie="study",
        max_age=SESSION_DAYS * 24 * 3600,
        same_site="lax",
        https_only=https,
    )
    app.add_middleware(Headers)
    return app


class Headers:
    """ASGI middleware: `HEADERS` on every response."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class Site:
    """The pages of a study, and where each form leads. A session holds a `csrf` token and, once joined, the `rater`."""

    def __init__(self, trials: Trials, store: Store):
        self._store = store
        self._trials = {trial.id: trial for trial in trials.trials}
        self._total = sum(astuple(trials.session))
        self._environment = Environment(
            loader=PackageLoader("hsae.study"),
            autoescape=select_autoescape(),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals |= {"days": SESSION_DAYS, "label_chars": LABEL_CHARS, "total": self._total}
        self._environment.filters |= {"runs": runs, "grouped": grouped}

    async def start(self, request: Request) -> Response:
        """GET /: what the study is; straight on to the trial for who has begun."""
        return _to("/trial") if self._rater(request) else self._start(request)

    async def consent(self, request: Request, form: Form) -> Response:
        """POST /consent: a new rater."""
        if self._rater(request):
            return _to("/trial")
        if form.get("consent") != "yes":
            return self._start(request, 422, consent="Please tick the box if you agree.")
        request.session["rater"] = self._store.join(request.session["csrf"])
        return _to("/trial")

    async def resume(self, request: Request, form: Form) -> Response:
        """POST /resume: go on, in another browser."""
        code = read_code(form.get("code", ""))
        if not self._store.knows(code):
            return self._start(request, 422, resume="There is no such code. Please check every character.")
        request.session["rater"] = code
        return _to("/trial")

    async def trial(self, request: Request) -> Response:
        """GET /trial: the current one."""
        code = self._rater(request)
        if not code:
            return _to("/")
        place = self._store.current(code)
        if not place:
            return _to("/done")
        trial = self._trials[place.trial]
        return self._page("trial.html", trial=trial, place=place, code=code, csrf=request.session["csrf"])

    async def answer(self, request: Request, form: Form) -> Response:
        """POST /answer: to the current trial."""
        code = self._rater(request)
        if not code:
            return _to("/")
        trial = self._trials.get(form.get("trial", ""))
        if trial:
            given, took = forms.answer(trial, form), forms.milliseconds(form)
            if self._store.answer(code, trial.id, given, took) != Outcome.refused:
                return _to("/trial")
        raise HTTPException(409, "This was not your current question, and nothing was changed. First answers stand.")

    async def done(self, request: Request) -> Response:
        """GET /done: after the last trial."""
        code = self._rater(request)
        if not code or self._store.current(code):
            return _to("/trial")
        return self._page("done.html", code=code)

    async def refuse(self, _: Request, error: StarletteHTTPException) -> Response:
        """A page for whatever cannot be done."""
        page = self._page("error.html", error.status_code, detail=error.detail)
        page.headers.update(error.headers or {})
        return page

    async def unavailable(self, _: Request, error: sqlite3.Error) -> Response:
        """A page for when the database cannot be read or written, so that nobody takes an answer for stored."""
        print(f"error: the database: {error}", file=sys.stderr)
        return self._page("error.html", 503, detail="Your answer could not be stored. Please try again in a minute.")

    async def gone(self, _: Request, __: ClientDisconnect) -> Response:
        """Nobody reads this: the browser left in the middle of its request."""
        return Response(status_code=400)

    def _rater(self, request: Request) -> str | None:
        """The session's rater, unless they were deleted."""
        code = request.session.get("rater")
        return code if code and self._store.knows(code) else None

    def _start(self, request: Request, status: int = 200, **problems: str) -> Response:
        if "csrf" not in request.session:
            request.session["csrf"] = secrets.token_urlsafe(16)
        return self._page("start.html", status, problems=problems, csrf=request.session["csrf"])

    def _page(self, name: str, status: int = 200, **content: object) -> Response:
        return HTMLResponse(self._environment.get_template(name).render(**content), status)


@cache  # many raters see it
def runs(snippet: Snippet) -> list[tuple[str, bool]]:
    """A snippet's text in pieces that are highlighted or not, with its line ends made visible."""
    marks = set(snippet.marks)
    pieces = groupby(enumerate(snippet.text), key=lambda entry: entry[0] in marks)
    return [("".join(char for _, char in piece).replace("\n", "⏎"), marked) for marked, piece in pieces]


def grouped(code: str) -> str:
    """A rater's code as it is easily read and typed."""
    return f"{code[:5]}-{code[5:]}"


def _to(path: str) -> Response:
    return RedirectResponse(path, 303)
