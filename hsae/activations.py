"""Residual-stream activations: collected from the transformer, stored with where they come from, read in batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from hsae import parallel
from hsae.config import check, check_positive
from hsae.data import first_of_each
from hsae.files import understanding, write_tensors
from hsae.progress import Progress

CHUNK = 65536  # rows


@dataclass
class ActivationConfig:
    """Section `extract_activations`: the residual stream after which block (from 0), and how many tokens per split.

    The training split comes in blocks of `block_tokens` (hsae/blocks.py), which are kept in files or made when needed.
    The splits `test` and `final` have `test_tokens` each. Activations of a norm above `max_norm` times the median are
    sinks (`Mask`); null: none are.
    """

    layer: int
    train_tokens: int
    val_tokens: int
    test_tokens: int
    block_tokens: int
    keep: bool
    max_norm: float | None
    seed: int

    def __post_init__(self) -> None:
        check("layer", self.layer, "0 or above", self.layer >= 0)
        check_positive(self, ["train_tokens", "val_tokens", "test_tokens", "block_tokens"])
        check("max_norm", self.max_norm, "above 1, or null", self.max_norm is None or self.max_norm > 1)

    def check_layer(self, n_layer: int) -> None:
        """Raise ValueError if the transformer has no such block."""
        check("extract_activations.layer", self.layer, f"in 0..{n_layer - 1} (the blocks)", self.layer < n_layer)


@dataclass(frozen=True)
class Normalizer:
    """Centres activations and scales them to unit variance per coordinate on average, by one factor for all."""

    mean: Float[Tensor, " d_model"]
    scale: Float[Tensor, ""]

    @classmethod
    def fit(cls, acts: Float[Tensor, "n d_model"], kept: Bool[Tensor, " n"] | None = None) -> "Normalizer":
        """Mean and scale of `acts`, or of those that are kept, summed in float64.

        Raises ValueError if they are constant or not finite.
        """
        kept = torch.ones(len(acts), dtype=torch.bool) if kept is None else kept
        n = int(kept.sum())

        def chunks() -> Iterator[Tensor]:  # a copy of all would not fit beside them
            pairs = zip(acts.split(CHUNK), kept.to(acts.device).split(CHUNK), strict=True)
            return (chunk[own].double() for chunk, own in pairs)

        mean = torch.stack([chunk.sum(0) for chunk in chunks()]).sum(0) / n
        squares = sum((chunk - mean).square().sum() for chunk in chunks())
        scale = (torch.as_tensor(squares) / (n * acts.shape[1])).sqrt()
        if not (scale.isfinite() and scale > 0):
            raise ValueError(f"the activations have standard deviation {scale.item()}; they must be finite and vary.")
        return cls(mean.float(), scale.float())

    @classmethod
    def of(cls, tensors: dict[str, Tensor], device: torch.device) -> "Normalizer":
        """The one that lies among the tensors of a file. Raises KeyError if none does."""
        return cls(tensors["mean"].to(device), tensors["scale"].to(device))

    def __call__(self, acts: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """Model space -> autoencoder space."""
        return (acts - self.mean) / self.scale

    def inverse(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """Autoencoder space -> model space."""
        return x * self.scale + self.mean


@dataclass(frozen=True)
class Activations:
    """Activations of one split, in model space, and for each the corpus offset of the token that it belongs to.

    What is not `kept` is neither to be trained on nor to be scored (`Mask`).
    """

    acts: Float[Tensor, "n d_model"]
    offsets: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    documents: Int[Tensor, " n"]
    kept: Bool[Tensor, " n"]

    def filled(self) -> "Activations":
        """As many rows, all kept: each row that is not gives its place to one that is.

        These are the first kept ones, each once, then again from the first if need be. The rows of a block are in
        random order, so that both, which are left out and which stand in for them, are spread over it at random.
        Raises ValueError if nothing is kept.
        """
        if self.kept.all():
            return self
        own, place = self.kept.nonzero()[:, 0], torch.arange(len(self.kept))
        if not len(own):
            raise ValueError("no token is kept: all are special ones, or sinks; raise `extract_activations.max_norm`.")
        gaps = (~self.kept).nonzero()[:, 0]
        place[gaps] = own[torch.arange(len(gaps)) % len(own)]
        return Activations(**{name: values[place.to(values.device)] for name, values in vars(self).items()})


@dataclass(frozen=True)
class Mask:
    """Which tokens are neither trained on nor scored: special ones, and attention sinks.

    A special token stands for no text (`<|endoftext|>`). A sink is a token on which attention rests where it has
    nothing to look at; its activation is many times as large as any other (Xiao et al. 2023, arXiv 2309.17453), so that
    most of the variance would be its own. dictionary_learning and SAELens leave out norms above ten times the median.
    """

    special: Int[Tensor, " special"]
    """Tokens of the vocabulary."""
    limit: Float[Tensor, ""]
    """The norm above which an activation is a sink's."""

    @classmethod
    def fit(cls, acts: Float[Tensor, "n d_model"], special: Int[Tensor, " special"], max_norm: float | None) -> "Mask":
        """The limit is `max_norm` times the median norm of `acts`, or, if that is None, above all."""
        no_limit = torch.tensor(torch.finfo(torch.float32).max)  # files hold nothing infinite
        return cls(special, no_limit if max_norm is None else max_norm * norms(acts).median())

    def reasons(self, rows: Activations, tokens: Integer[Tensor, " corpus"]) -> dict[str, Bool[Tensor, " n"]]:
        """Which rows each reason masks: `special` tokens, and `sink`s among the others."""
        special = torch.isin(tokens[rows.offsets.long()], self.special.to(tokens.dtype))
        return {"special": special, "sink": ~special & (norms(rows.acts) > self.limit)}

    def counts(self, rows: Activations, tokens: Integer[Tensor, " corpus"]) -> dict[str, float]:
        """How many tokens there are, and how many of them each reason masks."""
        masked = {f"masked_{name}": int(own.sum()) for name, own in self.reasons(rows, tokens).items()}
        return {"tokens": len(rows.acts), **masked}

    def __call__(self, rows: Activations, tokens: Integer[Tensor, " corpus"]) -> Activations:
        """The same rows, of which all are kept that no reason masks."""
        special, sink = self.reasons(rows, tokens).values()
        return replace(rows, kept=~(special | sink))


def norms(acts: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
    """Length of each activation; on the CPU."""
    return torch.cat([chunk.norm(dim=1).cpu() for chunk in acts.split(CHUNK)])


@dataclass(frozen=True)
class Store:
    """Activations of a split, or of a block of one, with the normalisation that the training split defines.

    A split that is evaluated on is in whole contexts, in their order, so `x` has rows that are masked too. What looks
    at each row by itself reads `scored`, or `batches`; what needs whole contexts leaves out what is not `kept`.
    """

    activations: Activations
    normalizer: Normalizer
    layer: int
    context: int

    @property
    def d_in(self) -> int:
        """Coordinates of an activation."""
        return self.activations.acts.shape[1]

    @property
    def kept(self) -> Bool[Tensor, " n"]:
        """Which rows are trained on and scored; on the CPU."""
        return self.activations.kept

    def __len__(self) -> int:
        return len(self.activations.acts)

    def x(self, rows: slice) -> Float[Tensor, "batch d_in"]:
        """Normalised activations, the autoencoders' input, at some rows, whether kept or not."""
        return self.normalizer(self.activations.acts[rows])

    def batches(self, size: int = 4096) -> Iterator[Float[Tensor, "_ d_in"]]:
        """The rows that are kept, normalised, in their order: those of `size` rows at a time."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            x, own = self.x(rows), self.kept[rows]
            if own.any():
                yield x if own.all() else x[own.to(x.device)]

    def scored(self, rows: slice) -> "Store":
        """A store of those among some rows that are kept, and so no longer of whole contexts."""
        own = self.kept[rows]
        parts = {name: values[rows] for name, values in vars(self.activations).items()}
        if not own.all():
            parts = {name: values[own.to(values.device)] for name, values in parts.items()}
        return replace(self, activations=Activations(**parts))

    def spread(self, n_tokens: int) -> "Store":
        """As many whole contexts as so many tokens make, one at least: the first ones of each document, in order.

        All documents give the same share of theirs: the beginning of a split is text of one document, which would stand
        for all. The rows must be whole contexts, in order; so are those of the result.
        """
        return self._contexts(first_of_each(self._documents, max(n_tokens // self.context, 1)).nonzero()[:, 0])

    def halves(self) -> tuple["Store", "Store"]:
        """The contexts of the first half of each document, and those of the second; whole contexts, in order.

        Raises ValueError if there are not two contexts.
        """
        n = len(self._documents) // 2
        check("the number of contexts", len(self._documents), "at least 2, to be halved", n > 0)
        first = first_of_each(self._documents, n)
        return self._contexts(first.nonzero()[:, 0]), self._contexts((~first).nonzero()[:, 0])

    def halves_in_turn(self) -> "Store":
        """The same contexts in another order: the first half of each document, and then the second of each.

        What is chosen on the first half of the rows and scored on the second is then so on text of all documents.
        """
        first = first_of_each(self._documents, len(self._documents) // 2)
        return self._contexts(torch.cat([first.nonzero()[:, 0], (~first).nonzero()[:, 0]]))

    @property
    def _documents(self) -> Int[Tensor, " window"]:
        return self.activations.documents[:: self.context]

    def _contexts(self, contexts: Int[Tensor, " window"]) -> "Store":
        rows = (contexts[:, None] * self.context + torch.arange(self.context)).flatten()
        parts = {name: values[rows.to(values.device)] for name, values in vars(self.activations).items()}
        return replace(self, activations=Activations(**parts))

    @property
    def masked_positions(self) -> list[int]:
        """Positions that are masked in every context: those of sinks. The rows must be whole contexts, in order."""
        return (~self.kept.view(-1, self.context).any(0)).nonzero()[:, 0].tolist()

    def windows(self, tokens: Integer[Tensor, " corpus"]) -> Integer[Tensor, "window context_plus_1"]:
        """Tokens of the contexts that the rows, in their order, come from, each with the target after its last one."""
        first = self.activations.offsets[:: self.context, None].long()
        return tokens[first + torch.arange(self.context + 1)]

    def write(self, path: Path) -> None:
        """Write what `read` reads."""
        tensors = {**vars(self.activations), **vars(self.normalizer)}
        write_tensors(path, tensors, {"layer": self.layer, "context": self.context})


def read(tensors: dict[str, Tensor], header: dict[str, Any], device: torch.device) -> Store:
    """The store saved as these tensors and header, activations on `device`. Raises ValueError if its parts disagree."""
    with understanding("the activation store"):
        fields = {name: tensors[name] for name in ("acts", "offsets", "positions", "documents", "kept")}
        if len({len(tensor) for tensor in fields.values()}) != 1:
            raise ValueError("its tensors differ in length")
        normalizer = Normalizer.of(tensors, device)
        fields["acts"] = fields["acts"].to(device)
        return Store(Activations(**fields), normalizer, header["layer"], header["context"])


@torch.no_grad()
def collect(
    residual: Callable[[Integer[Tensor, "window pos"]], Float[Tensor, "window pos d_model"]],
    windows: Integer[Tensor, "window context_plus_1"],
    first_offsets: Int[Tensor, " window"],
    document_starts: Int[Tensor, " document"],
    shuffle: torch.Generator | None = None,
    bar: Progress | None = None,
    each: Callable[..., Iterator[Tensor]] = parallel.in_turn,
) -> Activations:
    """Residual stream at every input position of `windows`, in order, or, given a generator, all tokens shuffled.

    `residual` maps tokens to their residual stream; `first_offsets` are the windows' offsets in the corpus; `bar`
    counts windows. Nothing is masked yet. Several processes (hsae/parallel.py) share out the windows, and all get the
    same, unless `each` is `map`: then this one does all. Raises ValueError if an activation is not finite.
    """
    n_windows, context = windows.shape[0], windows.shape[1] - 1
    n = n_windows * context
    place = torch.arange(n) if shuffle is None else torch.randperm(n, generator=shuffle)
    acts = None
    chunks = each(lambda chunk: residual(chunk[:, :-1]).flatten(0, 1), windows.split(64))
    for places, chunk in zip(place.split(64 * context), chunks, strict=True):
        acts = torch.empty(n, chunk.shape[1]) if acts is None else acts
        acts[places] = chunk.cpu()
        if bar:
            bar.advance(len(chunk) // context)
    if acts is None or not acts.isfinite().all():
        raise ValueError("the transformer's activations are not finite: train it again with a lower learning rate.")
    source = torch.empty(n, dtype=torch.long)
    source[place] = torch.arange(n)
    positions = source % context
    offsets = first_offsets[source // context] + positions
    documents = torch.searchsorted(document_starts, offsets, right=True) - 1
    return Activations(acts, offsets.int(), positions.int(), documents.int(), torch.ones(n, dtype=torch.bool))
