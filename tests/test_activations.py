import math
from dataclasses import replace

import pytest
import torch

from hsae import activations, files
from hsae.activations import ActivationConfig, Activations, Mask, Normalizer, Store, collect, norms
from hsae.data import context_starts, windows
from hsae.gpt import GPT
from tests.conftest import CONTEXT, LAYER

DOCUMENT_STARTS = torch.tensor([0, 8, 9, 42])


def whole(tokens: torch.Tensor, context: int, begin: int = 0) -> torch.Tensor:
    """Where the contexts of a text that is one document begin."""
    return context_starts(torch.tensor([[begin, len(tokens)]]), context)


def collected(gpt: GPT, tokens: torch.Tensor, seed: int | None) -> tuple[torch.Tensor, Activations]:
    """The second, fourth, ... windows of a corpus, so that offsets are not merely row numbers."""
    starts = whole(tokens, CONTEXT)[1::2]
    cut = windows(tokens, starts, CONTEXT)
    shuffle = None if seed is None else torch.Generator().manual_seed(seed)
    return cut, collect(lambda inputs: gpt.residual(inputs, LAYER), cut, starts, DOCUMENT_STARTS, shuffle)


def test_rows_collected_in_order_are_the_residual_stream_of_one_window_after_the_other(gpt: GPT, corpus_tokens):
    cut, rows = collected(gpt, corpus_tokens, None)
    torch.testing.assert_close(rows.acts, gpt.residual(cut[:, :-1], LAYER).flatten(0, 1))


def test_rows_collected_in_order_know_their_offset_position_and_document(gpt: GPT, corpus_tokens):
    cut, rows = collected(gpt, corpus_tokens, None)
    row = 0
    for window in range(len(cut)):
        for position in range(CONTEXT):
            offset = (2 * window + 1) * CONTEXT + position
            document = max(index for index, start in enumerate(DOCUMENT_STARTS.tolist()) if start <= offset)
            found = (rows.offsets[row].item(), rows.positions[row].item(), rows.documents[row].item())
            assert found == (offset, position, document)
            row += 1
    assert row == len(rows.acts)


def test_an_offset_is_that_of_the_rows_own_token(gpt: GPT, corpus_tokens):
    cut, rows = collected(gpt, corpus_tokens, None)
    assert torch.equal(corpus_tokens[rows.offsets.long()], cut[:, :-1].flatten())


def test_shuffling_permutes_the_rows_and_each_keeps_what_belongs_to_it(gpt: GPT, corpus_tokens):
    _, ordered = collected(gpt, corpus_tokens, None)
    _, shuffled = collected(gpt, corpus_tokens, seed=0)
    order = shuffled.offsets.argsort()
    assert not torch.equal(shuffled.offsets, ordered.offsets)
    for name, values in vars(shuffled).items():
        assert torch.equal(values[order], vars(ordered)[name])


def test_shuffling_mixes_tokens_of_different_windows(gpt: GPT, corpus_tokens):
    _, shuffled = collected(gpt, corpus_tokens, seed=0)
    neighbours = (shuffled.offsets[1:] - shuffled.offsets[:-1]) == 1
    assert neighbours.double().mean() < 0.1


def test_shuffling_repeats_for_a_seed_and_differs_for_another(gpt: GPT, corpus_tokens):
    first, again, other = (collected(gpt, corpus_tokens, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first.acts, again.acts)
    assert torch.equal(first.offsets, again.offsets)
    assert not torch.equal(first.offsets, other.offsets)


@pytest.mark.parametrize("seed", [None, 0])
def test_more_windows_than_one_chunk_are_all_collected(seed: int | None):
    tokens = torch.arange(401)
    starts = whole(tokens, 4)
    cut = windows(tokens, starts, 4)
    shuffle = None if seed is None else torch.Generator().manual_seed(seed)
    rows = collect(lambda inputs: inputs[..., None].float(), cut, starts, torch.tensor([0]), shuffle)
    assert torch.equal(rows.acts[:, 0].int(), rows.offsets)
    assert sorted(rows.offsets.tolist()) == list(range(400))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_activations_that_are_not_finite_are_refused(bad: float):
    cut = torch.arange(9).unfold(0, 5, 4)
    with pytest.raises(ValueError, match="the transformer's activations are not finite"):
        collect(lambda inputs: torch.full((*inputs.shape, 2), bad), cut, torch.tensor([0, 4]), torch.tensor([0]))


def test_the_normaliser_of_two_rows_by_hand():
    acts = torch.tensor([[0.0, 0.0], [2.0, 4.0]])
    normalizer = Normalizer.fit(acts)
    assert normalizer.mean.tolist() == [1, 2]
    # The deviations are 1 and 2: a mean square of 2.5 over both coordinates.
    assert normalizer.scale.item() == pytest.approx(math.sqrt(2.5))
    torch.testing.assert_close(normalizer(acts), torch.tensor([[-1.0, -2.0], [1.0, 2.0]]) / math.sqrt(2.5))


def test_normalised_activations_have_unit_variance_per_coordinate_on_average_and_zero_mean():
    # More rows than one chunk, and an offset that float32 sums would lose digits to.
    acts = 1000 + torch.randn(70_000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1.0, 10.0])
    normalizer = Normalizer.fit(acts)
    x = normalizer(acts).double()
    assert x.square().mean().item() == pytest.approx(1, rel=1e-4)
    assert x.mean(0).abs().max().item() < 1e-4
    torch.testing.assert_close(x.std(0) / x.std(0)[0], acts.double().std(0) / acts.double().std(0)[0])


def test_the_inverse_gives_back_the_activations(store: Store):
    acts = store.activations.acts
    torch.testing.assert_close(store.normalizer.inverse(store.normalizer(acts)), acts)


@pytest.mark.parametrize("value", [3.0, math.nan, math.inf])
def test_constant_or_infinite_activations_cannot_be_normalised(value: float):
    with pytest.raises(ValueError, match=r"the activations have standard deviation .*; they must be finite and vary"):
        Normalizer.fit(torch.full((10, 2), value))


def test_the_windows_of_a_store_are_the_contexts_that_its_rows_come_from(store: Store, corpus_tokens):
    assert torch.equal(store.windows(corpus_tokens), windows(corpus_tokens, whole(corpus_tokens, CONTEXT, 10), CONTEXT))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_batches_are_all_rows_normalised_and_in_order(store: Store, size: int):
    batches = list(store.batches(size))
    assert all(len(batch) <= size for batch in batches)
    assert torch.equal(torch.cat(batches), store.normalizer(store.activations.acts))
    assert len(store) == sum(map(len, batches)) == 40 * CONTEXT
    assert store.d_in == 8


def tensors_of(store: Store) -> dict[str, torch.Tensor]:
    return {**vars(store.activations), **vars(store.normalizer)}


def test_a_store_comes_back_from_its_file(store: Store, tmp_path):
    path = tmp_path / "test.safetensors"
    store.write(path)
    loaded = activations.read(*files.read_tensors(path), torch.device("cpu"))
    assert (loaded.layer, loaded.context) == (LAYER, CONTEXT)
    for name, tensor in tensors_of(store).items():
        assert torch.equal(tensors_of(loaded)[name], tensor)


@pytest.mark.parametrize("name", ["acts", "offsets", "positions", "documents", "kept"])
def test_a_store_whose_tensors_differ_in_length_is_refused(store: Store, name: str):
    tensors = tensors_of(store)
    tensors[name] = tensors[name][:-1]
    with pytest.raises(
        ValueError, match=r"the activation store is not what its stage writes .*its tensors differ in length"
    ):
        activations.read(tensors, {"layer": LAYER, "context": CONTEXT}, torch.device("cpu"))


# What is masked

NOTHING = torch.zeros(0, dtype=torch.long)


def rows_of(lengths: list[float], kept: list[int] | None = None) -> Activations:
    """Rows along (3, 4) with these norms, at consecutive offsets from 10 on."""
    acts = torch.tensor(lengths)[:, None] * torch.tensor([[0.6, 0.8]])
    numbers = torch.arange(len(acts))
    own = torch.tensor([1] * len(acts) if kept is None else kept, dtype=torch.bool)
    return Activations(acts, 10 + numbers, numbers, 0 * numbers, own)


def test_norms_are_of_rows():
    torch.testing.assert_close(norms(rows_of([5.0, 0.5]).acts), torch.tensor([5.0, 0.5]))


def test_special_tokens_and_norms_above_the_limit_are_masked_by_hand():
    # The median norm is 2, so that 20 is not above ten times it and 21 is.
    rows = rows_of([1.0, 2.0, 2.0, 20.0, 21.0, 1.0, 30.0])
    tokens = torch.cat([torch.full((10,), 9), torch.tensor([3, 3, 9, 3, 3, 8, 9])])
    mask = Mask.fit(rows.acts, torch.tensor([8, 9]), max_norm=10.0)
    assert mask.limit.item() == pytest.approx(20)
    assert mask(rows, tokens).kept.tolist() == [True, True, False, True, False, False, False]
    assert mask.counts(rows, tokens) == {"tokens": 7, "masked_special": 3, "masked_sink": 1}
    assert Mask.fit(rows.acts, NOTHING, 10.0)(rows, tokens).kept.tolist() == [True] * 4 + [False, True, False]


def test_without_a_limit_no_norm_is_masked():
    rows = rows_of([1.0, 1.0, 1e15])
    mask = Mask.fit(rows.acts, NOTHING, None)
    assert mask(rows, torch.zeros(13, dtype=torch.uint8)).kept.all()
    assert mask.limit.isfinite(), "it is written into a file"


def test_masked_rows_give_their_places_to_the_first_that_are_kept():
    rows = rows_of([1.0, 2.0, 3.0, 4.0, 5.0], kept=[0, 1, 1, 0, 1])
    filled = rows.filled()
    assert filled.offsets.tolist() == [11, 11, 12, 12, 14]
    torch.testing.assert_close(norms(filled.acts), torch.tensor([2.0, 2.0, 3.0, 3.0, 5.0]))
    assert filled.kept.all()
    assert filled.positions.tolist() == [1, 1, 2, 2, 4]


def test_few_kept_rows_stand_in_for_many_and_none_for_all():
    assert rows_of([1.0] * 5, kept=[0, 0, 1, 0, 1]).filled().offsets.tolist() == [12, 14, 12, 12, 14]
    rows = rows_of([1.0, 2.0])
    assert rows.filled() is rows
    with pytest.raises(ValueError, match=r"no token is kept: .* raise `extract_activations.max_norm`"):
        rows_of([1.0], kept=[0]).filled()


def test_batches_leave_masked_rows_out_and_x_does_not(store: Store):
    kept = torch.arange(len(store)) % 3 != 1
    kept[6:12] = False  # a batch without any
    masked = replace(store, activations=replace(store.activations, kept=kept))
    x = store.x(slice(0, len(store)))
    assert torch.equal(masked.x(slice(0, len(store))), x)
    batches = list(masked.batches(6))
    assert torch.equal(torch.cat(batches), x[kept])
    assert len(batches) == 39
    assert len(masked) == len(store)


def test_a_store_of_what_is_scored_has_the_kept_rows_and_their_places(store: Store):
    kept = torch.arange(len(store)) % 3 != 1
    own = replace(store, activations=replace(store.activations, kept=kept)).scored(slice(6, 18))
    rows = [6, 8, 9, 11, 12, 14, 15, 17]
    assert torch.equal(own.x(slice(None)), store.x(slice(None))[rows])
    for name in ("offsets", "positions", "documents"):
        assert torch.equal(getattr(own.activations, name), getattr(store.activations, name)[rows])
    assert own.kept.all()
    assert len(own) == 8
    whole = store.scored(slice(12)).activations.acts
    assert whole.data_ptr() == store.activations.acts.data_ptr(), "without a mask nothing is copied"


def documents_of(n_contexts: list[int]) -> Store:
    """Contexts of two tokens; those of each document follow each other, and each row's activation is its number."""
    n = 2 * sum(n_contexts)
    rows = torch.arange(n)
    documents = torch.arange(len(n_contexts)).repeat_interleave(2 * torch.tensor(n_contexts))
    kept = rows != 1
    acts = Activations(rows[:, None].float(), rows.int(), (rows % 2).int(), documents.int(), kept)
    return Store(acts, Normalizer(torch.zeros(1), torch.tensor(1.0)), LAYER, 2)


def contexts_of(store: Store) -> list[int]:
    first = store.activations.acts[::2, 0].int()
    assert store.activations.acts[:, 0].tolist() == [row for row in first.tolist() for row in (row, row + 1)]
    return (first // 2).tolist()


def test_a_part_of_a_store_has_the_same_share_of_every_document_in_whole_contexts():
    store = documents_of([4, 2, 6])
    assert contexts_of(store.spread(12)) == [0, 1, 4, 6, 7, 8]
    assert contexts_of(store.spread(13)) == [0, 1, 4, 6, 7, 8]
    assert contexts_of(store.spread(10**6)) == [*range(12)]
    assert len(store.spread(1)) == 2
    assert store.spread(12).kept.tolist() == [True, False] + 10 * [True]


def test_the_halves_of_a_store_have_text_of_every_document_and_no_row_in_common():
    store = documents_of([4, 2, 6])
    first, second = store.halves()
    assert (contexts_of(first), contexts_of(second)) == ([0, 1, 4, 6, 7, 8], [2, 3, 5, 9, 10, 11])
    assert contexts_of(store.halves_in_turn()) == contexts_of(first) + contexts_of(second)


@pytest.mark.parametrize("n_contexts", [[1, 1, 1, 1, 1], [3, 1, 5], [7], [1, 2]])
def test_halves_are_equal_up_to_one_context_and_together_the_whole(n_contexts: list[int]):
    first, second = (contexts_of(half) for half in documents_of(n_contexts).halves())
    assert sorted(first + second) == [*range(sum(n_contexts))]
    assert len(second) - len(first) == sum(n_contexts) % 2


def test_one_context_cannot_be_halved():
    with pytest.raises(ValueError, match="the number of contexts"):
        documents_of([1]).halves()


def test_positions_that_every_context_masks_are_sinks(store: Store):
    rows = store.activations
    kept = (rows.positions != 0) & ((rows.positions != 2) | (rows.offsets > 100))
    assert replace(store, activations=replace(rows, kept=kept)).masked_positions == [0]
    assert store.masked_positions == []


def test_the_normaliser_is_of_the_kept_rows():
    acts = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    kept = torch.arange(100) % 7 != 0
    found, expected = Normalizer.fit(torch.where(kept[:, None], acts, 1e6), kept), Normalizer.fit(acts[kept])
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.scale, expected.scale)


# Settings


@pytest.mark.parametrize(("layer", "n_layer"), [(3, 3), (7, 4)])
def test_a_layer_that_the_transformer_does_not_have_is_refused(layer: int, n_layer: int):
    config = ActivationConfig(layer, 10, 20, 30, 5, keep=True, max_norm=None, seed=0)
    config.check_layer(layer + 1)
    expected = rf"`extract_activations.layer` must be in 0..{n_layer - 1} \(the blocks\); not {layer}"
    with pytest.raises(ValueError, match=expected):
        config.check_layer(n_layer)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((-1, 1, 1, 1, 1), "`layer` must be 0 or above; not -1"),
        ((0, 1, 0, 1, 1), "`val_tokens` must be above 0; not 0"),
        ((0, 1, 1, 1, 0), "`block_tokens` must be above 0; not 0"),
        ((0, 1, 1, 1, 1, 1.0), "`max_norm` must be above 1, or null; not 1.0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(values: tuple, expected: str):
    with pytest.raises(ValueError, match=expected):
        ActivationConfig(*values[:5], keep=True, max_norm=next(iter(values[5:]), None), seed=0)
