"""Fair comparison of conditions that were trained from several seeds: matched L0, intervals, paired tests, Holm."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats

from hsae.config import check
from hsae.streams import Stream

N_RESAMPLES = 9_999
N_CLUSTER_RESAMPLES = 2_000  # percentiles of hundreds of clusters need no more
ROUNDING = 1e-12  # relative: smaller differences than this are rounding errors


def holm(p: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """P-values adjusted for n comparisons so that P(any false rejection) stays at the level (Holm 1979, step-down).

    The i-th smallest p becomes max over j <= i of min(1, (n - j + 1) p_j). Raises ValueError for a p outside 0..1.
    """
    check("p", p.tolist(), "in 0..1", bool(((p >= 0) & (p <= 1)).all()))
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


def bootstrap_interval(
    differences: Float[np.ndarray, " n"], stream: Stream, confidence: float = 0.95
) -> tuple[float, float]:
    """Bootstrap interval (low, high) of the mean: the expanded percentile interval (Hesterberg 2015, arXiv 1411.5279).

    The resampled means of n values spread too little, by sqrt((n - 1) / n), and know nothing of Student's t. At n = 8
    normal values the plain 95% percentile and BCa intervals cover the mean 88% of the time (BCa mends bias and skew,
    neither of which is the trouble here). So wider percentiles are taken, alpha' / 2 = Phi(-sqrt(n / (n - 1)) t), where
    t is Student's quantile: 94%, and of a t interval's width. For n < 6 even the range of the values, the widest that
    resampling can give, falls short. Equal values give (value, value). Raises ValueError for fewer than 2 values.
    """
    n = len(differences)
    check("n", n, "at least 2", n >= 2)
    check("confidence", confidence, "between 0 and 1", 0 < confidence < 1)
    if np.ptp(differences) == 0:
        return float(differences[0]), float(differences[0])
    t = stats.t.ppf((1 + confidence) / 2, n - 1)
    expanded = 1 - 2 * float(stats.norm.cdf(-np.sqrt(n / (n - 1)) * t))
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        method="percentile",
        confidence_level=expanded,
        n_resamples=N_RESAMPLES,
        rng=stream.numpy(),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def cluster_weights(n_clusters: int, stream: Stream) -> Int[np.ndarray, "resample cluster"]:
    """How often each cluster is drawn when as many as there are are drawn with replacement, time after time.

    For a bootstrap of what is not independent within clusters: sums over clusters, weighted by a row, are resampled.
    """
    equal = np.full(n_clusters, 1 / n_clusters)
    return stream.numpy().multinomial(n_clusters, equal, size=N_CLUSTER_RESAMPLES)


def paired_comparison(frame: pd.DataFrame, reference: str, stream: Stream) -> pd.DataFrame:
    """Every condition against the `reference`, metric by metric, paired by the seed that both were trained from.

    Columns of `frame`: condition, seed, metric, value. `stream` is that of the bootstrap. Returns a row per
    (condition, metric), in their order: condition, metric, n (seeds that both have), mean and reference_mean (over
    those), difference (condition - reference), low, high (its 95% interval), p and p_holm.

    p is that of a paired t test. Wilcoxon's test assumes less, but with 8 seeds its p is at least 2 / 2^8 = .0078,
    which Holm lets pass among 6 comparisons at most. p_holm is adjusted over all rows, so pass the family that is to be
    claimed and nothing else.

    Raises ValueError for an unknown reference, nothing to compare with it, fewer than 2 shared seeds, a seed that is
    there twice, or a value that is not finite (whether a run that failed may be left out is the caller's to say).
    """
    conditions = frame["condition"].unique().tolist()
    check("reference", reference, f"one of the conditions {', '.join(conditions)}", reference in conditions)
    check("condition", conditions, "at least one other than the reference", len(conditions) > 1)
    _check_rows(frame)
    of_reference = frame.query("condition == @reference").filter(["seed", "metric", "value"])
    others = frame.query("condition != @reference")
    paired = others.merge(of_reference, "left", ["seed", "metric"], suffixes=("", "_reference"))
    rows = []
    for _, group in paired.groupby(["condition", "metric"], sort=False):
        condition, metric = group["condition"].iloc[0], group["metric"].iloc[0]
        shared = group.dropna(subset="value_reference")
        if len(shared) < 2:
            raise ValueError(
                f"{condition} and {reference} must share at least 2 seeds of `{metric}`; not {len(shared)}."
            )
        compared = _compare(
            shared["value"].to_numpy(float), shared["value_reference"].to_numpy(float), stream.of(condition, metric)
        )
        rows.append({"condition": condition, "metric": metric, **compared})
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"].to_numpy()))


def at_matched_l0(frame: pd.DataFrame, l0: float, y: str) -> float:
    """The frontier of one method at a given L0: linear in log L0 between the points that were trained.

    Columns of `frame`: l0 and `y`; points with the same L0 count as their mean. Returns nan outside the range of L0
    that was swept: a frontier is never extrapolated. Raises ValueError for no point, an L0 that is not above 0 or a
    value that is not finite.
    """
    check("l0", l0, "above 0", l0 > 0)
    check("points", len(frame), "at least one", len(frame) > 0)
    check("l0", frame["l0"].tolist(), "above 0 at every point", bool((frame["l0"] > 0).all()))
    check(y, frame[y].tolist(), "finite at every point", bool(np.isfinite(frame[y]).all()))
    points = frame.groupby("l0", as_index=False).agg({y: "mean"})  # sorted by L0
    log_l0, values = np.log(points["l0"].to_numpy(float)), points[y].to_numpy(float)
    return float(np.interp(np.log(l0), log_l0, values, left=np.nan, right=np.nan))


def _check_rows(frame: pd.DataFrame) -> None:
    repeated = frame.duplicated(["condition", "seed", "metric"])
    for row, is_repeated in zip(frame.to_dict("records"), repeated, strict=True):
        name = f"{row['metric']} of {row['condition']}, seed {row['seed']}"
        check(name, row["value"], "finite", bool(np.isfinite(row["value"])))
        if is_repeated:
            raise ValueError(f"`{name}` must be there once; not twice.")


def _compare(values: np.ndarray, reference: np.ndarray, stream: Stream) -> dict[str, Any]:
    differences = values - reference
    low, high = bootstrap_interval(differences, stream)
    return {
        "n": len(values),
        "mean": values.mean(),
        "reference_mean": reference.mean(),
        "difference": differences.mean(),
        "low": low,
        "high": high,
        "p": _paired_p(values, reference),
    }


def _paired_p(values: np.ndarray, reference: np.ndarray) -> float:
    differences = values - reference
    rounding = ROUNDING * max(np.abs(values).max(), np.abs(reference).max())
    if np.ptp(differences) > rounding:
        return float(stats.ttest_rel(values, reference).pvalue)
    # t is undefined without spread (every latent dead whatever the seed, say): the exact sign-flip test still stands.
    return 1.0 if np.abs(differences).max() <= rounding else 2.0 ** (1 - len(differences))
