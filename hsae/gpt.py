"""A character transformer whose residual stream can be read, and resumed from, after any block.

The architecture is nanoGPT's (Karpathy 2022), which follows GPT-2 (Radford et al. 2019): pre-LayerNorm blocks,
learned positions, tied embeddings, no biases, residual projections initialised at 0.02 / sqrt(2 n_layer).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from hsae.causal_lm import CausalLM
from hsae.files import understanding
from hsae.products import Linear, linear
from hsae.streams import Stream


@dataclass
class GPTConfig:
    """Shape of the transformer; `context` is its longest input in tokens."""

    n_layer: int
    n_head: int
    d_model: int
    context: int
    dropout: float


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.qkv = Linear(config.d_model, 3 * config.d_model)
        self.proj = Linear(config.d_model, config.d_model)

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """Mix information over earlier positions."""
        return F.dropout(self.proj(self.mixed(x)), self.dropout, self.training)

    def mixed(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What all heads bring together, before it is projected."""
        heads = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(*heads, dropout_p=dropout, is_causal=True).transpose(1, 2).flatten(-2)


class Block(nn.Module):
    """One pre-LayerNorm transformer block: attention, then an MLP four times as wide."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.dropout = config.dropout
        self.ln_attn = nn.LayerNorm(config.d_model, bias=False)
        self.attn = Attention(config)
        self.ln_mlp = nn.LayerNorm(config.d_model, bias=False)
        self.up = Linear(config.d_model, 4 * config.d_model)
        self.down = Linear(4 * config.d_model, config.d_model)

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """Add the block's two contributions to the residual stream."""
        return self._add_mlp(x + self.attn(self.ln_attn(x)))

    def last(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_model"]:
        """What it leaves at the last position; without dropout."""
        q, k, v = (
            part.unflatten(-1, (self.attn.n_head, -1)).transpose(1, 2)
            for part in self.attn.qkv(self.ln_attn(x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q[:, :, -1:], k, v)
        return self._add_mlp(x[:, -1] + self.attn.proj(mixed.transpose(1, 2).flatten(-2))[:, 0])

    def at(
        self, x: Float[Tensor, "batch pos d_model"], at: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "chosen d_model"]:
        """What it leaves at some positions; without dropout."""
        return self._add_mlp(x[at] + self.attn.proj(self.attn.mixed(self.ln_attn(x))[at]))

    def _add_mlp(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        mlp = self.down(F.gelu(self.up(self.ln_mlp(x))))
        return x + F.dropout(mlp, self.dropout, self.training)


class GPT(CausalLM):
    """The language model that the pipeline trains itself, over `n_vocab` characters."""

    def __init__(self, config: GPTConfig, n_vocab: int):
        super().__init__(config.n_layer, config.context, n_vocab)
        self.config = config
        self.token_embedding = nn.Embedding(n_vocab, config.d_model)
        self.position_embedding = nn.Embedding(config.context, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_final = nn.LayerNorm(config.d_model, bias=False)
        self.apply(_initialise)
        for name, parameter in self.named_parameters():
            if name.endswith(("proj.weight", "down.weight")):
                nn.init.normal_(parameter, std=0.02 / (2 * config.n_layer) ** 0.5)

    def residual(self, tokens: Int[Tensor, "batch pos"], layer: int) -> Float[Tensor, "batch pos d_model"]:
        """Residual stream after block `layer`."""
        x = self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.blocks[: layer + 1]:
            x = block(x)
        return x

    def logits(self, residual: Float[Tensor, "batch pos d_model"], layer: int) -> Float[Tensor, "batch pos n_vocab"]:
        """Next-character logits, given the residual stream after block `layer`."""
        for block in self.blocks[layer + 1 :]:
            residual = block(residual)
        return self._head(residual)

    def last_logits(self, residual: Float[Tensor, "batch pos d_model"], layer: int) -> Float[Tensor, "batch n_vocab"]:
        """The same after the last character alone, where the last block works only there."""
        residual, last = self._before_last(residual, layer)
        return self._head(last.last(residual) if last else residual[:, -1])

    def logits_at(
        self, residual: Float[Tensor, "batch pos d_model"], layer: int, at: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "chosen n_vocab"]:
        """The same at some positions alone, where the last block works only there but for its attention."""
        residual, last = self._before_last(residual, layer)
        return self._head(last.at(residual, at) if last else residual[at])

    def _before_last(
        self, residual: Float[Tensor, "batch pos d_model"], layer: int
    ) -> tuple[Float[Tensor, "batch pos d_model"], Block | None]:
        """The stream before the last block, given that after block `layer`, and that block, if it is not `layer`."""
        *blocks, last = [None, *self.blocks[layer + 1 :]]
        for block in blocks[1:]:
            residual = block(residual)
        assert last is None or isinstance(last, Block)
        return residual, last

    def _head(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch n_vocab"]:
        return linear(self.ln_final(residual), self.token_embedding.weight)


def load(tensors: dict[str, Tensor], header: dict[str, Any]) -> GPT:
    """The transformer that was saved as these tensors and this header, ready for inference.

    Raises ValueError if they are something else's.
    """
    with understanding("the transformer"), torch.random.fork_rng(devices=[]):  # what is drawn gives way to the tensors
        model = GPT(GPTConfig(**header["config"]), header["n_vocab"])
        model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


def untrained(header: dict[str, Any], stream: Stream) -> GPT:
    """A transformer of the shape of a saved one, randomly initialised, ready for inference."""
    with stream.seeding():
        model = GPT(GPTConfig(**header["config"]), header["n_vocab"])
    return model.eval().requires_grad_(False)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
