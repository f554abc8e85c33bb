"""What a language model is to the rest: its residual stream can be read, and resumed from, after any block."""

from abc import abstractmethod
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hsae.config import check, check_positive


class Source(StrEnum):
    """Where the language model comes from."""

    train = "train"
    hf = "hf"


@dataclass
class ModelConfig:
    """Section `model`: a transformer on characters that is trained, or a pretrained one of Hugging Face's format.

    Of a pretrained one (hf) only: name: the folder that holds it, `package:` and the name of an installed package that
    carries it, or its name on the Hub; gguf_file: the file in there, if it is one; download: whether the Hub may be
    asked for what is not in its cache; context: tokens that it reads at once.
    """

    source: Source
    name: str | None
    gguf_file: str | None
    download: bool
    context: int

    def __post_init__(self) -> None:
        check_positive(self, ["context"])
        check(
            "name", self.name, "a folder or a name, where source is hf", self.source == Source.train or bool(self.name)
        )


class CausalLM(nn.Module):
    """Decoder-only language model over `n_vocab` tokens, of which it reads at most `context` at once.

    `residual(tokens, layer)` runs up to and including block `layer` of `n_layer` (counted from 0; -1 is the embeddings)
    and `logits(residual, layer)` goes on from there, so patching an activation is an ordinary function call between the
    two, and extraction never computes the layers above.
    """

    def __init__(self, n_layer: int, context: int, n_vocab: int):
        super().__init__()
        self.n_layer, self.context, self.n_vocab = n_layer, context, n_vocab

    @abstractmethod
    def residual(self, tokens: Int[Tensor, "batch pos"], layer: int) -> Float[Tensor, "batch pos d_model"]:
        """Residual stream after block `layer`."""

    @abstractmethod
    def logits(self, residual: Float[Tensor, "batch pos d_model"], layer: int) -> Float[Tensor, "batch pos n_vocab"]:
        """Next-token logits, given the residual stream after block `layer`."""

    @abstractmethod
    def last_logits(self, residual: Float[Tensor, "batch pos d_model"], layer: int) -> Float[Tensor, "batch n_vocab"]:
        """The same after the last token alone."""

    def logits_at(
        self, residual: Float[Tensor, "batch pos d_model"], layer: int, at: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "chosen n_vocab"]:
        """The same at some positions alone, in their order; a model that can do so works only there."""
        return self.logits(residual, layer)[at]

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos n_vocab"]:
        """Next-token logits at every position."""
        last = self.n_layer - 1
        return self.logits(self.residual(tokens, last), last)

    @torch.no_grad()
    def generate(self, prompt: Int[Tensor, " pos"], n_tokens: int, generator: torch.Generator) -> Int[Tensor, " out"]:
        """Continue `prompt` by `n_tokens` tokens sampled at temperature 1."""
        self.eval()
        tokens, last = prompt, self.n_layer - 1
        for _ in range(n_tokens):
            logits = self.last_logits(self.residual(tokens[None, -self.context :], last), last)[0]
            next_token = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator)
            tokens = torch.cat([tokens, next_token.to(tokens.device)])
        return tokens
