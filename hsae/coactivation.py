"""Which latents are active together: phi coefficients, and the null."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.sparse import csc_array, csr_array, vstack
from torch import Tensor


@torch.no_grad()
def sparse_acts(encode: Callable[[Tensor], Tensor], batches: Iterable[Float[Tensor, "_ d_in"]]) -> csr_array:
    """Latent activations (token, latent) on all batches, in their order."""
    return csr_array(vstack([_csr(encode(x).cpu().numpy()) for x in batches]))


def _csr(acts: Float[ndarray, "batch latent"]) -> csr_array:
    """What scipy would make of it, in a fraction of the time."""
    n, width = acts.shape
    where = np.flatnonzero(acts != 0)  # four times as fast as of the numbers themselves
    return csr_array((acts.ravel()[where], where % width, np.searchsorted(where, width * np.arange(n + 1))), acts.shape)


def among(acts: csr_array, kept: Bool[ndarray, " n"]) -> csr_array:
    """Activations of the tokens of a text that are kept, among the others, on which nothing is active."""
    sizes = np.zeros(len(kept), dtype=int)
    sizes[kept] = np.diff(acts.indptr)
    width = acts.shape[1]  # pyright: ignore[reportOptionalSubscript]
    return csr_array((acts.data, acts.indices, np.append(0, np.cumsum(sizes))), shape=(len(kept), width))


def activity(acts: csr_array) -> csc_array:
    """1 where a latent is active (above 0), as float32: exact for sums over up to 2^24 tokens."""
    indicator = acts.copy()
    indicator.data = (acts.data > 0).astype(np.float32)
    return csc_array(indicator)


def phi(active: csc_array) -> Float[ndarray, "latent latent"]:
    """Phi coefficients: correlations of the on-off variables of `active` (token, latent), which are 0 or 1.

    1 on the diagonal; 0 elsewhere for a latent that is active on all tokens or on none.
    """
    n_tokens = _n_tokens(active)
    p = np.asarray(active.sum(0), dtype=float) / n_tokens
    deviation = np.sqrt(p * (1 - p))
    varies = deviation > 0
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=varies)
    covariance = (active.T @ active).toarray().astype(float) / n_tokens - np.outer(p, p)
    result = covariance * np.outer(scale, scale)
    np.fill_diagonal(result, 1)
    return result


def independent(active: csc_array, n_draws: int, rng: np.random.Generator) -> Iterator[Float[ndarray, "latent latent"]]:
    """Phi coefficients of latents that know nothing of each other, `n_draws` times: each is shifted along the text.

    A circular shift keeps a latent's firing rate and its runs of activity; permuted tokens would lose the runs, and
    with them much of what chance does.
    """
    for _ in range(n_draws):
        yield phi(circular_shift(active, rng.integers(_n_tokens(active), size=len(active.indptr) - 1)))


def circular_shift(active: csc_array, shifts: Int[ndarray, " latent"]) -> csc_array:
    """Every column moved down by its own shift, what leaves at the end entering at the start."""
    rows = (active.indices + np.repeat(shifts, np.diff(active.indptr))) % _n_tokens(active)
    return csc_array((active.data, rows, active.indptr), shape=active.shape)


def _n_tokens(active: csc_array) -> int:
    return active.shape[0]  # pyright: ignore[reportOptionalSubscript]
