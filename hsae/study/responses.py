"""What raters answered, as `hsae study export` writes it and the stage `score_study` reads it: responses.jsonl."""

import json
from dataclasses import asdict, dataclass

from hsae.config import check
from hsae.study.trials import OPTIONS, record

FORMAT = "hsae-responses-1"
RATINGS = range(1, 6)
LABEL_CHARS = 120


@dataclass(frozen=True, order=True)
class Response:
    """An answer, or a trial that was skipped.

    rater: anonymous code. position: 1 for the rater's first trial. choice: index of an option (intruder, odd_child).
    rating, label: of clarity. milliseconds: from when the page was shown until it was answered, by the rater's browser.
    """

    rater: str
    position: int
    trial: str
    choice: int | None
    rating: int | None
    label: str | None
    skipped: bool
    milliseconds: int


@dataclass(frozen=True)
class Responses:
    """All answers to the trials whose trials.json has this sha256 ("" if nobody was asked yet)."""

    trials_sha256: str
    responses: tuple[Response, ...]


def dumps(found: Responses) -> str:
    """responses.jsonl: a header, then an answer a line, by rater and position. Nothing at all if nobody was asked."""
    if not found.responses:
        return ""
    header = {"format": FORMAT, "trials_sha256": found.trials_sha256, "responses": len(found.responses)}
    rows = [header, *(asdict(response) for response in sorted(found.responses, key=lambda r: (r.rater, r.position)))]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def loads(text: str) -> Responses:
    """The answers that a responses.jsonl holds; none for an empty file.

    Raises ValueError, in one line, for a file that is cut off or damaged, or an answer that cannot be.
    """
    if not text:
        return Responses("", ())
    lines = text.removesuffix("\n").split("\n")
    try:
        header, *rows = (json.loads(line) for line in lines)
        check("format", header["format"], FORMAT, header["format"] == FORMAT)
        responses = tuple(record(Response, row) for row in rows)
        sha256, n = header["trials_sha256"], header["responses"]
        check("trials_sha256", sha256, "text", isinstance(sha256, str))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"responses.jsonl is damaged ({error}): run `hsae study export` again.") from None
    check("responses", len(responses), f"as many as the header says, {n}: the file is cut off", len(responses) == n)
    for response in responses:
        _check(response)
    places = {(response.rater, response.position) for response in responses}
    asked = {(response.rater, response.trial) for response in responses}
    check("responses", len(responses), "one for each rater and trial", len(places) == len(asked) == len(responses))
    return Responses(sha256, responses)


def _check(response: Response) -> None:
    name = f"{response.rater}, {response.position}"
    choice, rating, label = response.choice, response.rating, response.label
    check(f"choice of {name}", choice, f"0 to {OPTIONS - 1}", choice is None or choice in range(OPTIONS))
    check(f"rating of {name}", rating, "1 to 5", rating is None or rating in RATINGS)
    short = label is None or (isinstance(label, str) and len(label) <= LABEL_CHARS)
    check(f"label of {name}", label, f"at most {LABEL_CHARS} characters", short)
    check(f"milliseconds of {name}", response.milliseconds, "0 or more", response.milliseconds >= 0)
    answered = (choice is not None) + (rating is not None)
    check(
        f"skipped of {name}", response.skipped, "true just where there is no answer", answered == (not response.skipped)
    )
