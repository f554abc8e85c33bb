from collections.abc import Sequence

import numpy as np
import pytest
from scipy.sparse import csr_array

from hsae.latent_classes import LABELLINGS, Text, held_out_shares, latent_classes

ALPHABET = "\n Aab"
LINE = "aab a\nAb b"  # what follows the last token is a line break


def text() -> Text:
    tokens = np.array([ALPHABET.index(character) for character in LINE + "\n"])
    return Text(tokens[:-1], tokens[1:], ALPHABET)


def acts(*latents: Sequence[float]) -> csr_array:
    return csr_array(np.array(latents, np.float32).T)


def named(level: str, labels: np.ndarray) -> list[str | None]:
    names, _ = text().classes(level)
    return [names[label] if label >= 0 else None for label in labels]


# a a b _ a ⏎ A b _ b
ONLY_A = [1, 2, 0, 0, 3, 0, 0, 0, 0, 0]
MIXED = [1, 1, 0, 0, 1, 0, 1.5, 0, 0, 0]  # a: 3 of 4.5; A: 1.5, three times as rare
SILENT = [0] * 10


def test_a_latent_gets_the_class_of_the_characters_it_is_active_on_at_every_level():
    found = latent_classes(acts(ONLY_A), text(), "information", 0.5)
    assert list(found) == LABELLINGS
    names = [named(level, found[f"current_{level}"])[0] for level in ("kind", "sort", "case", "character")]
    assert names == ["letter", "vowel", "lower-case vowel", "a"]


def test_the_next_character_has_classes_of_its_own():
    # After the a's stand a (1), b (2) and a line break (3): half of the activation is followed by the line break.
    found = latent_classes(acts(ONLY_A), text(), "information", 0.5)
    assert named("character", found["next_character"]) == ["\n"]
    assert named("kind", found["next_kind"]) == ["space"]


def test_information_weighs_share_with_rarity():
    # A: 1/3 log(1/3 / .1) = .40; a: 2/3 log(2/3 / .3) = .53. With half of the activation on A: .80 against .26.
    mixed = acts(MIXED, [1, 1, 0, 0, 1, 0, 3, 0, 0, 0])
    assert named("character", latent_classes(mixed, text(), "information", 0.0)["current_character"]) == [
        "a", "A",
    ]  # fmt: skip
    # Both shares are 1/2, or the rare one's is less: the share knows nothing of p.
    tilted = acts([1, 1, 0, 0, 1, 0, 2.9, 0, 0, 0])
    assert named("character", latent_classes(tilted, text(), "share", 0.0)["current_character"]) == ["a"]
    assert named("character", latent_classes(tilted, text(), "information", 0.0)["current_character"]) == ["A"]


def test_a_latent_whose_class_holds_too_little_has_none():
    for min_share, expected in ((0.0, ["a"]), (2 / 3 - 1e-6, ["a"]), (0.67, [None])):
        found = latent_classes(acts(MIXED), text(), "information", min_share)
        assert named("character", found["current_character"]) == expected
        assert named("kind", found["current_kind"]) == ["letter"]


def test_a_silent_latent_has_no_class():
    found = latent_classes(acts(SILENT, ONLY_A), text(), "information", 0.0)
    assert all(labels[0] == -1 and labels[1] >= 0 for labels in found.values())


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="`by` must be information or share; not 'lift'"):
        latent_classes(acts(ONLY_A), text(), "lift", 0.5)


def test_the_share_of_a_class_is_of_other_tokens_than_those_that_chose_it():
    # On the tokens that choose, the first two stand for a; on the others, a has 3 of 4.5, and nothing.
    chosen = acts(ONLY_A, ONLY_A, SILENT, ONLY_A)
    on_blanks = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    found = held_out_shares((chosen, text()), (acts(MIXED, on_blanks, ONLY_A, SILENT), text()))
    assert list(found) == LABELLINGS
    np.testing.assert_allclose(found["current_character"], [3 / 4.5, 0, 0, 0])
    np.testing.assert_allclose(found["current_kind"], [1, 0, 0, 0])


def test_a_part_and_a_shift_of_a_text_keep_its_vocabulary():
    part = text().part(slice(2, 4))
    assert [part.vocabulary[token] for token in part.current] == ["b", " "]
    assert [part.vocabulary[token] for token in part.following] == [" ", "a"]
    shifted = text().shifted(1)
    assert "".join(ALPHABET[token] for token in shifted.current) == "b" + LINE[:-1]
