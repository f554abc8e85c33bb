"""Characters as tokens: the tokenizer, the split into train, validation and test, and windows of tokens."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor


@dataclass(frozen=True)
class CharTokenizer:
    """One token per character; token `i` is `alphabet[i]`, in code-point order."""

    alphabet: str

    @classmethod
    def fit(cls, text: str) -> "CharTokenizer":
        """Tokenizer for every character of `text`."""
        return cls("".join(sorted(set(text))))

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""
        return len(self.alphabet)

    def encode(self, text: str) -> Integer[Tensor, " n"]:
        """Tokens of `text`, bytes if 256 suffice. Raises ValueError for a character that is not in the alphabet."""
        points = _code_points(text)
        alphabet = _code_points(self.alphabet)
        tokens = np.searchsorted(alphabet, points).clip(max=self.n_vocab - 1)
        unknown = points[alphabet[tokens] != points] if self.alphabet else points
        if len(unknown):
            raise ValueError(f"character {chr(unknown[0])!r} is not in the alphabet of {self.n_vocab} characters.")
        return torch.from_numpy(tokens.astype(np.uint8 if self.n_vocab <= 256 else np.int32))

    def decode(self, tokens: Integer[Tensor, " n"]) -> str:
        """Text of `tokens`."""
        return "".join(self.alphabet[token] for token in tokens.tolist())


def split(n: int, val_fraction: float, test_fraction: float) -> dict[str, tuple[int, int]]:
    """Start and end of the contiguous splits `train`, `val` and `test`, in this order, of `n` tokens."""
    val = round(n * (1 - val_fraction - test_fraction))
    test = round(n * (1 - test_fraction))
    return {"train": (0, val), "val": (val, test), "test": (test, n)}


def windows(tokens: Integer[Tensor, " n"], context: int) -> Integer[Tensor, "window context_plus_1"]:
    """Cut into consecutive windows of `context` inputs and one more target; neighbours share that one token.

    Raises ValueError if there is not even one window.
    """
    n_windows = (len(tokens) - 1) // context
    if n_windows < 1:
        raise ValueError(f"a split of {len(tokens)} characters is shorter than one context of {context} and a target.")
    return tokens[: n_windows * context + 1].unfold(0, context + 1, context)


def random_windows(
    tokens: Integer[Tensor, " n"], context: int, batch_size: int, generator: torch.Generator
) -> Integer[Tensor, "batch context_plus_1"]:
    """Windows that start anywhere, for training."""
    if len(tokens) <= context:
        raise ValueError(f"a split of {len(tokens)} characters is shorter than one context of {context} and a target.")
    starts = torch.randint(len(tokens) - context, (batch_size, 1), generator=generator)
    return tokens[starts + torch.arange(context + 1)]


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
