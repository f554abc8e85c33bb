"""Sparse autoencoders of one level, and the variants that serve as flat baselines."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hsae.config import check


class SAEOutput(NamedTuple):
    """What one forward pass gives."""

    acts: Float[Tensor, "batch d_sae"]
    """Latent activations, nonnegative."""
    x_hat: Float[Tensor, "batch d_in"]
    """Reconstruction of the input."""


class SAE(nn.Module):
    """ReLU sparse autoencoder: acts = relu((x - b_dec) W_enc + b_enc), x_hat = acts W_dec + b_dec.

    Decoder rows have unit norm, so that activations cannot shrink, and the L1 penalty with them, at no cost to the
    reconstruction (Bricken et al. 2023, Towards Monosemanticity). With `nonnegative` the decoder has no negative
    entries either: a level-2 latent is a sum of level-1 latents.
    """

    def __init__(self, d_in: int, d_sae: int, *, nonnegative: bool = False):
        super().__init__()
        self.d_in, self.d_sae, self.nonnegative = d_in, d_sae, nonnegative
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.W_dec = nn.Parameter(torch.randn(d_sae, d_in))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_enc = nn.Parameter(torch.empty(d_in, d_sae))
        self.tie()

    def pre_acts(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Latents before the activation function."""
        return torch.addmm(self.b_enc - self.b_dec @ self.W_enc, x, self.W_enc)

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Latent activations."""
        return self.pre_acts(x).relu()

    def decode(self, acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_in"]:
        """Reconstruction from latent activations."""
        return torch.addmm(self.b_dec, acts, self.W_dec)

    def forward(self, x: Float[Tensor, "batch d_in"]) -> SAEOutput:
        """Encode and decode."""
        acts = self.encode(x)
        return SAEOutput(acts, self.decode(acts))

    def header(self) -> dict[str, Any]:
        """What `load` needs to build the same module again."""
        return {"variant": "relu_l1", "d_in": self.d_in, "d_sae": self.d_sae}

    @torch.no_grad()
    def tie(self) -> None:
        """Make the decoder valid and start the encoder as its transpose."""
        self.constrain()
        self.W_enc.copy_(self.W_dec.T)

    @torch.no_grad()
    def init_from_data(self, x: Float[Tensor, "n d_in"]) -> None:
        """Decoder bias = mean of `x`; decoder rows = its first `d_sae` rows, centred. Random rows failed at level 2.

        The encoder is the decoder's transpose times the one factor that makes the reconstruction of `x` best: latents
        overlap, and without it their sum overshoots so far that the first steps kill half of them. Raises ValueError if
        `x` has fewer than `d_sae` rows.
        """
        if len(x) < self.d_sae:
            raise ValueError(f"initialising {self.d_sae} latents from data needs as many tokens; there are {len(x)}.")
        self.b_dec.copy_(x.mean(0))
        self.W_dec.copy_(x[: self.d_sae] - self.b_dec)
        self.tie()
        overshoot = self(x).x_hat - self.b_dec
        self.W_enc.mul_((overshoot * (x - self.b_dec)).sum() / overshoot.square().sum())

    @torch.no_grad()
    def constrain(self) -> None:
        """Project the decoder back onto unit rows (and nonnegative entries): call after every optimizer step."""
        if self.nonnegative:
            self.W_dec.clamp_(min=0)
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-8))

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Drop the decoder gradient's part along the rows, which `constrain` would undo (Bricken et al. 2023)."""
        gradient = self.W_dec.grad
        if gradient is not None:
            gradient.sub_((gradient * self.W_dec).sum(1, keepdim=True) * self.W_dec)


class TopKSAE(SAE):
    """SAE that keeps each token's `k` largest activations and no other (Gao et al. 2024, arXiv 2406.04093)."""

    def __init__(self, d_in: int, d_sae: int, *, k: int, nonnegative: bool = False):
        check("k", k, f"in 1..d_sae (={d_sae})", 1 <= k <= d_sae)
        super().__init__(d_in, d_sae, nonnegative=nonnegative)
        self.k = k

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Latent activations, at most `k` of them nonzero per token."""
        top = self.pre_acts(x).relu().topk(self.k, sorted=False)
        return torch.zeros(len(x), self.d_sae, device=x.device, dtype=x.dtype).scatter(1, top.indices, top.values)

    def header(self) -> dict[str, Any]:
        """What `load` needs to build the same module again."""
        return {**super().header(), "variant": "topk", "k": self.k}


VARIANTS: dict[str, type[SAE]] = {"relu_l1": SAE, "topk": TopKSAE}


def load(tensors: dict[str, Tensor], header: dict[str, Any]) -> SAE:
    """The autoencoder that was saved as these tensors and this header."""
    arguments = {name: value for name, value in header.items() if name != "variant"}
    model = VARIANTS[header["variant"]](**arguments)
    model.load_state_dict(tensors)
    return model
