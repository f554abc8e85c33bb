"""The forest that several test modules score dictionaries against."""

import torch

from hsae.synthetic import SyntheticConfig

CONFIG = SyntheticConfig(
    d_in=12,
    parents=5,
    children=3,
    singles=4,
    p_parent=0.2,
    p_child=0.7,
    p_single=0.1,
    zipf=0.0,
    correlation=0.0,
    magnitude_std=0.3,
    noise_std=0.0,
    bias_norm=0.0,
    orthogonal=False,
)
N = 20_000
ROOTS = [*range(5), *range(20, 24)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed))
