"""Top-level keys that every dictionary (autoencoder or clustering) shares: its seed and its widths."""

from dataclasses import dataclass

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
