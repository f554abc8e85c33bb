"""Mutual information between many latents at once, from counts of their binned activations."""

import numpy as np
from jaxtyping import Float, Int8
from numpy import ndarray
from scipy.sparse import csr_array

from hsae.config import check

PAIRS = 1 << 16  # tabulated at a time


def quantile_bins(
    acts: Float[ndarray, "token latent"], n_bins: int, cut_on: Float[ndarray, "other latent"] | None = None
) -> Int8[ndarray, "token latent"]:
    """Bin 0 where a latent is silent (0 or below), bins 1 to `n_bins` by the quantiles of its positive activations.

    The quantiles are those of `cut_on`, activations of the same latents on other tokens, if it is given: what bins are
    cut on can then be kept apart from what is measured in them. Equal activations share a bin, and all of a latent
    that is silent where bins are cut. Raises ValueError unless `n_bins` is in 1..127.
    """
    check("n_bins", n_bins, "in 1..127", 1 <= n_bins <= 127)
    bins = np.zeros(acts.shape, np.int8)
    fractions = np.arange(1, n_bins) / n_bins
    for latent, (column, other) in enumerate(zip(acts.T, (acts if cut_on is None else cut_on).T, strict=True)):
        active, cuts = np.flatnonzero(column > 0), other[other > 0]
        edges = np.quantile(cuts, fractions) if len(cuts) else cuts
        bins[active, latent] = 1 + np.searchsorted(edges, column[active], side="left")
    return bins


def mutual_information(x: Int8[ndarray, "token x"], y: Int8[ndarray, "token y"]) -> Float[ndarray, "x y"]:
    """Plug-in estimate of the mutual information, in nats, of every column of `x` with every column of `y`.

    I = sum_ab p(a, b) log(p(a, b) / (p(a) p(b))) over bins a, b. Only tokens at which both are outside bin 0 are
    counted; bin 0 follows from the marginal counts, so that the cost grows with the product of the L0s.
    """
    n_tokens, n_x, n_y = len(x), x.shape[1], y.shape[1]
    bins_x, bins_y = int(x.max(initial=0)), int(y.max(initial=0))
    information = np.zeros((n_x, n_y))
    if not (n_tokens and bins_x and bins_y):
        return information
    one_hot_x, one_hot_y = _one_hot(x, bins_x), _one_hot(y, bins_y)
    counts_y = _with_zero(one_hot_y.sum(0).reshape(n_y, bins_y), n_tokens)
    step = max(PAIRS // n_y, 1)
    for start in range(0, n_x, step):
        some = one_hot_x[:, start * bins_x : (start + step) * bins_x]
        counts_x = _with_zero(some.sum(0).reshape(-1, bins_x), n_tokens)
        joint = np.zeros((len(counts_x), n_y, bins_x + 1, bins_y + 1))
        joint[:, :, 1:, 1:] = (some.T @ one_hot_y).toarray().reshape(-1, bins_x, n_y, bins_y).swapaxes(1, 2)
        joint[:, :, 1:, 0] = counts_x[:, None, 1:] - joint[:, :, 1:, 1:].sum(3)
        joint[:, :, 0, :] = counts_y[None] - joint[:, :, 1:, :].sum(2)
        information[start : start + step] = (
            entropy(counts_x, 1)[:, None] + entropy(counts_y, 1)[None] - entropy(joint, (2, 3))
        )
    return information


def entropies(bins: Int8[ndarray, "token latent"]) -> Float[ndarray, " latent"]:
    """Plug-in entropy, in nats, of every column."""
    n_bins = int(bins.max(initial=0)) + 1
    counts = [np.bincount(column, minlength=n_bins) for column in bins.T]
    return entropy(np.array(counts, float).reshape(-1, n_bins), 1)


def entropy(counts: Float[ndarray, "..."], axis: int | tuple[int, ...]) -> Float[ndarray, "..."]:
    """Entropy, in nats, of the distributions that counts along `axis` make."""
    total = counts.sum(axis)
    return np.log(total) - (counts * np.log(np.maximum(counts, 1))).sum(axis) / total


def _one_hot(bins: Int8[ndarray, "token latent"], n_bins: int) -> csr_array:
    """A column for each latent and bin above 0."""
    n, width = bins.shape
    flat = bins.ravel()
    where = np.flatnonzero(flat != 0)
    column = where % width * n_bins + flat[where] - 1
    rows = np.searchsorted(where, width * np.arange(n + 1))
    return csr_array((np.ones(len(where)), column, rows), shape=(n, width * n_bins))


def _with_zero(counts: Float[ndarray, "latent bin"], n_tokens: int) -> Float[ndarray, "latent bin_plus_1"]:
    """The counts with those of bin 0 before them."""
    return np.concatenate([n_tokens - counts.sum(1, keepdims=True), counts], axis=1)
