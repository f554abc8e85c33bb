"""Mutual information against chance: circular shifts of one side, which keep the autocorrelation of text.

Neighbouring tokens have similar activations, so far fewer of them are independent than there are: permuting them one by
one finds most unrelated latents to be related. A circular shift takes the relation away and nothing else.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Int8
from numpy import ndarray
from scipy import stats

from hsae.config import check
from hsae.information import entropies, entropy, mutual_information
from hsae.streams import Stream

LOOKUPS = 1 << 22  # at a time, of a shifted column at the tokens at which the other one is active
ROUNDING = 1e-12  # nats


def draw_shifts(n_tokens: int, n_shifts: int, margin: int, stream: Stream) -> Int[ndarray, " shift"]:
    """Random shifts of a sequence of `n_tokens`, different ones, none of them within `margin` tokens of no shift.

    Raises ValueError for fewer tokens than that takes.
    """
    check("n_shifts", n_shifts, "above 0", n_shifts > 0)
    allowed = np.arange(margin, n_tokens - margin + 1)
    check("n_tokens", n_tokens, f"at least {2 * margin + n_shifts - 1}, for {n_shifts} shifts by {margin} or more",
          len(allowed) >= n_shifts)  # fmt: skip
    return stream.numpy().choice(allowed, n_shifts, replace=False)


def debiased(
    x: Int8[ndarray, "token x"], y: Int8[ndarray, "token y"], shifts: Int[ndarray, " shift"]
) -> Float[ndarray, "x y"]:
    """Mutual information, in nats, of all pairs of columns, less its mean over circular shifts of `y`.

    The plug-in estimate of independent columns is not 0 but about (bins_x - 1) (bins_y - 1) / 2N, and more where they
    are autocorrelated. What is left may be slightly negative.
    """
    null = sum(mutual_information(x, np.roll(y, shift, 0)) for shift in shifts) / len(shifts)
    return mutual_information(x, y) - null


def shift_test(
    x: Int8[ndarray, "token x"], y: Int8[ndarray, "token y"], pairs: pd.DataFrame, shifts: Int[ndarray, " shift"]
) -> pd.DataFrame:
    """Test every one of the `pairs` (columns x, y: which column of `x` and of `y`) for shared information.

    Returns the pairs with information (plug-in less null_mean, in nats), null_mean, null_std, p and q. p is the share
    of shifts, the pair's own null and no shift itself, that reach the observed value. Where only no shift does, that
    share could not fall below 1 / (shifts + 1), too coarse for thousands of pairs: p is then the upper tail of a gamma
    distribution with the moments of the null, if that is smaller. The null of independent tokens is chi squared over
    2N, a gamma distribution (Goebel et al. 2005, ICC); autocorrelation widens it. q is p adjusted for all of the
    pairs (Benjamini & Hochberg 1995), so that they must have been chosen on other tokens. Where nothing varies, p is 1.
    """
    values = np.zeros((len(pairs), 1 + len(shifts)))
    twice, columns_x, columns_y = np.concatenate([y, y]).T.copy(), pairs["x"].to_numpy(), pairs["y"].to_numpy()
    for column in np.unique(columns_x):
        rows = columns_x == column
        values[rows] = _shifted_information(x[:, column], twice[columns_y[rows]], np.append(0, shifts))
    observed, null = values[:, 0], values[:, 1:]
    mean, std = null.mean(1), null.std(1, ddof=1)
    reached = (1 + (null >= observed[:, None] - ROUNDING).sum(1)) / values.shape[1]
    beyond = reached == 1 / values.shape[1]
    p = np.where(beyond, np.minimum(reached, _gamma_tail(observed, mean, std)), reached)
    q = stats.false_discovery_control(p) if len(p) else p
    return pairs.assign(information=observed - mean, null_mean=mean, null_std=std, p=p, q=q)


def _shifted_information(
    x: Int8[ndarray, " token"], twice: Int8[ndarray, "y two_tokens"], shifts: Int[ndarray, " shift"]
) -> Float[ndarray, "y shift"]:
    """Plug-in information of `x` with every column, of which a row of `twice` holds two copies, at every shift."""
    bins_x, bins_y = int(x.max(initial=0)), int(twice.max(initial=0)) + 1
    tokens = np.flatnonzero(x)
    information = np.zeros((len(twice), len(shifts)))
    if not len(tokens):
        return information
    counts_y = np.array([np.bincount(column, minlength=bins_y) for column in twice], float)
    entropy_x, entropy_y = entropies(x[:, None]), entropy(counts_y, 1)
    step = max(LOOKUPS // len(tokens), 1)
    for start in range(0, len(shifts), step):
        some = shifts[start : start + step, None]
        places = tokens + some
        cells = (np.arange(len(some))[:, None] * bins_x + x[tokens] - 1) * bins_y
        for row, (column, marginal) in enumerate(zip(twice, counts_y / 2, strict=True)):
            counts = np.bincount((cells + column.take(places)).ravel(), minlength=len(some) * bins_x * bins_y)
            # Tokens at which x is silent follow from the marginal counts.
            active = counts.reshape(len(some), bins_x, bins_y).astype(float)
            silent = marginal - active.sum(1)
            joint = np.concatenate([silent, active.reshape(len(some), -1)], axis=1)
            information[row, start : start + step] = entropy_x + entropy_y[row] - entropy(joint, 1)
    return information


def _gamma_tail(
    observed: Float[ndarray, " pair"], mean: Float[ndarray, " pair"], std: Float[ndarray, " pair"]
) -> Float[ndarray, " pair"]:
    """P(at least what was observed) under gamma distributions of these moments; 1 where nothing varies."""
    p = np.ones_like(observed)
    varies = (std > 0) & (mean > 0)
    scale = std[varies] ** 2 / mean[varies]
    p[varies] = stats.gamma.sf(observed[varies], mean[varies] / scale, scale=scale)
    return p
