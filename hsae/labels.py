"""What is known of every character of the corpus: classes of the character and of where it stands."""

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, Integer
from numpy import ndarray

VOWELS = "aeiou"
LONGEST = 6  # positions within a word are told apart up to here
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
    letter of the line that names who speaks.
    """
    characters = tokens.astype(int)
    letter = _of(characters, [c.isalpha() for c in alphabet])
    kinds = taxonomy(alphabet)
    return {
        "vowel": _of(characters, kinds["sort"] == "vowel"),
        "upper_case": _of(characters, [c.isupper() for c in alphabet]),
        "digit": _of(characters, kinds["kind"] == "digit"),
        "punctuation": _of(characters, kinds["kind"] == "punctuation"),
        "word_initial": _run_length(letter) == 1,
        "speaker_name": letter & _speaker_line(characters, alphabet),
    }


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
