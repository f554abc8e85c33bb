"""Shuffled data that several test modules train on."""

import torch


class Rows:
    """Shuffled data as `fit` reads it."""

    def __init__(self, x: torch.Tensor):
        self._x = x

    def __len__(self) -> int:
        return len(self._x)

    def x(self, rows: slice) -> torch.Tensor:
        return self._x[rows]
