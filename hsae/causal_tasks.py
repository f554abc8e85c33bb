"""Tasks for causal tracing, built from the corpus: prompts, counterfactuals of equal length, and what should follow.

A pair is a piece of the corpus and the same piece with one character replaced, such that another class of characters
should come next. No prompt is written by hand: rules say where in a text such a character stands.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Integer
from numpy import ndarray
from torch import Tensor

from hsae.labels import MARKUP, TokenText, context_labels, spans, taxonomy
from hsae.samples import Record, Role, record
from hsae.streams import Stream

SENTENCE_ENDS = ".!?"
BRACKETS = {"round": "()", "square": "[]", "curly": "{}"}
SURE, OFTEN = 0.9, 50  # of a beginning of a word: how likely what follows is, and how often it was seen
KEPT = "pairs on which the model is right, by the log odds that the total effect is measured in"
CLUSTER = 512  # characters: pairs from the same piece of the corpus are not independent


class Candidates(NamedTuple):
    """Places in the corpus where a rule applies."""

    ends: Int[ndarray, " n"]
    """Offset of the last character of the prompt."""
    changed: Int[ndarray, " n"]
    """Offset of the character that is replaced."""
    replacements: Int[ndarray, " n"]
    """The token in its place."""


@dataclass(frozen=True)
class Rule:
    """Where a task's pairs are found, and the classes of next characters that they are about."""

    name: str
    targets: Bool[ndarray, " vocab"]
    foils: Bool[ndarray, " vocab"]
    candidates: Candidates


@dataclass(frozen=True)
class Task:
    """Pairs of a task: prompts as a model reads them."""

    targets: Bool[Tensor, " vocab"]
    foils: Bool[Tensor, " vocab"]
    clean: Int[Tensor, "pair pos"]
    corrupt: Int[Tensor, "pair pos"]
    changed: Int[Tensor, " pair"]
    """Position of the replaced character."""
    ends: Int[Tensor, " pair"]
    """Corpus offset of the last character."""

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def clusters(self) -> Int[Tensor, " pair"]:
        """The piece of the corpus that a pair comes from, numbered from 0."""
        return (self.ends // CLUSTER).unique(return_inverse=True)[1]

    def metric(self, logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
        """Log odds of the two classes: logsumexp over the targets - logsumexp over the foils, in nats."""
        return logits[..., self.targets].logsumexp(-1) - logits[..., self.foils].logsumexp(-1)

    @property
    def places(self) -> Int[Tensor, " place"]:
        """Corpus offsets of all characters of the prompts."""
        return (self.ends[:, None] + torch.arange(1 - self.clean.shape[1], 1)).flatten()

    def select(self, kept: Bool[Tensor, " pair"], most: int) -> "Task":
        """The first `most` pairs of those that are kept."""
        index = kept.nonzero()[:most, 0]
        rows = {name: getattr(self, name)[index] for name in ("clean", "corrupt", "changed", "ends")}
        return Task(self.targets, self.foils, **rows)

    def records(self, vocabulary: Sequence[str]) -> list[dict[str, Any]]:
        """The pairs as JSON holds them: offset of the prompt's first character, its text, what is replaced by what."""
        rows = zip(self.clean.tolist(), self.corrupt.tolist(), self.changed.tolist(), self.ends.tolist(), strict=True)
        return [
            {
                "offset": end - len(clean) + 1,
                "prompt": "".join(vocabulary[int(token)] for token in clean),
                "position": position,
                "replacement": vocabulary[corrupt[position]],
            }
            for clean, corrupt, position, end in rows
        ]


@dataclass(frozen=True)
class Kept:
    """How many pairs a task has, and why it has no more."""

    found: int
    """Places where the rule applies."""
    asked: int
    """Of these, put to the model, until enough were right."""
    clean_wrong: int
    """The model prefers the foils after the prompt itself."""
    corrupt_wrong: int
    """Only there: it prefers the targets after the counterfactual too."""
    surplus: int
    """Right on both, but more than were wanted."""
    kept: int
    effect: float | None
    """Mean effect of the replaced character on the log odds of the pairs that are kept, nats; None without one.

    They are those on which the model is right by these very log odds: this flatters it.
    """
    effect_asked: float | None
    """The same of all pairs that were asked, right or wrong."""


def rules(tokens: Integer[ndarray, " corpus"], vocabulary: Sequence[str], train_end: int) -> list[Rule]:
    """All tasks that the corpus supports, whether or not the model does.

    sentence_case: upper or lower case after a full stop (comma). speaker_colon: the colon after a name that follows an
    empty line (a line). speaker_case: names go on in capitals (after a small letter). bracket_<kind>: the closing one
    of an opening one (a blank). word_end: the word is complete (is not), as the first `train_end` characters say.
    next_vowel: a vowel (a consonant) comes next, likewise. q_u: u after q; a control, as only the last character
    matters. <markup>_end: the last character of wiki markup, the second bracket of `[[link]]` say (of what began with a
    blank instead).
    """
    characters = tokens.astype(int)
    text = _Text(characters, vocabulary)
    prefixes = _Prefixes.count(text, train_end)
    found = [
        _sentence_case(text), _speaker_colon(text), _speaker_case(text), *_brackets(text),
        _by_beginning("word_end", text, prefixes, "other", "letter"),
        _by_beginning("next_vowel", text, prefixes, "vowel", "consonant"),
        _q_u(text), *_markup_ends(text),
    ]  # fmt: skip
    return [rule for rule in found if rule is not None and len(rule.candidates.ends)]


def draw(rule: Rule, tokens: Integer[ndarray, " corpus"], bounds: Sequence[Any], width: int, stream: Stream) -> Task:
    """All pairs of a rule in random order, prompts of `width` characters that lie within a range of a split.

    `bounds` are these ranges, [begin, end) each, ascending.
    """
    ends, changed, replacements = rule.candidates
    begins, stops = np.asarray(bounds).reshape(-1, 2).T
    of = np.searchsorted(begins, ends - width + 1, side="right") - 1
    inside = (of >= 0) & (ends < stops[of]) & (changed > ends - width)
    chosen = stream.numpy().permutation(np.flatnonzero(inside))
    clean = tokens.astype(int)[ends[chosen, None] + np.arange(1 - width, 1)]
    position = changed[chosen] - ends[chosen] + width - 1
    corrupt = clean.copy()
    corrupt[np.arange(len(chosen)), position] = replacements[chosen]
    masks = torch.tensor(rule.targets), torch.tensor(rule.foils)
    return Task(*masks, *map(torch.tensor, (clean, corrupt, position, ends[chosen])))


def keep(
    rule: Rule,
    tokens: Integer[ndarray, " corpus"],
    bounds: Sequence[Any],
    width: int,
    most: int,
    stream: Stream,
    last_logits: Callable[[Int[Tensor, "pair pos"]], Float[Tensor, "pair vocab"]],
) -> tuple[Task, Kept]:
    """Up to `most` pairs on which the model is right: log odds above 0 after the prompt, below 0 after the other.

    No dictionary has a part in this: the pairs are the same for all, and effects are those of such pairs. The log odds
    that choose are those by which the total effect is measured; so that of all pairs that are asked is counted too.
    """
    found = draw(rule, tokens, bounds, width, stream)
    clean, corrupt = torch.zeros(0), torch.zeros(0)
    while len(clean) < len(found) and ((clean > 0) & (corrupt < 0)).sum() < most:
        rows = slice(len(clean), len(clean) + most)
        odds = [found.metric(last_logits(prompts[rows])).cpu() for prompts in (found.clean, found.corrupt)]
        clean, corrupt = torch.cat([clean, odds[0]]), torch.cat([corrupt, odds[1]])
    right = (clean > 0) & (corrupt < 0)
    asked, effect = len(right), (clean - corrupt).double()
    kept = found.select(torch.cat([right, torch.zeros(len(found) - asked, dtype=torch.bool)]), most)
    return kept, Kept(
        found=len(found),
        asked=asked,
        clean_wrong=int((clean <= 0).sum()),
        corrupt_wrong=int(((clean > 0) & (corrupt >= 0)).sum()),
        surplus=int(right.sum()) - len(kept),
        kept=len(kept),
        effect=_mean(effect[right][:most]),
        effect_asked=_mean(effect),
    )


def records(tasks: dict[str, dict[str, Task]], vocabulary: Sequence[str]) -> dict[str, Any]:
    """task -> targets (the tokens that should follow) and, split by split, the pairs, as JSON holds them."""
    found: dict[str, Any] = {}
    for name, splits in tasks.items():
        targets = next(iter(splits.values())).targets.tolist()
        following = [token for token, own in zip(vocabulary, targets, strict=True) if own]
        found[name] = {"targets": following, **{split: task.records(vocabulary) for split, task in splits.items()}}
    return found


def samples(
    tasks: dict[str, dict[str, Task]], splits: dict[str, str], of_latents: Int[ndarray, " place"], stream: Stream
) -> list[Record]:
    """Where nodes were chosen (discovery, and `of_latents`, which said how often latents are active), and measured.

    `splits`: of the corpus, by the names discovery and test. A record runs from the first character of any prompt to
    the last of any; without tasks there is none. `stream` is that of all pairs.
    """
    roles: dict[str, Role] = {"discovery": "chosen", "test": "scored"}
    places = {name: [task[name].places.numpy() for task in tasks.values()] for name in roles if tasks}
    found = {name: np.concatenate([of_latents, *own] if name == "discovery" else own) for name, own in places.items()}
    pieces = {name: np.arange(own.min(), own.max() + 1) for name, own in found.items()}
    return [record("nodes", roles[name], splits[name], piece, stream.of(name)) for name, piece in pieces.items()]


def report(kept: dict[str, dict[str, Kept]]) -> dict[str, Any]:
    """task -> split -> counts, as JSON holds them."""
    return {task: {split: asdict(counts) for split, counts in splits.items()} for task, splits in kept.items()}


def _mean(effects: Float[Tensor, " pair"]) -> float | None:
    return effects.mean().item() if len(effects) else None


class _Text:
    """The corpus, and the classes of its characters."""

    def __init__(self, characters: Int[ndarray, " n"], vocabulary: Sequence[str]):
        kinds = taxonomy(vocabulary)
        self.characters, self.vocabulary = characters, vocabulary
        self.index = {token: i for i, token in reversed([*enumerate(vocabulary)])}  # of equal ones, the first
        first = [token.strip()[:1] for token in vocabulary]
        self.is_upper, self.is_lower = np.array([c.isupper() for c in first]), np.array([c.islower() for c in first])
        self.has_blank = np.array([len(token) > 1 and token[0] == " " for token in vocabulary])
        letter = (kinds["kind"] == "letter").to_numpy()
        sorts = {sort: (kinds["sort"] == sort).to_numpy() for sort in ("vowel", "consonant")}
        self.classes = {"letter": letter, "other": ~letter, **sorts}
        self.letter = letter[characters]
        self.speaker = context_labels(characters, vocabulary)["speaker_line"].astype(bool)

    def token(self, character: str) -> int:
        """-1 where the vocabulary does not have it."""
        return self.index.get(character, -1)

    def one(self, character: str) -> Bool[ndarray, " vocab"]:
        return np.arange(len(self.vocabulary)) == self.token(character)

    def is_one_of(self, characters: str) -> Bool[ndarray, " n"]:
        return np.array([c in set(characters) for c in self.vocabulary])[self.characters]

    def lower(self) -> Int[ndarray, " vocab"]:
        """Token of the small letter of each token; -1 without one."""
        return np.array([self.token(c.lower()) if c.isupper() else -1 for c in self.vocabulary])


def _shifted(values: ndarray, by: int) -> ndarray:
    """values[i + by] at i; False or 0 beyond the ends."""
    result = np.zeros_like(values)
    if by > 0:
        result[:-by] = values[by:]
    else:
        result[-by:] = values[:by]
    return result


def _rule(
    name: str, targets: ndarray, foils: ndarray, ends: ndarray, changed: ndarray, replacements: ndarray | int
) -> Rule:
    full = np.broadcast_to(replacements, ends.shape).astype(int)
    return Rule(name, targets, foils, Candidates(ends, changed, full))


def _sentence_case(text: _Text) -> Rule | None:
    comma = text.token(",")
    if comma < 0:
        return None
    mark, blank = text.is_one_of(SENTENCE_ENDS), text.is_one_of(" ")
    if text.has_blank.any():  # of the next token
        ends = np.flatnonzero(mark & _shifted(text.letter, -1) & _shifted(text.has_blank[text.characters], 1))
        return _rule("sentence_case", text.is_upper, text.is_lower, ends, ends, comma)
    ends = np.flatnonzero(blank & _shifted(mark, -1) & _shifted(text.letter, -2))
    return _rule("sentence_case", text.is_upper, text.is_lower, ends, ends - 1, comma)


def _speaker_colon(text: _Text) -> Rule | None:
    blank, colon = text.token(" "), text.one(":")
    if blank < 0 or not colon.any():
        return None
    starts = np.flatnonzero(text.speaker & ~_shifted(text.speaker, -1))
    ends = np.flatnonzero(text.speaker & _shifted(text.is_one_of(":"), 1) & _shifted(text.speaker, 1))
    # A name has one colon, at its end: others belong to nothing.
    starts = starts[np.searchsorted(starts, ends, side="right") - 1]
    kept = starts >= 2  # two line breaks before it
    return _rule("speaker_colon", colon, ~colon, ends[kept], starts[kept] - 2, blank)


def _speaker_case(text: _Text) -> Rule:
    upper, lower = text.is_upper[text.characters], text.lower()
    in_capitals = text.speaker & upper
    ends = np.flatnonzero(in_capitals & _shifted(in_capitals, -1) & _shifted(in_capitals, 1))
    ends = ends[lower[text.characters[ends]] >= 0]
    return _rule("speaker_case", text.is_upper, text.is_lower, ends, ends, lower[text.characters[ends]])


def _brackets(text: _Text) -> list[Rule]:
    found = []
    for kind, (opening, closing) in BRACKETS.items():
        blank = text.token(" ")
        if min(text.token(opening), text.token(closing), blank) < 0:
            continue
        opened, closed = np.flatnonzero(text.is_one_of(opening)), np.flatnonzero(text.is_one_of(closing))
        last = np.searchsorted(opened, closed) - 1
        pairs = (last >= 0) & (closed > opened[last] + 1)
        # Of several closing ones after the same opening one only the first is its own.
        own = pairs & np.append(True, last[1:] != last[:-1])
        target = text.one(closing)
        found.append(_rule(f"bracket_{kind}", target, ~target, closed[own] - 1, opened[last[own]], blank))
    return found


def _q_u(text: _Text) -> Rule | None:
    target = text.one("u")
    if not target.any() or text.token("t") < 0:
        return None
    ends = np.flatnonzero(text.is_one_of("q"))
    return _rule("q_u", target, ~target, ends, ends, text.token("t"))


def _markup_ends(text: _Text) -> list[Rule]:
    blank, string, found = text.token(" "), TokenText.of(text.characters, text.vocabulary), []
    for kind, pattern in MARKUP.items():
        starts, ends = spans(pattern, string.string)[:, :2].T
        if blank >= 0 and len(ends):
            starts, ends = string.tokens(starts), string.tokens(ends - 1) + 1
            target = text.one(text.vocabulary[int(text.characters[ends[0] - 1])])
            found.append(_rule(f"{kind}_end", target, ~target, ends - 2, starts, blank))
    return found


@dataclass(frozen=True)
class _Prefixes:
    """Beginnings of words, as tokens, and how often each class of characters follows them."""

    of_position: Int[ndarray, " n"]
    """Index of the beginning that ends here; -1 outside of words."""
    counts: pd.DataFrame
    """A row per beginning: but_last (the beginning without its last character), last, n, and how often each class of
    `_Text.classes` came next."""

    @classmethod
    def count(cls, text: _Text, train_end: int) -> "_Prefixes":
        index: dict[tuple[int, int], int] = {}
        of_position = np.full(len(text.characters), -1)
        parent = -1
        for i, (character, is_letter) in enumerate(zip(text.characters.tolist(), text.letter.tolist(), strict=True)):
            parent = index.setdefault((parent, character), len(index)) if is_letter else -1
            of_position[i] = parent
        before = np.array(list(index), dtype=int).reshape(-1, 2)
        seen = of_position[: train_end - 1]
        inside = np.flatnonzero(seen >= 0)
        following = text.characters[inside + 1]
        counted = {
            name: np.bincount(seen[inside], weights=of[following], minlength=len(index))
            for name, of in text.classes.items()
        }
        n = np.bincount(seen[inside], minlength=len(index))
        return cls(of_position, pd.DataFrame({"but_last": before[:, 0], "last": before[:, 1], "n": n, **counted}))


def _by_beginning(name: str, text: _Text, prefixes: _Prefixes, targets: str, foils: str) -> Rule:
    """Pairs whose last character is replaced, such that another class is almost sure to follow this beginning.

    The replacement is the one that was seen most often.
    """
    counts = prefixes.counts.query("n >= @OFTEN and but_last >= 0")
    clean = counts.query(f"{targets} >= @SURE * n")
    corrupt = counts.query(f"{foils} >= @SURE * n").sort_values("n", ascending=False)
    most_often = dict(zip(corrupt["but_last"].iloc[::-1], corrupt["last"].iloc[::-1], strict=True))
    replaced = clean["but_last"].map(lambda beginning: most_often.get(beginning, -1))
    by_prefix = np.full(len(prefixes.counts) + 1, -1)  # the last: outside of words
    by_prefix[replaced.index] = replaced
    found = by_prefix[prefixes.of_position]
    ends = np.flatnonzero(found >= 0)
    return _rule(name, text.classes[targets], text.classes[foils], ends, ends, found[ends])
