"""What browsers send, read with mistrust: every function here raises HTTPException for what is not as it should be."""

import secrets
from urllib.parse import parse_qsl

from fastapi import HTTPException, Request

from hsae.study.responses import LABEL_CHARS, RATINGS
from hsae.study.store import Answer
from hsae.study.trials import OPTIONS, Kind, Trial

LIMIT = 16 * 1024
"""Bytes of a form at most."""


async def form(request: Request) -> dict[str, str]:
    """The fields of a form that a page of this session sent (it holds the session's `csrf` token)."""
    fields = _fields(await _body(request))
    expected = request.session.get("csrf", "")
    if not expected or not secrets.compare_digest(fields.get("csrf", "").encode(), expected.encode()):
        raise HTTPException(403, "This page was not from your current session.")
    return fields


def answer(trial: Trial, fields: dict[str, str]) -> Answer:
    """The answer that a form holds: `choice` from 0, or `rating` and `label`; none of them beside `skip`."""
    if "skip" in fields:
        return Answer()
    if trial.kind == Kind.clarity:
        return Answer(rating=_among(fields, "rating", RATINGS), label=_label(fields.get("label", "")))
    return Answer(choice=_among(fields, "choice", range(OPTIONS)))


def milliseconds(fields: dict[str, str]) -> int | None:
    """What the browser measured; None if it did not, as without JavaScript."""
    text = fields.get("milliseconds", "")
    if not text:
        return None
    if len(text) > 15 or not text.removeprefix("-").isdecimal():
        raise HTTPException(422, "The time must be a number of milliseconds.")
    return int(text)


async def _body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "Only forms are understood here.")
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdecimal()):
        raise HTTPException(400, "The request's length is not a number.")
    body = bytearray()
    if int(length[:20]) <= LIMIT:
        async for chunk in request.stream():
            body += chunk
            if len(body) > LIMIT:
                break
        else:
            return bytes(body)
    # What is left unread must not be taken for the next request.
    raise HTTPException(413, f"A form may have {LIMIT} bytes.", {"Connection": "close"})


def _fields(body: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            body.decode(), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=16
        )
    except ValueError:
        raise HTTPException(400, "The form cannot be read.") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise HTTPException(400, "The form says something twice.")
    return fields


def _among(fields: dict[str, str], name: str, allowed: range) -> int:
    text = fields.get(name, "")
    if text not in map(str, allowed):
        raise HTTPException(422, f"The {name} must be one of {allowed[0]} to {allowed[-1]}.")
    return int(text)


def _label(text: str) -> str | None:
    """The words, without control characters and the like; None if there are none."""
    words = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    if len(words) > LABEL_CHARS:
        raise HTTPException(422, f"The description may have {LABEL_CHARS} characters.")
    return words or None
