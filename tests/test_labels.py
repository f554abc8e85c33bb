import numpy as np

from hsae import labels
from hsae.data import CharTokenizer

TEXT = "ANNE:\nI am 2.\nNo: it is\n\nBo:\nOx"


def encoded(text: str) -> tuple[np.ndarray, str]:
    tokenizer = CharTokenizer.fit(text)
    return tokenizer.encode(text).numpy(), tokenizer.alphabet


def test_every_column_of_the_taxonomy_refines_the_one_before_it():
    table = labels.taxonomy("\n !1aBey")
    for coarse, fine in [("kind", "sort"), ("sort", "case"), ("case", "character")]:
        assert set(table.groupby(fine)[coarse].nunique()) == {1}
    assert table.set_index("character").loc["B"].tolist() == ["letter", "consonant", "upper-case consonant"]
    assert table.set_index("character")["sort"].to_dict() == {
        "\n": "line break", " ": "blank", "!": "punctuation", "1": "digit", "a": "vowel", "B": "consonant",
        "e": "vowel", "y": "consonant",
    }  # fmt: skip


def test_context_labels_by_hand():
    tokens, alphabet = encoded(TEXT)
    found = labels.context_labels(tokens, alphabet)
    assert list(found) == labels.CONTEXT
    assert "".join(alphabet[t] for t in found["next_character"][:-1]) == TEXT[1:]
    assert found["next_character"][-1] == -1
    assert found["word_position"].tolist() == [1, 2, 3, 4, 0, 0, 1, 0, 1, 2, 0, 0, 0, 0, 1, 2, 0, 0, 1, 2, 0, 1, 2,
                                               0, 0, 1, 2, 0, 0, 1, 2]  # fmt: skip
    in_names = "".join(c for c, named in zip(TEXT, found["speaker_line"], strict=True) if named)
    assert in_names == "ANNE:Bo:"
    assert "".join(c for c, inside in zip(TEXT, found["inside_word"], strict=True) if inside) == "ANNaNiiBO"


def test_positions_in_long_words_are_capped():
    tokens, alphabet = encoded("abcdefghi j")
    assert labels.context_labels(tokens, alphabet)["word_position"].tolist() == [1, 2, 3, 4, 5, 6, 6, 6, 6, 0, 1]


def test_concepts_by_hand():
    tokens, alphabet = encoded(TEXT)
    found = {
        name: "".join(c for c, is_one in zip(TEXT, values, strict=True) if is_one)
        for name, values in labels.concepts(tokens, alphabet).items()
    }
    assert found == {
        "vowel": "AEIaoiioO",
        "upper_case": "ANNEINBO",
        "digit": "2",
        "punctuation": ":.::",
        "word_initial": "AIaNiiBO",
        "speaker_name": "ANNEBo",
    }


WIKI = """<page>
<title>Cat</title>
==Life &amp; times==
{{stub|a=1}} A [[cat|Cats]] of 1984, see [http://a.org/x?y=1 it], 12345 [[Image:b.jpg|the [[Nile]]]].<br />
a == b, x < y > z, [single], {{open
=== In {1999} ===
&quot;it&#39;s&quot; & co; 2100 http://b.org"""


def concept(text: str, name: str) -> list[str]:
    """The pieces of a text that have a concept."""
    tokens, alphabet = encoded(text)
    has = labels.concepts(tokens, alphabet)[name]
    edges = np.flatnonzero(np.diff(has.astype(int), prepend=0, append=0)).reshape(-1, 2)
    return [text[start:end] for start, end in edges]


def test_concepts_of_wiki_text_by_hand():
    assert concept(WIKI, "link") == ["cat|Cats", "Nile"], "the innermost of what is nested"
    assert concept(WIKI, "template") == ["stub|a=1"]
    assert concept(WIKI, "tag") == ["page", "title", "/title", "br /"]
    assert concept(WIKI, "entity") == ["amp", "quot", "#39", "quot"]
    assert concept(WIKI, "heading") == ["Life &amp; times", " In {1999} "]
    assert concept(WIKI, "url") == ["http://a.org/x?y=1", "http://b.org"]
    assert concept(WIKI, "year") == ["1984", "1999"]


def test_text_without_markup_has_spelled_numbers_at_most():
    text = " in one nine eight four one or two of seven nine cats zero zero seven two done nine"
    tokens, alphabet = encoded(text)
    plain = ["vowel", "upper_case", "digit", "punctuation", "word_initial", "speaker_name"]
    assert list(labels.concepts(tokens, alphabet)) == [*plain, "spelled_number"]
    assert concept(text, "spelled_number") == ["one nine eight four one", "zero zero seven two"]
    assert list(labels.concepts(*encoded(TEXT))) == plain


def test_the_text_of_tokens_has_their_offsets():
    text = "naïve — π\n𝔸 x"
    tokens, alphabet = encoded(text)
    assert labels.TokenText.of(tokens.astype(int), alphabet).string == text
    assert labels.spans(r"(?P<inside>x)", text).tolist() == [[12, 13, 12, 13]]
    assert labels.spans(r"(?P<inside>x)", "").shape == (0, 4)


def test_a_line_that_ends_with_a_colon_names_a_speaker_only_after_an_empty_line():
    for text, named in [("\n\nA:", "A:"), ("x\nA:", ""), ("\n:", ":"), ("", ""), ("A:\n", "A:"), ("ab", "")]:
        tokens, alphabet = encoded(text + "\n:")
        lines = labels.context_labels(tokens, alphabet)["speaker_line"][: len(text)]
        assert "".join(c for c, inside in zip(text, lines, strict=True) if inside) == named


def test_an_alphabet_without_colons_or_line_breaks_has_no_speakers():
    tokens, alphabet = encoded("abc")
    assert not labels.context_labels(tokens, alphabet)["speaker_line"].any()


def test_an_empty_text_has_no_labels():
    tokens = np.zeros(0, dtype=np.uint8)
    assert all(len(values) == 0 for values in labels.context_labels(tokens, "ab").values())
    assert all(len(values) == 0 for values in labels.concepts(tokens, "ab").values())
