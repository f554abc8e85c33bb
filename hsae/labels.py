"""What is known of every character of the corpus: classes of the character and of where it stands."""

import re

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


def taxonomy(alphabet: str) -> pd.DataFrame:
    """The classes of every character, a row each, from coarse to fine; every column refines the one before it.

    kind: letter, digit, punctuation, space (line breaks too). sort: letters are vowels or consonants (y is one), spaces
    blank or line break. case: letters are told apart by it as well. character: itself.
    """
    rows = []
    for character in alphabet:
        kind = sort = case = "punctuation"
        if character.isalpha():
            kind, sort = "letter", "vowel" if character.lower() in VOWELS else "consonant"
            case = f"{'upper' if character.isupper() else 'lower'}-case {sort}"
        elif character.isdigit():
            kind = sort = case = "digit"
        elif character.isspace():
            kind, sort = "space", "line break" if character == "\n" else "blank"
            case = sort
        rows.append({"kind": kind, "sort": sort, "case": case, "character": character})
    return pd.DataFrame(rows)


def context_labels(tokens: Integer[ndarray, " n"], alphabet: str) -> dict[str, Int[ndarray, " n"]]:
    """Of every token of a text the labels named in CONTEXT, as small integers from 0 (-1: not known, at the end).

    character, next_character: tokens themselves; character_class: `case` of the taxonomy; word_position: 0 outside of
    words, else 1 for the first letter and so on up to LONGEST; speaker_line: within a line that names who speaks (it
    follows an empty line, or starts the text, and ends with a colon); inside_word: between two letters of a word.
    """
    n = len(tokens)
    characters = tokens.astype(int)
    letter = _of(characters, [c.isalpha() for c in alphabet])
    following = np.append(characters[1:], -1) if n else characters
    return {
        "next_character": following,
        "character": characters,
        "character_class": pd.factorize(taxonomy(alphabet)["case"])[0][characters],
        "word_position": np.minimum(_run_length(letter), LONGEST),
        "speaker_line": _speaker_line(characters, alphabet).astype(int),
        "inside_word": (letter & np.append(letter[1:], False)).astype(int) if n else characters,
    }


def concepts(tokens: Integer[ndarray, " n"], alphabet: str) -> dict[str, Bool[ndarray, " n"]]:
    """Properties of every token of a text that are known exactly: what a single latent might stand for.

    vowel, upper_case, digit, punctuation: of the character; word_initial: the first letter of a word; speaker_name: a
    letter of the line that names who speaks. And of what the text has any: link, template, tag, entity, heading: within
    the marks of `[[link]]`, `{{template}}`, `<tag>`, `&quot;`, `==heading==`; url; year: four digits from 1000 to 2099;
    spelled_number: three digits or more as words, as text8 writes them ("one nine eight four").
    """
    characters = tokens.astype(int)
    letter = _of(characters, [c.isalpha() for c in alphabet])
    kinds = taxonomy(alphabet)
    text = as_string(characters, alphabet)
    written = {name: _inside(text, pattern) for name, pattern in {**MARKUP, **WRITTEN}.items()}
    return {
        "vowel": _of(characters, kinds["sort"] == "vowel"),
        "upper_case": _of(characters, [c.isupper() for c in alphabet]),
        "digit": _of(characters, kinds["kind"] == "digit"),
        "punctuation": _of(characters, kinds["kind"] == "punctuation"),
        "word_initial": _run_length(letter) == 1,
        "speaker_name": letter & _speaker_line(characters, alphabet),
        **{name: inside for name, inside in written.items() if inside.any()},
    }


def as_string(characters: Int[ndarray, " n"], alphabet: str) -> str:
    """The text: a character per token, so that offsets are the same."""
    return np.array(list(alphabet), "U1")[characters].tobytes().decode("utf-32")


def spans(pattern: str, text: str) -> Int[ndarray, "match 4"]:
    """Where a pattern matches: start and end of all of it, and of its group `inside`; ends are exclusive."""
    found = ((*match.span(), *match.span("inside")) for match in re.finditer(pattern, text))
    return np.fromiter(found, np.dtype((int, 4)))


def _inside(text: str, pattern: str) -> Bool[ndarray, " n"]:
    within = np.zeros(len(text), bool)
    for _, _, start, end in spans(pattern, text):
        within[start:end] = True
    return within


def _of(characters: Int[ndarray, " n"], property_of: object) -> Bool[ndarray, " n"]:
    """A property of the characters of the alphabet, for every token."""
    return np.asarray(property_of, dtype=bool)[characters]


def _run_length(inside: Bool[ndarray, " n"]) -> Int[ndarray, " n"]:
    """How many tokens in a row, up to this one, are inside; 0 outside."""
    index = np.arange(1, len(inside) + 1)
    return index - np.maximum.accumulate(np.where(inside, 0, index)) if len(inside) else index


def _speaker_line(characters: Int[ndarray, " n"], alphabet: str) -> Bool[ndarray, " n"]:
    """Whether the line (its break not included) follows an empty one and ends with a colon."""
    line_break, colon = alphabet.find("\n"), alphabet.find(":")
    if line_break < 0 or colon < 0:
        return np.zeros(len(characters), dtype=bool)
    ends = np.append(np.flatnonzero(characters == line_break), len(characters))
    starts = np.append(0, ends[:-1] + 1)
    follows_empty = np.append(True, ends[:-1] == starts[:-1])
    named = follows_empty & (ends > starts) & (characters[np.maximum(ends - 1, 0)] == colon)
    inside = np.repeat(named, ends - starts + 1)[: len(characters)]
    return inside & (characters != line_break)
