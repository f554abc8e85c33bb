"""A character transformer whose residual stream can be read, and resumed from, after any block.

The architecture is nanoGPT's (Karpathy 2022), which follows GPT-2 (Radford et al. 2019): pre-LayerNorm blocks,
learned positions, tied embeddings, no biases, residual projections initialised at 0.02 / sqrt(2 n_layer).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from hsae.files import understanding
from hsae.products import Linear, linear


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
        heads = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(*heads, dropout_p=dropout, is_causal=True)
        return F.dropout(self.proj(mixed.transpose(1, 2).flatten(-2)), self.dropout, self.training)


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
        x = x + self.attn(self.ln_attn(x))
        mlp = self.down(F.gelu(self.up(self.ln_mlp(x))))
        return x + F.dropout(mlp, self.dropout, self.training)


class GPT(nn.Module):
    """Decoder-only language model over `n_vocab` characters.

    `residual(tokens, layer)` runs up to and including block `layer` (counted from 0) and `logits(residual, layer)` goes
    on from there, so patching an activation is an ordinary function call between the two, and extraction never
    computes the layers above.
    """

    def __init__(self, config: GPTConfig, n_vocab: int):
        super().__init__()
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
        return linear(self.ln_final(residual), self.token_embedding.weight)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos n_vocab"]:
        """Next-character logits at every position."""
        last = self.config.n_layer - 1
        return self.logits(self.residual(tokens, last), last)

    @torch.no_grad()
    def generate(self, prompt: Int[Tensor, " pos"], n_tokens: int, generator: torch.Generator) -> Int[Tensor, " out"]:
        """Continue `prompt` by `n_tokens` characters sampled at temperature 1."""
        self.eval()
        tokens = prompt
        for _ in range(n_tokens):
            logits = self(tokens[None, -self.config.context :])[0, -1]
            next_token = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator)
            tokens = torch.cat([tokens, next_token.to(tokens.device)])
        return tokens


def load(tensors: dict[str, Tensor], header: dict[str, Any]) -> GPT:
    """The transformer that was saved as these tensors and this header, ready for inference.

    Raises ValueError if they are something else's.
    """
    with understanding("the transformer"):
        model = GPT(GPTConfig(**header["config"]), header["n_vocab"])
        model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
