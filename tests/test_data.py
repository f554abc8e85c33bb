from itertools import chain

import pytest
import torch

from hsae.data import CharTokenizer, context_starts, first_of_each, random_starts, split, windows


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


SPLITS = ["train", "final", "val", "test"]


@pytest.mark.parametrize("n", [20, 99, 100, 12345])
@pytest.mark.parametrize(("val", "final", "test"), [(0.05, 0.05, 0.05), (0.1, 0.05, 0.25), (0.3, 0.1, 0.3)])
def test_one_document_is_cut_at_the_fractions(n: int, val: float, final: float, test: float):
    splits = split([0], n, val, final, test)
    assert list(splits) == SPLITS
    ((start, a),), ((b, c),), ((d, e),), ((f, end),) = splits.values()
    assert (start, a, c, e, end) == (0, b, d, f, n)
    assert c - b == pytest.approx(final * n, abs=1)
    assert e - d == pytest.approx(val * n, abs=1)
    assert end - f == pytest.approx(test * n, abs=1)


def test_a_cut_within_a_document_leaves_no_range_across_two():
    # The fractions cut at 50, 70 and 80; the documents begin at 0, 45 and 60.
    splits = split([0, 45, 60], 100, val_fraction=0.1, final_fraction=0.2, test_fraction=0.2)
    assert splits == {
        "train": [(0, 45), (45, 50)],
        "final": [(50, 60), (60, 70)],
        "val": [(70, 80)],
        "test": [(80, 100)],
    }


def test_splits_are_of_whole_documents_from_the_end_by_hand():
    # Of 100 tokens each held-out split wants 10: the last two documents have 7, the one before val has 9, and so on.
    starts = [0, 40, 50, 58, 61, 75, 84, 93, 96]
    assert split(starts, 100, 0.1, 0.1, 0.1) == {
        "train": [(0, 40), (40, 50)],
        "final": [(50, 58), (58, 61)],
        "val": [(61, 75), (75, 84)],
        "test": [(84, 93), (93, 96), (96, 100)],
    }


@pytest.mark.parametrize("seed", range(20))
def test_splits_are_disjoint_and_together_all_documents_in_their_order(seed: int):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 100, (int(torch.randint(4, 30, (1,), generator=generator)),), generator=generator)
    starts, n = (lengths.cumsum(0) - lengths).tolist(), int(lengths.sum())
    splits = split(starts, n, 0.2, 0.1, 0.3)
    assert list(splits) == SPLITS
    assert list(chain(*splits.values())) == list(zip(starts, [*starts[1:], n], strict=True))
    assert all(splits.values()), "none is empty"


def test_a_document_is_left_for_every_split_however_long_the_others_are():
    assert [len(ranges) for ranges in split([0, 10, 20, 90], 91, 0.3, 0.3, 0.3).values()] == [1, 1, 1, 1]


def test_no_context_crosses_a_document_by_hand():
    # Documents of 9, 3, 4, 7 and 1 tokens: with a target, contexts of 3 fit 2, 0, 1, 2 and 0 times.
    ranges = torch.tensor([[0, 9], [9, 12], [12, 16], [20, 27], [27, 28]])
    starts = context_starts(ranges, 3)
    assert starts.tolist() == [0, 3, 12, 20, 23]
    assert windows(torch.arange(100, 130), starts, 3).tolist() == [
        [100, 101, 102, 103], [103, 104, 105, 106], [112, 113, 114, 115], [120, 121, 122, 123], [123, 124, 125, 126],
    ]  # fmt: skip


@pytest.mark.parametrize(("n", "n_windows"), [(4, 1), (6, 1), (7, 2)])
def test_there_are_as_many_windows_as_have_a_last_target(n: int, n_windows: int):
    assert len(context_starts(torch.tensor([[5, 5 + n]]), 3)) == n_windows


@pytest.mark.parametrize("lengths", [[1], [3], [2, 3, 3]])
def test_a_split_without_a_context_is_refused_by_its_longest_document(lengths: list[int]):
    ends = torch.tensor(lengths).cumsum(0)
    ranges = torch.stack([ends - torch.tensor(lengths), ends], 1)
    expected = (
        f"a split whose longest document has {lengths[-1]} tokens has no context of 3 and a target: documents must be "
        f"longer, or the context at most {lengths[-1] - 1} tokens"
    )
    with pytest.raises(ValueError, match=expected):
        context_starts(ranges, 3)
    with pytest.raises(ValueError, match=expected):
        random_starts(ranges, 3, 2, torch.Generator())


def test_random_windows_start_anywhere_equally_often_and_never_cross_a_document():
    # With context and target 4 tokens: places 0..4, none, 12, 20..23.
    ranges = torch.tensor([[0, 8], [8, 11], [12, 16], [20, 27]])
    starts = random_starts(ranges, 3, 10_000, torch.Generator().manual_seed(0))
    allowed = [0, 1, 2, 3, 4, 12, 20, 21, 22, 23]
    shares = torch.bincount(starts, minlength=24) / 10_000
    assert shares.nonzero()[:, 0].tolist() == allowed
    torch.testing.assert_close(shares[allowed], torch.full((10,), 0.1), atol=0.02, rtol=0)


def test_random_windows_repeat_for_a_stream_and_go_on_after_it():
    generators, ranges = [torch.Generator().manual_seed(3) for _ in range(2)], torch.tensor([[0, 50]])
    (first, next_), (again, _) = [[random_starts(ranges, 3, 8, g) for _ in range(2)] for g in generators]
    assert torch.equal(first, again)
    assert not torch.equal(first, next_)


def test_where_a_split_has_more_contexts_than_are_wanted_each_document_gives_its_share():
    ranges = torch.tensor([[0, 41], [50, 71], [80, 141]])  # four, two and six contexts of ten
    whole = context_starts(ranges, 10)
    assert context_starts(ranges, 10, most=6).tolist() == [0, 10, 50, 80, 90, 100]
    assert context_starts(ranges, 10, most=1).tolist() == [80]
    for most in range(1, 13):
        taken = context_starts(ranges, 10, most=most)
        assert len(taken) == most
        assert set(taken.tolist()) <= set(whole.tolist())
    assert context_starts(ranges, 10, most=99).tolist() == whole.tolist()


def test_every_document_gives_the_same_share_of_its_contexts_by_hand():
    documents = torch.tensor([3, 3, 3, 3, 5, 5, 9, 9, 9, 9, 9, 9])
    assert first_of_each(documents, 6).nonzero()[:, 0].tolist() == [0, 1, 4, 6, 7, 8]
    assert first_of_each(documents, 99).all()
    assert first_of_each(torch.arange(5), 2).tolist() == [False, False, True, False, True]
