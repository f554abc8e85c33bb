"""The training split in blocks, one of which is in memory at a time: it may have more activations than memory or disk.

Blocks lie in files, which several processes make side by side; or each is made by the language model whenever training
comes to it, and nothing is kept. Either way a block is the same to the bit, since it depends on the plan alone.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from hsae import activations, parallel
from hsae.activations import ActivationConfig, Activations, Mask, Normalizer, Store, collect, norms
from hsae.data import windows
from hsae.files import damaged, fingerprint, read_tensors, understanding, write_tensors
from hsae.progress import Progress
from hsae.streams import Stream

CPU = torch.device("cpu")
PLAN = "plan.safetensors"  # beside the blocks
TENSORS = ("starts", "shuffles", "document_starts")  # of a plan, in that file

Residual = Callable[[Integer[Tensor, "window pos"]], Float[Tensor, "window pos d_model"]]
"""Maps tokens to their residual stream."""
Make = Callable[[int, Progress, Callable[..., Iterator[Tensor]]], Activations]
"""`Plan.make` with its model and its tokens."""


@dataclass(frozen=True)
class Plan:
    """What each block is made of: contexts of the corpus, chosen at random, whose tokens are shuffled in the block."""

    starts: Int[Tensor, " context"]
    """Corpus offset of each context's first token, block after block."""
    shuffles: Integer[Tensor, "block state"]
    """State of the random generator that shuffles a block."""
    document_starts: Int[Tensor, " document"]
    layer: int
    context: int
    contexts_per_block: int
    """The last block may have fewer."""

    @classmethod
    def draw(
        cls,
        starts: Int[Tensor, " window"],
        document_starts: Int[Tensor, " document"],
        context: int,
        c: ActivationConfig,
        stream: Stream,
    ) -> "Plan":
        """Choose among the contexts of a split, which begin at the offsets `starts`."""
        order = torch.randperm(len(starts), generator=stream.of("choice of contexts").torch())
        chosen, per_block = starts[order[: max(c.train_tokens // context, 1)]], max(c.block_tokens // context, 1)
        n_blocks = math.ceil(len(chosen) / per_block)
        shuffles = [stream.of("shuffle of block", block).torch().get_state() for block in range(n_blocks)]
        return cls(chosen, torch.stack(shuffles), document_starts, c.layer, context, per_block)

    def __len__(self) -> int:
        return len(self.shuffles)

    @property
    def rows_per_block(self) -> int:
        """Tokens of a block; the last one may have fewer."""
        return self.contexts_per_block * self.context

    def contexts(self, block: int) -> Int[Tensor, " context"]:
        """Corpus offsets of a block's contexts."""
        return self.starts[block * self.contexts_per_block : (block + 1) * self.contexts_per_block]

    def make(
        self,
        residual: Residual,
        tokens: Integer[Tensor, " corpus"],
        block: int,
        bar: Progress | None = None,
        each: Callable[..., Iterator[Tensor]] = parallel.in_turn,
    ) -> Activations:
        """The rows of a block; `bar` and `each` are those of `activations.collect`."""
        starts = self.contexts(block)
        shuffle = torch.Generator()
        shuffle.set_state(self.shuffles[block].clone())  # torch crashes on a part of a tensor
        cut = windows(tokens, starts, self.context)
        return collect(residual, cut, starts, self.document_starts, shuffle, bar, each)


class Blocks:
    """The rows of the training split (`training.Shuffled`), of which the block that was read last is in memory.

    `get` reads or makes the block of a number. Rows that are masked give their places to others of the block
    (`Activations.filled`), so that blocks are as large as planned, and nothing that is masked is trained on.
    """

    def __init__(self, plan: Plan, normalizer: Normalizer, get: Callable[[int], Store]):
        self.plan, self.normalizer, self.get = plan, normalizer, get
        self.rows_per_block = plan.rows_per_block
        self._last: tuple[int, Store] | None = None

    @property
    def d_in(self) -> int:
        """Coordinates of an activation."""
        return len(self.normalizer.mean)

    def __len__(self) -> int:
        return len(self.plan.starts) * self.plan.context

    def block(self, number: int) -> Store:
        """A block, in the place of the one before."""
        if not self._last or self._last[0] != number:
            self._last = None  # first: two would not fit
            store = self.get(number)
            self._last = number, replace(store, activations=store.activations.filled())
        return self._last[1]

    def x(self, rows: slice) -> Float[Tensor, "batch d_in"]:
        """Normalised activations, the autoencoders' input, at some rows, which may be of several blocks."""
        start, stop, _ = rows.indices(len(self))
        parts, size = [], self.rows_per_block
        for number in range(start // size, math.ceil(stop / size)):
            at = number * size
            parts.append(self.block(number).x(slice(max(start - at, 0), min(stop - at, size))))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def first(self, n_rows: int) -> Store:
        """As many blocks from the first on as have `n_rows` rows, all of them in memory."""
        n_blocks = math.ceil(min(n_rows, len(self)) / self.rows_per_block)
        if n_blocks == 1:
            return self.block(0)
        rows = [vars(self.block(number).activations) for number in range(n_blocks)]
        joined = Activations(**{name: torch.cat([tensors[name] for tensors in rows]) for name in rows[0]})
        return Store(joined, self.normalizer, self.plan.layer, self.plan.context)


@dataclass(frozen=True)
class Fitted:
    """What the first block says of all: how activations are normalised, and which are masked."""

    normalizer: Normalizer
    mask: Mask
    counts: dict[str, float]
    """Of the first block: its tokens, how many of them each reason masks, and the median norm."""

    @classmethod
    def to(
        cls,
        rows: Activations,
        tokens: Integer[Tensor, " corpus"],
        special: Int[Tensor, " special"],
        c: ActivationConfig,
    ) -> "Fitted":
        """Fit to a block, whatever of it is marked as masked already."""
        mask = Mask.fit(rows.acts, special, c.max_norm)
        normalizer = Normalizer.fit(rows.acts, mask(rows, tokens).kept)
        return cls(normalizer, mask, mask.counts(rows, tokens) | {"median_norm": norms(rows.acts).median().item()})


def write(
    plan: Plan,
    folder: Path,
    make: Make,
    tokens: Integer[Tensor, " corpus"],
    special: Int[Tensor, " special"],
    c: ActivationConfig,
    sources: dict[str, str],
) -> Fitted:
    """Write the plan, and the blocks if they are to be kept; returns what is fitted to the first.

    Several processes make the first block together, and each other one alone. What lies in the folder already, from a
    run that was stopped, is not made again. A block's file has its masked rows too. `tokens` are those of the corpus,
    `special` ones of the vocabulary; `sources` are the fingerprints of the files that blocks are made of.
    """
    own = [0, *range(1 + parallel.rank(), len(plan), parallel.size())] if c.keep else [0]
    fitted = None
    with Progress("extract_activations", sum(len(plan.contexts(block)) for block in own)) as bar:
        for block in own:
            made = c.keep and _file(folder, block).is_file()
            # Rank 0 says it for all that make the first one.
            made = bool(parallel.first_says(int(made))) if block == 0 else made
            if not made or fitted is None:
                rows = _read_file(_file(folder, block), CPU).activations if made else make(block, bar, _each(block))
                fitted = fitted or Fitted.to(rows, tokens, special, c)
                if not made and c.keep and (block or parallel.rank() == 0):
                    rows = fitted.mask(rows, tokens)
                    Store(rows, fitted.normalizer, plan.layer, plan.context).write(_file(folder, block))
                del rows  # or there would be two
            if made:
                bar.advance(len(plan.contexts(block)))
    assert fitted
    parallel.wait()
    if parallel.rank() == 0:
        for part in folder.glob(".*.tmp"):  # of a file that was being written when a run was killed
            part.unlink()
        numbers = {name: getattr(plan, name) for name in ("layer", "context", "contexts_per_block")}
        tensors = {name: getattr(plan, name) for name in TENSORS} | vars(fitted.normalizer) | vars(fitted.mask)
        files = [fingerprint(_file(folder, block)) for block in range(len(plan))] if c.keep else []
        write_tensors(folder / PLAN, tensors, {"plan": numbers, "files": files, "sources": sources})
    return fitted


@dataclass(frozen=True)
class Written:
    """What `write` left in a folder."""

    folder: Path
    device: torch.device
    plan: Plan
    normalizer: Normalizer
    mask: Mask
    files: list[str]
    """Fingerprints of the blocks' files, if they were kept."""
    sources: dict[str, str]

    @classmethod
    def read(cls, folder: Path, device: torch.device) -> "Written":
        """What lies there, for blocks on `device`.

        Raises ValueError if the plan, or a block's file, is not the one that was written.
        """
        tensors, header = read_tensors(folder / PLAN)
        with understanding("the plan of the training split"):
            normalizer, mask = Normalizer.of(tensors, device), Mask(tensors["special"], tensors["limit"])
            plan = Plan(**{name: tensors[name] for name in TENSORS}, **header["plan"])
            written = cls(folder, device, plan, normalizer, mask, header["files"], header["sources"])
        for block, expected in enumerate(written.files):
            file = _file(folder, block)
            if not file.is_file() or fingerprint(file) != expected:
                raise damaged(file, f"it is not the one that {folder / PLAN} names")
        return written

    def kept(self) -> Blocks:
        """The blocks in their files."""
        return Blocks(self.plan, self.normalizer, lambda block: _read_file(_file(self.folder, block), self.device))

    def made(self, residual: Residual, tokens: Integer[Tensor, " corpus"]) -> Blocks:
        """The same without files; several processes must ask for each block together."""

        def get(block: int) -> Store:
            rows = self.mask(self.plan.make(residual, tokens, block), tokens)
            rows = replace(rows, acts=rows.acts.to(self.device))
            return Store(rows, self.normalizer, self.plan.layer, self.plan.context)

        return Blocks(self.plan, self.normalizer, get)


def _each(block: int) -> Callable[..., Iterator[Tensor]]:
    return map if block else parallel.in_turn


def _file(folder: Path, block: int) -> Path:
    return folder / f"{block:05d}.safetensors"


def _read_file(file: Path, device: torch.device) -> Store:
    return activations.read(*read_tensors(file), device)
