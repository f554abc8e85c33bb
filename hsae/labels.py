"""What is known of every token of the corpus (a character, for our own transformer): its classes, where it stands."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, Integer
from numpy import ndarray

VOWELS = "aeiou"
LONGEST = 6  # positions within a word are told apart up to here
MARKUP = {
    "link": r"\[\[(?P<inside>[^\[\]\n]+)\]\]",
    "template": r"\{\{(?P<inside>[^{}]+)\}\}",
    "tag": r"<(?P<inside>/?\w[^<>\n]*)>",
    "entity": r"&(?P<inside>#?\w+);",
    "heading": r"(?m)^(?P<mark>==+)(?P<inside>[^=\n]+)(?P=mark)$",
}
"""Wiki text and the XML that enwik8 wraps it in. Of what is nested (a link in a picture's caption) the innermost."""
DIGIT = "(?:zero|one|two|three|four|five|six|seven|eight|nine)"
WRITTEN = {
    "url": r"(?P<inside>https?://[^\s\[\]<>{}|\"]+)",
    "year": r"(?<!\d)(?P<inside>(?:1\d|20)\d\d)(?!\d)",
    "spelled_number": rf"\b(?P<inside>{DIGIT}(?: {DIGIT}){{2,}})\b",
}
CONTEXT = ["next_character", "character", "character_class", "word_position", "speaker_line", "inside_word"]


def taxonomy(vocabulary: Sequence[str]) -> pd.DataFrame:
    """The classes of every token, a row each, from coarse to fine; every column refines the one before it.

    kind: letter, digit, punctuation, space (line breaks too), by its first character that is not blank. sort: single
    letters are vowels or consonants (y is one), longer tokens begin a word with a blank before it or are a part of one;
    spaces are blank or line break. case: letters are told apart by it as well. character: the token itself.
    """
    rows = []
    for token in vocabulary:
        text = token.strip()
        kind = sort = case = "punctuation"
        if text[:1].isalpha():
            kind, sort = "letter", "vowel" if text.lower() in VOWELS else "consonant"
            if len(token) > 1:
                sort = "part of a word" if token == text else "beginning of a word"
            case = f"{'upper' if text[0].isupper() else 'lower'}-case {sort}"
        elif text[:1].isdigit():
            kind = sort = case = "digit"
        elif not text:
            kind, sort = "space", "line break" if "\n" in token else "blank"
            case = sort
        rows.append({"kind": kind, "sort": sort, "case": case, "character": token})
    return pd.DataFrame(rows)


def context_labels(tokens: Integer[ndarray, " n"], vocabulary: Sequence[str]) -> dict[str, Int[ndarray, " n"]]:
    """Of every token of a text the labels named in CONTEXT, as small integers from 0 (-1: not known, at the end).

    character, next_character: tokens themselves; character_class: `case` of the taxonomy; word_position: 0 outside of
    words, else 1 for the first letter (or longer token) and so on up to LONGEST; speaker_line: within a line that names
    who speaks (it follows an empty line, or starts the text, and ends with a colon); inside_word: the word goes on.
    """
    n, tokens = len(tokens), tokens.astype(int)
    position = word_positions(tokens, vocabulary)
    following = np.append(tokens[1:], -1) if n else tokens
    return {
        "next_character": following,
        "character": tokens,
        "character_class": pd.factorize(taxonomy(vocabulary)["case"])[0][tokens],
        "word_position": np.minimum(position, LONGEST),
        "speaker_line": _speaker_line(TokenText.of(tokens, vocabulary)).astype(int),
        "inside_word": (np.append(position[1:], 0) > 1).astype(int) if n else tokens,
    }


def concepts(tokens: Integer[ndarray, " n"], vocabulary: Sequence[str]) -> dict[str, Bool[ndarray, " n"]]:
    """Properties of every token of a text that are known exactly: what a single latent might stand for.

    vowel, upper_case, digit, punctuation: of the token, by its first character that is not blank; word_initial: a word
    begins with it; speaker_name: a letter of the line that names who speaks. And of what the text has any: link,
    template, tag, entity, heading: within the marks of `[[link]]`, `{{template}}`, `<tag>`, `&quot;`, `==heading==`;
    url; year: four digits from 1000 to 2099; spelled_number: three digits or more as words, as text8 writes them ("one
    nine eight four").
    """
    tokens, kinds = tokens.astype(int), taxonomy(vocabulary)
    position, text = word_positions(tokens, vocabulary), TokenText.of(tokens, vocabulary)
    written = {name: text.by_token(_inside(text.string, pattern)) for name, pattern in {**MARKUP, **WRITTEN}.items()}
    return {
        "vowel": _of(tokens, kinds["sort"] == "vowel"),
        "upper_case": _of(tokens, kinds["case"].str.startswith("upper")),
        "digit": _of(tokens, kinds["kind"] == "digit"),
        "punctuation": _of(tokens, kinds["kind"] == "punctuation"),
        "word_initial": position == 1,
        "speaker_name": (position > 0) & _speaker_line(text),
        **{name: inside for name, inside in written.items() if inside.any()},
    }


@dataclass(frozen=True)
class TokenText:
    """A text of tokens: its characters, and where in it each token begins, and, last, the text ends."""

    string: str
    bounds: Int[ndarray, " n_plus_1"]

    @classmethod
    def of(cls, tokens: Int[ndarray, " n"], vocabulary: Sequence[str]) -> "TokenText":
        """What the tokens stand for, one after the other."""
        lengths = np.array([len(token) for token in vocabulary], dtype=int)[tokens]
        bounds = np.append(0, np.cumsum(lengths))
        if (lengths == 1).all():  # ten times as fast
            return cls(np.array([token[:1] for token in vocabulary], "U1")[tokens].tobytes().decode("utf-32"), bounds)
        return cls("".join([vocabulary[int(token)] for token in tokens]), bounds)

    def by_token(self, inside: Bool[ndarray, " character"]) -> Bool[ndarray, " n"]:
        """Whether a token has a character that is inside."""
        n_before = np.append(0, np.cumsum(inside))[self.bounds]
        return n_before[1:] > n_before[:-1]

    def tokens(self, characters: Int[ndarray, " some"]) -> Int[ndarray, " some"]:
        """The token that each of some characters belongs to."""
        return np.searchsorted(self.bounds, characters, side="right") - 1


def word_positions(tokens: Int[ndarray, " n"], vocabulary: Sequence[str]) -> Int[ndarray, " n"]:
    """How many tokens its word has up to this one; 0 outside of words. A word begins anew with a blank in a token."""
    inside = _of(tokens, [token.strip()[:1].isalpha() for token in vocabulary])
    begins = inside & _of(tokens, [token[:1].isspace() for token in vocabulary])
    index = np.arange(1, len(tokens) + 1)
    before = np.where(begins, index - 1, np.where(inside, 0, index))
    return index - np.maximum.accumulate(before) if len(tokens) else index


def spans(pattern: str, text: str) -> Int[ndarray, "match 4"]:
    """Where a pattern matches: start and end of all of it, and of its group `inside`; ends are exclusive."""
    found = ((*match.span(), *match.span("inside")) for match in re.finditer(pattern, text))
    return np.fromiter(found, np.dtype((int, 4)))


def _inside(text: str, pattern: str) -> Bool[ndarray, " n"]:
    within = np.zeros(len(text), bool)
    for _, _, start, end in spans(pattern, text):
        within[start:end] = True
    return within


def _of(tokens: Int[ndarray, " n"], property_of: object) -> Bool[ndarray, " n"]:
    """A property of the tokens of the vocabulary, for every token of a text."""
    return np.asarray(property_of, dtype=bool)[tokens]


def _speaker_line(text: TokenText) -> Bool[ndarray, " n"]:
    """Whether a token is of a line (its break not included) that follows an empty one and ends with a colon."""
    characters = np.frombuffer(text.string.encode("utf-32-le"), dtype=np.uint32)
    breaks = characters == ord("\n")
    ends = np.append(np.flatnonzero(breaks), len(characters))
    starts = np.append(0, ends[:-1] + 1)
    follows_empty = np.append(True, ends[:-1] == starts[:-1])
    named = follows_empty & (ends > starts)
    named[named] = characters[ends[named] - 1] == ord(":")
    inside = np.repeat(named, ends - starts + 1)[: len(characters)]
    return text.by_token(inside & ~breaks)
