"""Blocks of the training split against what is drawn without them; what is in memory, on disk, and resumed."""

import gc
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn

from hsae import blocks, parallel, variants
from hsae.activations import ActivationConfig, Activations, Normalizer, Store, collect
from hsae.blocks import Blocks, Plan, Written
from hsae.checkpoint import Checkpoints
from hsae.controls import contexts
from hsae.data import context_starts, windows
from hsae.files import fingerprint
from hsae.gradients import level_gradients
from hsae.streams import Stream
from hsae.training import Batches, Phase, fit
from tests.rows import Rows
from tests.test_resume import Result, check_resume

CONTEXT, D, BEGIN = 4, 3, 7
CPU = torch.device("cpu")
TOKENS = torch.randint(50, (BEGIN + 60 * CONTEXT + 2,), generator=torch.Generator().manual_seed(0))
STARTS = context_starts(torch.tensor([[BEGIN, len(TOKENS)]]), CONTEXT)
STREAM = Stream(3, "test")
NOTHING = torch.zeros(0, dtype=torch.long)
DOCUMENT_STARTS = torch.tensor([0, 100, 150])
TABLE = torch.randn(50, D, generator=torch.Generator().manual_seed(1))
SOURCES = {"models/transformer.safetensors": "of a model"}


def residual(tokens: Tensor) -> Tensor:
    """A stream that knows its token and its position."""
    return TABLE[tokens] + torch.arange(tokens.shape[1])[:, None]


def settings(train_tokens: int = 200, block_tokens: int = 64, keep: bool = True) -> ActivationConfig:
    return ActivationConfig(1, train_tokens, 1, 1, block_tokens, keep, max_norm=10.0, seed=0)


def plan(train_tokens: int = 200, block_tokens: int = 64) -> Plan:
    return Plan.draw(STARTS, DOCUMENT_STARTS, CONTEXT, settings(train_tokens, block_tokens), STREAM)


def make(p: Plan, block: int) -> Activations:
    return p.make(residual, TOKENS, block)


def written(folder: Path, p: Plan, keep: bool = True) -> Blocks:
    blocks.write(p, folder, partial(p.make, residual, TOKENS), TOKENS, NOTHING, settings(keep=keep), SOURCES)
    found = Written.read(folder, CPU)
    assert found.sources == SOURCES
    return found.kept() if keep else found.made(residual, TOKENS)


def check_equal(first: Activations, second: Activations) -> None:
    for name, tensor in vars(first).items():
        assert torch.equal(tensor, getattr(second, name)), name


# What blocks are made of


def test_one_block_is_what_is_drawn_without_blocks():
    order = torch.randperm(60, generator=STREAM.of("choice of contexts").torch())
    chosen = STARTS[order[:50]]
    shuffle = STREAM.of("shuffle of block", 0).torch()
    expected = collect(residual, windows(TOKENS, chosen, CONTEXT), chosen, DOCUMENT_STARTS, shuffle)
    p = plan(block_tokens=200)
    assert len(p) == 1
    check_equal(make(p, 0), expected)


def test_contexts_are_chosen_among_those_that_stay_within_a_document():
    ranges = torch.tensor([[7, 16], [16, 20], [20, 30]])
    p = Plan.draw(context_starts(ranges, CONTEXT), torch.tensor([7, 16, 20]), CONTEXT, settings(), STREAM)
    assert sorted(p.starts.tolist()) == [7, 11, 20, 24]
    rows = make(p, 0)
    assert sorted(rows.documents.tolist()) == [0] * 8 + [2] * 8


def test_blocks_are_the_contexts_in_their_order_each_shuffled():
    p, whole = plan(), plan(block_tokens=200)
    assert torch.equal(p.starts, whole.starts)
    assert len(p) == 4
    made = [make(p, block) for block in range(4)]
    assert [len(rows.acts) for rows in made] == [64, 64, 64, 8]
    for block, rows in enumerate(made):
        starts = whole.starts[16 * block : 16 * block + 16].tolist()
        expected = {start + position: position for start in starts for position in range(CONTEXT)}
        offsets = rows.offsets.tolist()
        assert sorted(offsets) == sorted(expected)
        assert offsets != list(expected)
        for row, offset in enumerate(offsets):
            assert rows.positions[row] == expected[offset]
            assert rows.documents[row] == sum(start <= offset for start in (100, 150))
            assert torch.equal(rows.acts[row], TABLE[TOKENS[offset]] + expected[offset])


def test_a_block_does_not_depend_on_what_was_made_before():
    p = plan()
    last = make(p, 2)
    make(p, 0)
    check_equal(make(p, 2), last)


@pytest.mark.parametrize("block_tokens", [1, 3, 4])
def test_a_block_has_one_context_at_least(block_tokens: int):
    assert len(plan(12, block_tokens)) == 3


# Kept and made again


@pytest.mark.parametrize("keep", [True, False])
def test_all_rows_are_normalised_as_the_first_block_says(keep: bool, tmp_path: Path):
    p = plan()
    data = written(tmp_path, p, keep)
    normalizer = Normalizer.fit(make(p, 0).acts)
    expected = torch.cat([normalizer(make(p, block).acts) for block in range(4)])
    assert (len(data), data.d_in, data.rows_per_block) == (200, D, 64)
    for rows in (
        slice(0, 64),
        slice(3, 5),
        slice(64, 70),
        slice(60, 140),
        slice(0, 1000),
        slice(190, 200),
        slice(5, 5),
    ):
        assert torch.equal(data.x(rows), expected[rows]), rows
    files = [f"{block:05d}.safetensors" for block in range(4)] * keep
    assert sorted(path.name for path in tmp_path.iterdir()) == [*files, "plan.safetensors"]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("n", "n_blocks"), [(1, 1), (64, 1), (65, 2), (200, 4), (1000, 4)])
def test_the_first_rows_are_those_of_as_few_blocks_as_have_them(keep: bool, n: int, n_blocks: int, tmp_path: Path):
    data = written(tmp_path, plan(), keep)
    first = data.first(n)
    assert torch.equal(first.x(slice(0, len(first))), data.x(slice(0, 64 * n_blocks)))
    assert (first.layer, first.context) == (1, CONTEXT)
    if n == 65:  # the contexts of a control, whose rows are all in it
        some = contexts(first, n)
        assert len(some) == 64
        check_equal(some.activations, make(plan(), 0))


@pytest.mark.parametrize("block", [0, 2])
def test_blocks_that_a_stopped_run_left_are_not_made_again(block: int, tmp_path: Path):
    p, made = plan(), []

    def counting(block: int, *_: object) -> Activations:
        made.append(block)
        return p.make(residual, TOKENS, block)

    expected = written(tmp_path / "whole", p)
    (tmp_path / "part").mkdir()
    name = f"{block:05d}.safetensors"
    (tmp_path / "part" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    (tmp_path / "part/.00003.safetensors.1234.tmp").write_text("half of it")
    fitted = blocks.write(p, tmp_path / "part", counting, TOKENS, NOTHING, settings(), SOURCES)
    assert len(list((tmp_path / "part").iterdir())) == 5
    assert made == [number for number in range(4) if number != block]
    assert torch.equal(fitted.normalizer.mean, expected.normalizer.mean)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "part" / path.name).read_bytes() == path.read_bytes()


# What is masked


def with_sinks(tokens: Tensor) -> Tensor:
    """The stream, of which token 0 has a norm of a hundred times the others'."""
    stream = residual(tokens)
    return torch.where((tokens == 0)[..., None], 100 * stream, stream)


@pytest.mark.parametrize("keep", [True, False])
def test_no_masked_token_is_trained_on_and_blocks_are_as_large_as_planned(keep: bool, tmp_path: Path):
    p, special = plan(), torch.tensor([3, 4])
    fitted = blocks.write(p, tmp_path, partial(p.make, with_sinks, TOKENS), TOKENS, special, settings(keep=keep), {})
    found = Written.read(tmp_path, CPU)
    data = found.kept() if keep else found.made(with_sinks, TOKENS)
    for number in range(4):
        rows, raw = data.block(number).activations, p.make(with_sinks, TOKENS, number)
        masked = torch.isin(TOKENS[raw.offsets.long()], torch.tensor([0, 3, 4]))
        assert number == 3 or 0 < masked.sum() < len(masked) / 2
        assert len(rows.acts) == len(raw.acts)
        assert not torch.isin(TOKENS[rows.offsets.long()], torch.tensor([0, 3, 4])).any()
        assert torch.equal(rows.acts[~masked], raw.acts[~masked])
        assert torch.equal(rows.offsets[masked], raw.offsets[~masked][: masked.sum()])
        if number == 0:
            counts = [masked.numel(), torch.isin(TOKENS[raw.offsets.long()], special).sum().item()]
            assert [fitted.counts[name] for name in ("tokens", "masked_special")] == counts
            assert fitted.counts["masked_sink"] == masked.sum() - counts[1] > 0
            expected = Normalizer.fit(raw.acts[~masked])
            torch.testing.assert_close(data.normalizer.mean, expected.mean)
            torch.testing.assert_close(data.normalizer.scale, expected.scale)


def test_a_run_that_goes_on_masks_what_the_stopped_one_did(tmp_path: Path):
    p, special = plan(), torch.tensor([3])
    for folder in ("whole", "part"):
        make_it = partial(p.make, with_sinks, TOKENS)
        if folder == "part":
            (tmp_path / "part").mkdir()
            first = (tmp_path / "whole/00000.safetensors").read_bytes()
            (tmp_path / "part/00000.safetensors").write_bytes(first)
        blocks.write(p, tmp_path / folder, make_it, TOKENS, special, settings(), {})
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "part" / path.name).read_bytes() == path.read_bytes()


# Memory


class Watched:
    """Makes blocks, and notes how many of their tensors were alive when another one was asked for."""

    def __init__(self, p: Plan):
        self.plan, self.alive, self.most, self.asked = p, [], 0, []

    def __call__(self, block: int, *_: object) -> Activations:
        gc.collect()
        self.most = max(self.most, 1 + sum(reference() is not None for reference in self.alive))
        rows = make(self.plan, block)
        self.alive.append(weakref.ref(rows.acts))
        self.asked.append(block)
        return rows


@pytest.mark.parametrize("keep", [True, False])
def test_extraction_holds_one_block_at_a_time(keep: bool, tmp_path: Path):
    watched = Watched(plan())
    blocks.write(plan(), tmp_path, watched, TOKENS, NOTHING, settings(keep=keep), SOURCES)
    assert watched.asked == ([0, 1, 2, 3] if keep else [0])
    assert watched.most == 1


def test_training_holds_one_block_at_a_time_and_makes_each_once_in_an_epoch():
    p = plan(192)
    watched = Watched(p)
    normalizer = Normalizer.fit(make(p, 0).acts)
    data = Blocks(p, normalizer, lambda block: Store(watched(block), normalizer, 1, CONTEXT))
    model = variants.build("topk", D, 8, k=2, beta=0.0)
    fit("phase1", model, data, level_gradients(model), Phase(3, 16, 1e-3, 0.2, 0.0), Stream(4, "test"), 100)
    assert watched.most == 1
    for epoch in range(3):
        assert sorted(watched.asked[3 * epoch : 3 * epoch + 3]) == [0, 1, 2]  # no two epochs met in a block here
    assert len(watched.asked) == 9


# The order of training


class Cut(Rows):
    """Rows in blocks."""

    def __init__(self, x: Tensor, rows_per_block: int):
        super().__init__(x)
        self.rows_per_block = rows_per_block


def order(n: int, block: int, size: int, epochs: int, seed: int = 0) -> list[list[int]]:
    """First rows of the batches of each epoch."""
    batches = Batches(Cut(torch.zeros(n, 1), block), size, Stream(seed, "test").torch())
    found = [batches.rows(step) for step in range(epochs * batches.n)]
    assert all(rows.stop - rows.start == size for rows in found)
    starts = [rows.start for rows in found]
    return [starts[epoch * batches.n : (epoch + 1) * batches.n] for epoch in range(epochs)]


@pytest.mark.parametrize(
    ("n", "block", "size", "expected"),
    [
        (24, 8, 4, [[0, 4], [8, 12], [16, 20]]),
        (29, 10, 4, [[0, 4], [10, 14], [20, 24]]),  # two rows of every block, and of the last one, are left out
        (22, 10, 4, [[0, 4], [10, 14]]),  # the last block is shorter than a batch
        (9, 9, 9, [[0]]),
    ],
)
def test_blocks_come_one_after_the_other_and_all_their_batches_with_them(
    n: int, block: int, size: int, expected: list[list[int]]
):
    for starts in order(n, block, size, 5):
        parts = [starts[at : at + len(expected[0])] for at in range(0, len(starts), len(expected[0]))]
        assert sorted(map(sorted, parts)) == expected


def test_the_order_of_blocks_and_that_of_batches_differ_from_epoch_to_epoch_and_repeat_for_a_seed():
    first, again, other = (order(512, 64, 4, 2, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    blocks_of = [[start // 64 for start in epoch[::16]] for epoch in first]
    within = [[[start % 64 for start in epoch if start // 64 == block] for block in range(8)] for epoch in first]
    assert blocks_of[0] != blocks_of[1]
    assert within[0] != within[1]
    assert within[0][0] != within[0][1]


@pytest.mark.parametrize("n", [64, 67, 3])
def test_one_block_has_the_order_of_data_without_blocks(n: int):
    whole, cut = (
        Batches(Rows(torch.zeros(n, 1)), 4, Stream(5, "test").torch()),
        Batches(Cut(torch.zeros(n, 1), n + 9), 4, Stream(5, "test").torch()),
    )
    generator = Stream(5, "test").torch()
    size = min(n, 4)
    expected = [size * i for _ in range(3) for i in torch.randperm(n // size, generator=generator).tolist()]
    for batches in (whole, cut):
        assert [batches.rows(step).start for step in range(3 * batches.n)] == expected
        assert torch.equal(batches.generator.get_state(), generator.get_state())


def test_epochs_count_whole_batches_of_blocks():
    phase = Phase(1.5, 4, 0.1, 0.0, 0.0)
    assert phase.n_steps(Cut(torch.zeros(29, 1), 10)) == 9


def test_a_batch_that_is_larger_than_a_block_is_refused():
    with pytest.raises(ValueError, match=r"^`batch_size` must be at most the tokens of a block \(=10\); not 16\.$"):
        Batches(Cut(torch.zeros(29, 1), 10), 16, torch.Generator())


def test_training_on_kept_blocks_gives_the_bits_of_training_on_made_ones_and_goes_on_after_kills(tmp_path: Path):
    kept, made = (written(tmp_path / str(keep), plan(), keep) for keep in (True, False))

    def run(data: Blocks, checkpoints: Checkpoints) -> Result:
        torch.manual_seed(0)
        model = variants.build("jumprelu", D, 12, k=2, beta=0.01)
        model.b_enc.data[:3] = -100.0
        phase = Phase(5, 8, 1e-2, 0.2, 0.3)
        curve = fit("phase1", model, data, level_gradients(model), phase, Stream(3, "test"), 50, checkpoints)
        return model.state_dict(), [curve]

    check_resume(partial(run, made), tmp_path / "of made", "made")
    check_resume(partial(run, kept), tmp_path / "of kept", "kept")
    (first, first_curves), (second, second_curves) = (run(data, Checkpoints()) for data in (kept, made))
    assert first_curves == second_curves
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


# Several processes


def write_as_a_rank(rank: int, n: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=n)
    p, alone = plan(), []

    def watched(*given: object) -> Activations:
        alone.append((given[0], given[2] is map))
        return p.make(residual, TOKENS, *given)  # pyright: ignore

    blocks.write(p, Path(folder, "blocks"), watched, TOKENS, NOTHING, settings(), SOURCES)
    parallel.wait()  # rank 0 writes the plan
    assert alone == [[(0, False), (1, True), (3, True)], [(0, False), (2, True)]][rank]
    data = Written.read(Path(folder, "blocks"), CPU).made(residual, TOKENS)
    for block in range(4):
        check_equal(data.block(block).activations, make_alone(p, block))
    dist.destroy_process_group()


def make_alone(p: Plan, block: int) -> Activations:
    return p.make(residual, TOKENS, block, None, map)  # pyright: ignore


def test_two_processes_write_the_files_of_one_each_its_own_blocks(tmp_path: Path):
    spawn(write_as_a_rank, (2, str(tmp_path)), nprocs=2)
    written(tmp_path / "alone", plan())
    files = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert sorted(path.name for path in (tmp_path / "blocks").iterdir()) == files
    for name in files:
        assert (tmp_path / "blocks" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


# Faults


@pytest.mark.parametrize("fault", ["missing", "swapped", "truncated", "of another run"])
def test_a_block_that_is_not_the_one_that_was_written_is_named(fault: str, tmp_path: Path):
    written(tmp_path / "a", plan())
    first, second = (tmp_path / "a" / f"0000{block}.safetensors" for block in (1, 2))
    content = first.read_bytes()
    if fault == "missing":
        first.unlink()
    elif fault == "swapped":
        first.write_bytes(second.read_bytes())
    elif fault == "truncated":
        first.write_bytes(content[:20])
    else:
        other = replace(plan(), starts=plan().starts.flip(0))
        written(tmp_path / "b", other)
        first.write_bytes((tmp_path / "b" / first.name).read_bytes())
        assert len(first.read_bytes()) == len(content)
    expected = r"00001\.safetensors is damaged \(it is not the one that .*plan\.safetensors names\); remove it and run"
    with pytest.raises(ValueError, match=expected):
        Written.read(tmp_path / "a", CPU)


def test_a_flipped_bit_of_a_block_is_found_when_training_comes_to_it(tmp_path: Path):
    data = written(tmp_path, plan())
    path = tmp_path / "00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    data.x(slice(0, 128))
    with pytest.raises(ValueError, match=r"00002\.safetensors is damaged"):
        data.x(slice(128, 130))


def test_the_fingerprint_of_a_file_tells_contents_apart(tmp_path: Path):
    first, again, other = (tmp_path / name / "plan.safetensors" for name in "abc")
    for path, p in ((first, plan()), (again, plan()), (other, plan(block_tokens=32))):
        written(path.parent, p)
    assert fingerprint(first) == fingerprint(again) != fingerprint(other)
    (tmp_path / "empty").touch()
    assert fingerprint(tmp_path / "empty") != fingerprint(first)
