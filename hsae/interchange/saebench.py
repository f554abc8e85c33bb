"""An autoencoder with the interface that SAEBench's evaluations use (Karvonen et al. 2025, arXiv 2503.09532)."""

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hsae.interchange.site import Site
from hsae.sae import SAE


@dataclass
class SAEBenchConfig:
    """What SAEBench reads of an autoencoder's config."""

    model_name: str
    d_in: int
    d_sae: int
    hook_name: str
    hook_layer: int
    context_size: int
    architecture: str
    dtype: str
    prepend_bos: bool
    hook_head_index: int | None = None

    @property
    def architecture_str(self) -> str:
        """The architecture, by the name under which the core evaluation of weights asks for it."""
        return self.architecture

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


class SAEBenchSAE(nn.Module):
    """An autoencoder whose decoder rows have unit norm, each latent multiplied by what its row was divided by.

    The reconstruction stays. `sae` reads raw activations (hsae.interchange.weights.fold). W_enc and b_enc are there to
    be looked at: encoding is the autoencoder's own, whatever its kind. A row of zeros becomes any unit row, of a
    latent that is always 0. Inputs may have several batch dimensions.
    """

    norms: Tensor

    @torch.no_grad()
    def __init__(self, sae: SAE, site: Site):
        super().__init__()
        self.sae = copy.deepcopy(sae).eval()
        norms = sae.W_dec.norm(dim=1)
        self.register_buffer("norms", norms)
        self.W_enc = nn.Parameter(sae.W_enc * norms)
        self.b_enc = nn.Parameter(sae.b_enc * norms)
        self.W_dec = nn.Parameter(torch.where(norms[:, None] > 0, sae.W_dec / norms[:, None], sae.d_in**-0.5))
        self.b_dec = nn.Parameter(sae.b_dec.clone())
        # By "gated" SAEBench means another kind, which has a bias of its own.
        architecture = "h-sae" if sae.kind == "gated" else sae.kind
        self.cfg = SAEBenchConfig(
            **site._asdict(), d_in=sae.d_in, d_sae=sae.d_sae, architecture=architecture, dtype=_name(self.dtype)
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        return self.W_dec.dtype

    def to(self, *args: Any, **kwargs: Any) -> "SAEBenchSAE":
        """As a module's; the config follows."""
        super().to(*args, **kwargs)
        self.cfg.dtype = _name(self.dtype)
        return self

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latent activations."""
        acts = self.sae.encode(x.reshape(-1, x.shape[-1])) * self.norms
        return acts.reshape(*x.shape[:-1], -1)

    def decode(self, acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction from latent activations."""
        return acts @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction of the input."""
        return self.decode(self.encode(x))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
