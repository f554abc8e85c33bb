"""Top-level keys that dictionaries share: seed and widths of all, and what the latents of autoencoders are like."""

from dataclasses import dataclass
from enum import StrEnum

from hsae.config import check


@dataclass
class DictionaryConfig:
    """`seed` of the autoencoders and clusterings; latents per input dimension of level 1 and of level 2."""

    seed: int
    expansion1: float
    expansion2: float

    def __post_init__(self) -> None:
        for name in ("expansion1", "expansion2"):
            check(name, getattr(self, name), "above 0 and finite", 0 < getattr(self, name) < float("inf"))

    def widths(self, d_in: int) -> tuple[int, int]:
        """Numbers of latents of level 1 and level 2 on inputs of `d_in` coordinates."""
        return max(round(self.expansion1 * d_in), 1), max(round(self.expansion2 * d_in), 1)


class Activation(StrEnum):
    """Activation kinds of the HSAE's levels (hsae/variants.py)."""

    relu = "relu"
    topk = "topk"
    batchtopk = "batchtopk"
    threshold = "threshold"
    jumprelu = "jumprelu"


@dataclass
class LatentConfig:
    """Activation kind of both levels; active latents per token (`k1`, `k2`) of the kinds that are told their number.

    A latent that was silent for `dead_tokens` training tokens is revived; 0: never. Level 2 starts from its activations
    on the first `init_tokens` training tokens; 0: from random directions.
    """

    activation: Activation
    k1: int
    k2: int
    dead_tokens: int
    init_tokens: int

    def __post_init__(self) -> None:
        for name in ("k1", "k2"):
            check(name, getattr(self, name), "1 or above", getattr(self, name) >= 1)
        for name in ("dead_tokens", "init_tokens"):
            check(name, getattr(self, name), "0 or above", getattr(self, name) >= 0)
