"""The study's SQLite database: who is asked what, and what they answered. An acknowledged answer is on the disk."""

import os
import secrets
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import NamedTuple

from hsae.config import check
from hsae.study.responses import Response, Responses
from hsae.study.trials import Role, Trial, Trials

CODE_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base32: no letters that are read as another character."""
CODE_CHARS = 10

_SCHEMA = (
    "CREATE TABLE study (trials_sha256 TEXT NOT NULL)",
    "CREATE TABLE raters (code TEXT PRIMARY KEY, alias TEXT NOT NULL UNIQUE, token TEXT NOT NULL UNIQUE)",
    # `shown`, in milliseconds since 1970, is NULL until it is the trial's turn; what follows it, until the answer.
    """CREATE TABLE assignments (
        rater TEXT NOT NULL REFERENCES raters (code) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        trial TEXT NOT NULL,
        shown INTEGER,
        choice INTEGER,
        rating INTEGER,
        label TEXT,
        skipped INTEGER,
        milliseconds INTEGER,
        PRIMARY KEY (rater, position),
        UNIQUE (rater, trial)
    ) WITHOUT ROWID""",
)


@dataclass(frozen=True)
class Answer:
    """What a rater says to a trial: a choice, or a rating and perhaps a label; nothing if the trial is skipped."""

    choice: int | None = None
    rating: int | None = None
    label: str | None = None

    @property
    def skipped(self) -> bool:
        """Whether there is neither choice nor rating."""
        return self.choice is None and self.rating is None


class Place(NamedTuple):
    """Where a rater is: position is 1 for the first trial; shown in milliseconds since 1970."""

    position: int
    trial: str
    shown: int


class Outcome(StrEnum):
    """What became of an answer: stored; repeated, the same is stored already; refused, it is not that trial's turn."""

    stored = "stored"
    repeated = "repeated"
    refused = "refused"


class Store:
    """The database of one trials.json, made if there is none; safe to use from several threads.

    `random` draws the assignments, `clock` gives seconds since 1970.
    Raises ValueError, in one line, for a file that is no such database or one of other trials.
    """

    def __init__(
        self,
        path: Path,
        trials: Trials,
        trials_sha256: str,
        random: Random | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self.trials = trials
        self.trials_sha256 = trials_sha256
        self._random = random or secrets.SystemRandom()
        self._clock = clock
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # codes in it are credentials; SQLite gives its other files the same mode
        self._db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            self._open(path)
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the database; the store is of no use then."""
        self._db.close()

    def join(self, token: str) -> str:
        """The code of a new rater, to whom trials are assigned. The same token again gives the same rater."""
        with self._transaction() as db:
            known = db.execute("SELECT code FROM raters WHERE token = ?", (token,)).fetchone()
            if known:
                return known[0]
            code, alias = new_code(), new_code()
            assigned = dict(db.execute("SELECT trial, COUNT(*) FROM assignments GROUP BY trial"))
            rows = [(code, i, trial) for i, trial in enumerate(assign(self.trials, assigned, self._random), 1)]
            db.execute("INSERT INTO raters VALUES (?, ?, ?)", (code, alias, token))
            db.executemany("INSERT INTO assignments (rater, position, trial) VALUES (?, ?, ?)", rows)
            self._show(code, 1)
            return code

    def knows(self, code: str) -> bool:
        """Whether there is such a rater."""
        with self._lock:
            return self._db.execute("SELECT 1 FROM raters WHERE code = ?", (code,)).fetchone() is not None

    def current(self, code: str) -> Place | None:
        """The first trial that a rater has not answered; None after the last."""
        with self._lock:
            return self._current(code)

    def answer(self, code: str, trial: str, answer: Answer, milliseconds: int | None) -> Outcome:
        """Store an answer to the rater's current trial, and no other; it is on the disk when this returns.

        `milliseconds` is what the rater's browser measured, kept within what passed here since it was the trial's turn;
        that is taken if it is None.
        """
        with self._transaction() as db:
            place = self._current(code)
            if place is not None and place.trial == trial:
                elapsed = max(self._now() - place.shown, 0)
                took = elapsed if milliseconds is None else min(max(milliseconds, 0), elapsed)
                db.execute(
                    "UPDATE assignments SET choice = ?, rating = ?, label = ?, skipped = ?, milliseconds = ? "
                    "WHERE rater = ? AND position = ?",
                    (*astuple(answer), answer.skipped, took, code, place.position),
                )
                self._show(code, place.position + 1)
                return Outcome.stored
            stored = db.execute(
                "SELECT choice, rating, label FROM assignments WHERE rater = ? AND trial = ? AND skipped IS NOT NULL",
                (code, trial),
            ).fetchone()
            return Outcome.repeated if stored == astuple(answer) else Outcome.refused

    def responses(self) -> Responses:
        """Every answer, under the raters' aliases: with a code, which is not to be shown, anyone can answer."""
        with self._lock:
            rows = self._db.execute(
                "SELECT alias, position, trial, choice, rating, label, skipped, milliseconds "
                "FROM assignments JOIN raters ON rater = code WHERE skipped IS NOT NULL ORDER BY alias, position"
            ).fetchall()
        return Responses(
            self.trials_sha256, tuple(Response(*row[:-2], skipped=bool(row[-2]), milliseconds=row[-1]) for row in rows)
        )

    def forget(self, code: str) -> str:
        """Delete a rater with all answers. Returns their alias. Raises ValueError if there is no such rater."""
        with self._transaction() as db:
            found = db.execute("DELETE FROM raters WHERE code = ? RETURNING alias", (code,)).fetchone()
        check("code", code, "that of a rater", found is not None)
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the journal, too, holds what was deleted
        return found[0]

    def _open(self, path: Path) -> None:
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            for pragma in ("synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
                self._db.execute(f"PRAGMA {pragma}")
            with self._transaction() as db:
                tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                if not tables:
                    for statement in _SCHEMA:
                        db.execute(statement)
                    db.execute("INSERT INTO study VALUES (?)", (self.trials_sha256,))
                check("tables", sorted(tables), "a study's", not tables or tables == {"study", "raters", "assignments"})
                (sha256,) = db.execute("SELECT trials_sha256 FROM study").fetchone()
        except (sqlite3.DatabaseError, ValueError) as error:
            raise ValueError(f"{path} is not the database of a study ({error}).") from None
        if sha256 != self.trials_sha256:
            raise ValueError(
                f"{path} holds answers to other trials (sha256 {sha256[:12]}, not {self.trials_sha256[:12]}): "
                "give another database."
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection, in a transaction that ends with the block: committed, or rolled back after an error."""
        with self._lock, self._db as db:
            db.execute("BEGIN IMMEDIATE")
            yield db

    def _current(self, code: str) -> Place | None:
        row = self._db.execute(
            "SELECT position, trial, shown FROM assignments WHERE rater = ? AND skipped IS NULL "
            "ORDER BY position LIMIT 1",
            (code,),
        ).fetchone()
        return Place(*row) if row else None

    def _show(self, code: str, position: int) -> None:
        """Note that it is a trial's turn: its page is what the browser is sent to next."""
        self._db.execute(
            "UPDATE assignments SET shown = ? WHERE rater = ? AND position = ?", (self._now(), code, position)
        )

    def _now(self) -> int:
        return round(1000 * self._clock())


def new_code() -> str:
    """50 random bits: enough that no guess finds a rater."""
    return "".join(secrets.choice(CODE_ALPHABET) for _ in range(CODE_CHARS))


def read_code(text: str) -> str:
    """A code as it was given out, however a person wrote it: in small letters, with spaces, O for 0."""
    return "".join(text.upper().replace("-", "").split()).translate(str.maketrans("OIL", "011"))


def assign(study: Trials, assigned: Mapping[str, int], random: Random) -> list[str]:
    """The trials of a session, in the order in which they are asked: of each sort those assigned least often so far.

    Ties are broken at random, and so is the order. No two of one sort are of the same arm, feature and kind, as long
    as there are enough others.
    """
    chosen: list[str] = []
    for sort, wanted in asdict(study.session).items():
        pool = [trial for trial in study.trials if _sort(trial) == sort]
        random.shuffle(pool)
        pool.sort(key=lambda trial: assigned.get(trial.id, 0))
        seen: Counter[tuple[str, int, str]] = Counter()
        ranked = []
        for trial in pool:
            what = trial.arm, trial.feature, trial.kind
            ranked.append((seen[what], trial.id))
            seen[what] += 1
        ranked.sort(key=lambda entry: entry[0])
        chosen += [trial for _, trial in ranked[:wanted]]
    random.shuffle(chosen)
    return chosen


def _sort(trial: Trial) -> str:
    return trial.kind if trial.role == Role.main else trial.role


def secret(path: Path) -> str:
    """The key that sessions are signed with, from a file that only its owner can read; made if there is none.

    Raises ValueError if the file holds no key.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)  # unlike a rename, it fails if another process was first
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
    key = path.read_text(encoding="utf-8", errors="replace")
    check(f"characters of {path}", len(key), "64: remove it, and every session ends", len(key) == 64)
    return key
