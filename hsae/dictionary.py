"""Top-level keys that dictionaries share: seed and widths of all, and what the latents of autoencoders are like."""

from dataclasses import dataclass
from enum import StrEnum

from hsae.config import check
from hsae.streams import Stream


@dataclass
class DictionaryConfig:
    """`seed` of the autoencoders and clusterings; latents per input dimension of level 1 and of level 2."""

    seed: int
    expansion1: float
    expansion2: float

    def __post_init__(self) -> None:
        for name in ("expansion1", "expansion2"):
            check(name, getattr(self, name), "above 0 and finite", 0 < getattr(self, name) < float("inf"))

    def stream(self, name: str) -> Stream:
        """The random numbers of something that this seed draws."""
        return Stream(self.seed, name)

    def weights(self, level: int) -> Stream:
        """What the weights of level 1, or of a flat autoencoder compared with either level, are drawn from."""
        return self.stream(f"weights of level {level}")

    def width(self, level: int, d_in: int) -> int:
        """Number of latents of level 1 or 2 on inputs of `d_in` coordinates."""
        expansion = self.expansion1 if level == 1 else self.expansion2
        return max(round(expansion * d_in), 1)

    def widths(self, d_in: int) -> tuple[int, int]:
        """Those of both."""
        return self.width(1, d_in), self.width(2, d_in)


class Activation(StrEnum):
    """Activation kinds of the HSAE's levels (hsae/variants.py)."""

    relu = "relu"
    topk = "topk"
    batchtopk = "batchtopk"
    threshold = "threshold"
    jumprelu = "jumprelu"


class Start(StrEnum):
    """What level 2 starts from: random directions, activations of tokens, or families of latents (hsae/families.py)."""

    random = "random"
    data = "data"
    families = "families"


@dataclass
class LatentConfig:
    """Activation kind of both levels; active latents per token (`k1`, `k2`) of the kinds that are told their number.

    A latent that was silent for `dead_tokens` training tokens is revived; 0: never. `init_level2` says what level 2
    starts from, as the first `init_tokens` training tokens show it.
    """

    activation: Activation
    k1: int
    k2: int
    dead_tokens: int
    init_level2: Start
    init_tokens: int

    @property
    def dead_tokens_later(self) -> int:
        """`dead_tokens` in phases 2 and 3: 0 where level 2 stands for families, which revived latents take apart."""
        return 0 if self.init_level2 == Start.families else self.dead_tokens

    def __post_init__(self) -> None:
        for name in ("k1", "k2", "init_tokens"):
            check(name, getattr(self, name), "1 or above", getattr(self, name) >= 1)
        check("dead_tokens", self.dead_tokens, "0 or above", self.dead_tokens >= 0)
