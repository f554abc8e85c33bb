"""Random streams: each thing that is drawn has a stream of its own, derived from the run's seed and the thing's name.

Generators that are seeded with one number give the same numbers, `torch.manual_seed(s)` and
`torch.Generator().manual_seed(s)` among them. So no number ever seeds two things: nothing in the project seeds a
generator but with the number of a `Stream`, and a test finds whoever does (tests/test_streams.py).
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Stream:
    """The random numbers of one purpose. `seed` is the run's, `name` says what is drawn: "phase1/order of batches".

    Two streams of one seed are independent if their names differ. One name is used at one place of the code; what
    shall see the same numbers there, because it is compared pair by pair, gets the same stream.
    """

    seed: int
    name: str

    def of(self, *names: object) -> "Stream":
        """The stream of a part of this purpose."""
        return Stream(self.seed, "/".join([self.name, *map(str, names)]))

    @property
    def number(self) -> int:
        """What generators are seeded with, in 0 .. 2^32 - 1: the most that all of them tell apart.

        The first four bytes of the SHA-256 of seed and name. Torch's generator on a CPU takes 64 bits and reads 32.
        """
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{self.name}".encode()).digest()[:4], "big")

    def torch(self) -> torch.Generator:
        """A generator of torch, on the CPU, at the stream's beginning."""
        return torch.Generator().manual_seed(self.number)

    def numpy(self) -> np.random.Generator:
        """A generator of NumPy at the stream's beginning."""
        return np.random.default_rng(self.number)

    @contextmanager
    def seeding(self) -> Iterator[None]:
        """A block in which torch's global generator is this stream: for modules that draw their weights from it.

        Afterwards the global generator is where it was before.
        """
        with torch.random.fork_rng():
            torch.manual_seed(self.number)
            yield
