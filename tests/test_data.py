import pytest
import torch

from hsae.data import CharTokenizer, random_windows, split, windows


@pytest.mark.parametrize("text", ["hello", "a\nb\tc ", "naïve — π", "😀a😀", "".join(map(chr, range(300)))])
def test_decoding_gives_back_the_text(text: str):
    tokenizer = CharTokenizer.fit(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokens_count_characters_in_code_point_order():
    tokenizer = CharTokenizer.fit("cabba é")
    assert tokenizer.alphabet == " abcé"
    assert tokenizer.n_vocab == 5
    assert tokenizer.encode("é cab").tolist() == [4, 0, 3, 1, 2]


@pytest.mark.parametrize(("n_vocab", "dtype"), [(256, torch.uint8), (257, torch.int32)])
def test_tokens_are_bytes_where_the_alphabet_allows(n_vocab: int, dtype: torch.dtype):
    text = "".join(map(chr, range(n_vocab)))
    tokens = CharTokenizer.fit(text).encode(text)
    assert tokens.dtype == dtype
    assert tokens.tolist() == list(range(n_vocab))


@pytest.mark.parametrize("character", ["!", "b", "z", "é"])
def test_a_character_outside_the_alphabet_is_named(character: str):
    with pytest.raises(ValueError, match=f"character '{character}' is not in the alphabet of 2 characters"):
        CharTokenizer.fit("ac").encode("a" + character)


@pytest.mark.parametrize("n", [10, 99, 100, 12345])
@pytest.mark.parametrize(("val", "test"), [(0.05, 0.05), (0.1, 0.25), (0.3, 0.3)])
def test_splits_are_contiguous_and_cover_the_text(n: int, val: float, test: float):
    splits = split(n, val, test)
    assert list(splits) == ["train", "val", "test"]
    (start, a), (b, c), (d, end) = splits.values()
    assert (start, a, c, end) == (0, b, d, n)
    assert c - b == pytest.approx(val * n, abs=1)
    assert end - d == pytest.approx(test * n, abs=1)


def test_windows_share_one_token_and_their_targets_are_the_inputs_shifted_by_one():
    cut = windows(torch.arange(11), context=3)
    assert cut.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]


@pytest.mark.parametrize(("n", "n_windows"), [(4, 1), (6, 1), (7, 2)])
def test_there_are_as_many_windows_as_have_a_last_target(n: int, n_windows: int):
    assert len(windows(torch.arange(n), context=3)) == n_windows


@pytest.mark.parametrize("n", [1, 3])
def test_a_text_shorter_than_one_window_is_refused(n: int):
    expected = f"a split of {n} characters is shorter than one context of 3 and a target"
    with pytest.raises(ValueError, match=expected):
        windows(torch.arange(n), context=3)
    with pytest.raises(ValueError, match=expected):
        random_windows(torch.arange(n), 3, 2, torch.Generator())


def test_random_windows_are_consecutive_tokens_from_anywhere():
    cut = random_windows(torch.arange(8), 3, 200, torch.Generator().manual_seed(0))
    assert cut.shape == (200, 4)
    assert (cut - cut[:, :1] == torch.arange(4)).all()
    assert set(cut[:, 0].tolist()) == set(range(5))


def test_random_windows_repeat_for_a_seed_and_go_on_after_it():
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    (first, next_), (again, _) = [[random_windows(torch.arange(50), 3, 8, g) for _ in range(2)] for g in generators]
    assert torch.equal(first, again)
    assert not torch.equal(first, next_)
