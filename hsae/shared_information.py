"""What latents tell: level 2 of its children at level 1, and the latents of both levels of what the text is like.

As h2 is a function of h1, their joint information is H(h2) whatever the model; so latents are looked at one by one.
Bins, pairs and labels are chosen on the first half of the tokens, and all that is reported is of the second: the choice
cannot flatter the test.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Int8, Integer, Shaped
from numpy import ndarray
from scipy import stats

from hsae.config import check, check_positive
from hsae.information import entropies, quantile_bins
from hsae.nulls import debiased, draw_shifts, shift_test
from hsae.probes import ProbeConfig
from hsae.samples import Record, record
from hsae.streams import Stream

ROUNDING = 1e-12
MOST_CHILDREN = 16  # their on-off patterns are numbered: 2^16
MOST_CLASSES = 127  # of a label: an encyclopedia has thousands of characters, nearly all of them rare


@dataclass
class InformationConfig:
    """Section `mutual_information`: `tokens` of the test split, `bins` of positive activations.

    `screening_shifts` debias all pairs on either half of the tokens; `candidates` children of every parent, chosen on
    the first half, are tested on the second, against `shifts`, at a false discovery rate of `fdr`. `children` are the
    numbers of children that a parent's entropy is conditioned on. `probe` is trained on the validation split and scored
    on the second half of each document of the test split; the `tokens` are of the first halves.
    """

    tokens: int
    bins: int
    screening_shifts: int
    shifts: int
    candidates: int
    fdr: float
    children: list[int]
    probe: ProbeConfig

    def __post_init__(self) -> None:
        check_positive(self, ["tokens", "screening_shifts", "candidates"])
        check("bins", self.bins, "in 1..127", 1 <= self.bins <= 127)
        check("shifts", self.shifts, "at least 2, to have a variance", self.shifts >= 2)
        check("fdr", self.fdr, "between 0 and 1", 0 < self.fdr < 1)
        ok = bool(self.children) and all(1 <= m <= MOST_CHILDREN for m in self.children)
        check("children", self.children, f"one or more numbers in 1..{MOST_CHILDREN}", ok)


@dataclass(frozen=True)
class Levels:
    """Information between the latents of two levels, and all else that `summarize` needs."""

    screened: Float[ndarray, "parent child"]
    """Information, debiased, in nats, on the first half of the tokens: it chooses."""
    information: Float[ndarray, "parent child"]
    """The same on the second half."""
    entropy: Float[ndarray, " parent"]
    """H(h2_j) of the binned parents on the second half."""
    alive: Int[ndarray, " live_parent"]
    """Parents that are active on the first half: what chooses says what counts, not what is measured."""
    alive_children: Int[ndarray, " live_child"]
    """Children that are active on the first half."""
    weight: Float[ndarray, "parent child"]
    """Level-2 decoder."""
    strongest: Int[ndarray, " child"]
    """Each child's parent by the decoder: of the largest weight; -1 where the child is not alive or has none."""
    tested: pd.DataFrame
    """Columns: parent, child, information, null_mean, null_std, p, q, u, weight, is_child; the second half's."""

    @property
    def u(self) -> Float[ndarray, "parent child"]:
        """Share of every parent's entropy that every child tells, I / H(h2_j); 0 for a parent that never varies."""
        return _shares(self.information, self.entropy[:, None])


def examine(
    h1: Int8[ndarray, "token child"],
    h2: Int8[ndarray, "token parent"],
    W_dec: Float[ndarray, "parent child"],
    margin: int,
    config: InformationConfig,
    stream: Stream,
) -> Levels:
    """Screen and test the binned latents (`binned`) of two levels, in the order of the text.

    Tested are, of every parent, the `candidates` children that share most information with it, and of every child its
    parent by the decoder, which was trained on other text. q counts all of these and no other pair. u is the share of
    the parent's entropy that the child tells, I / H(h2_j). What is silent on the second half tells nothing there: u is
    0, and p is 1. No shift is within `margin` tokens of 0.
    """
    n = len(h1) // 2
    first, second = (h1[:n], h2[:n]), (h1[n : 2 * n], h2[n : 2 * n])
    screening, measuring = (
        draw_shifts(n, config.screening_shifts, margin, stream.of("shifts of the half that", does))
        for does in ("chooses", "is measured")
    )
    screened, information = debiased(*first, screening).T, debiased(*second, measuring).T
    alive_children, alive = ((own > 0).any(0) for own in first)
    strongest = np.where((W_dec.max(0) > 0) & alive_children, W_dec.argmax(0), -1)
    alive_children, alive = np.flatnonzero(alive_children), np.flatnonzero(alive)
    pairs = _pairs(screened, strongest, alive, config.candidates).rename(columns={"child": "x", "parent": "y"})
    shifts = draw_shifts(n, config.shifts, margin, stream.of("shifts that pairs are tested against"))
    tested = shift_test(*second, pairs, shifts).rename(columns={"x": "child", "y": "parent"})
    entropy, parent, child = entropies(second[1]), tested["parent"].to_numpy(), tested["child"].to_numpy()
    tested = tested.assign(
        u=_shares(tested["information"].to_numpy(), entropy[parent]),
        weight=W_dec[parent, child],
        is_child=strongest[child] == parent,
    )
    return Levels(screened, information, entropy, alive, alive_children, W_dec, strongest, tested)


def binned(acts: Float[ndarray, "token latent"], n_bins: int) -> Int8[ndarray, "token latent"]:
    """Bins (`information.quantile_bins`) of all tokens, cut on the first half of them."""
    return quantile_bins(acts, n_bins, acts[: len(acts) // 2])


def samples(offsets: Integer[ndarray, " token"], *others: str) -> list[Record]:
    """What is chosen on the first half of the tokens of the test split, at these offsets, and scored on the second.

    Beside what `examine` chooses these are the `others`.
    """
    n = len(offsets) // 2
    return [
        one
        for what in ("bins of both levels", "candidate children", *others)
        for one in (record(what, "chosen", "test", offsets[:n]), record(what, "scored", "test", offsets[n : 2 * n]))
    ]


def _pairs(
    screened: Float[ndarray, "parent child"],
    strongest: Int[ndarray, " child"],
    alive: Int[ndarray, " live_parent"],
    candidates: int,
) -> pd.DataFrame:
    """What is tested, without repetition. Columns: parent, child."""
    best = top_children(screened, candidates)[alive]
    best_pairs = pd.DataFrame({"parent": np.repeat(alive, best.shape[1]), "child": best.ravel()})
    children = np.flatnonzero(np.isin(strongest, alive))
    decoded = pd.DataFrame({"parent": strongest[children], "child": children})
    return pd.concat([best_pairs, decoded]).drop_duplicates().sort_values(["parent", "child"], ignore_index=True)


def top_children(information: Float[ndarray, "parent child"], m: int) -> Int[ndarray, "parent m"]:
    """Of every parent, the `m` children (all, where there are fewer) that share most with it, the most first."""
    return np.argsort(-information, axis=1, kind="stable")[:, :m]


def summarize(levels: Levels, fdr: float) -> dict[str, float | int | None]:
    """What holds of the levels as a whole; None where there is nothing to take a mean or a correlation of.

    - live_parents, pairs_tested, pairs_significant: numbers
    - parents_with_child: share of the live parents that have a child significant at the false discovery rate `fdr`
    - u_children: mean over the decoder's children of I / H(h2_j); u_others: over all other pairs of live latents
    - information_children, information_others: the same of I, in nats
    - weight_correlation: Spearman's of information and decoder weight over all `weight_pairs` pairs of live latents,
      most of which have hardly any weight; weight_correlation_children: over the decoder's `children` alone

    The means and the correlation are of the second half, over pairs that no information has chosen.
    """
    significant = levels.tested[levels.tested["q"] <= fdr]
    pairs = live_pairs(levels)
    is_child, information, u, weight = (pairs[name].to_numpy() for name in ("is_child", "information", "u", "weight"))
    return {
        "live_parents": len(levels.alive),
        "pairs_tested": len(levels.tested),
        "pairs_significant": len(significant),
        "parents_with_child": len(np.unique(significant["parent"])) / len(levels.alive) if len(levels.alive) else None,
        "u_children": _mean(u[is_child]),
        "u_others": _mean(u[~is_child]),
        "information_children": _mean(information[is_child]),
        "information_others": _mean(information[~is_child]),
        "weight_correlation": _correlation(information, weight),
        "weight_correlation_children": _correlation(information[is_child], weight[is_child]),
        "children": int(is_child.sum()),
        "weight_pairs": len(pairs),
    }


def live_pairs(levels: Levels) -> pd.DataFrame:
    """All pairs of live latents. Columns: parent, child, information and u (of the second half), weight, is_child."""
    parent, child = (grid.ravel() for grid in np.meshgrid(levels.alive, levels.alive_children, indexing="ij"))
    return pd.DataFrame(
        {
            "parent": parent,
            "child": child,
            "information": levels.information[parent, child],
            "u": levels.u[parent, child],
            "weight": levels.weight[parent, child],
            "is_child": levels.strongest[child] == parent,
        }
    )


def headline(
    h1: Float[ndarray, "token child"],
    h2: Float[ndarray, "token parent"],
    W_dec: Float[ndarray, "parent child"],
    margin: int,
    config: InformationConfig,
    stream: Stream,
) -> dict[str, float | int | None]:
    """`summarize` of a model's activations, in the order of the text, and its level-2 decoder."""
    levels = examine(binned(h1, config.bins), binned(h2, config.bins), W_dec, margin, config, stream)
    return summarize(levels, config.fdr)


def conditional_entropy_shares(
    h1: Int8[ndarray, "token child"], h2: Int8[ndarray, "token parent"], levels: Levels, m: int
) -> Float[ndarray, " live_parent"]:
    """H(h2_j | its top-m children) / H(h2_j) of every live parent: how much of it they leave unknown.

    An upper bound, up to sampling: the cross-entropy, on the second half of the tokens, of the parent's frequencies
    given which of the children are active, counted on the first half, over that of its frequencies given nothing. Not
    the plug-in estimate, which falls with the number of patterns, whatever they are. On or off is what keeps the
    patterns of many children few, and is not the tightest bound where there are few children: of the default model, the
    medians for 1, 2, 4 and 8 were .736, .646, .599, .565; with two bins of each child's activation .70, .61, .56, .56;
    with four .69, .59, .56, .62.
    """
    n, n_bins = len(h1) // 2, int(h2.max(initial=0)) + 1
    active, parents = np.ascontiguousarray(h1[: 2 * n].T > 0), np.ascontiguousarray(h2[: 2 * n].T)
    shares = []
    for parent, children in zip(levels.alive, top_children(levels.screened, m)[levels.alive], strict=True):
        cells = parents[parent].astype(int)
        for bit, child in enumerate(children):
            cells += active[child] * (n_bins << bit)
        fit, seen = (
            np.bincount(half, minlength=n_bins << len(children)).reshape(-1, n_bins) for half in np.split(cells, [n])
        )
        # Each pattern starts from one token with the overall frequencies, and these from one token of each bin.
        overall = (fit.sum(0) + 1) / (n + n_bins)
        given = (fit + overall) / (fit.sum(1, keepdims=True) + 1)
        shares.append((seen * np.log(given)).sum() / (seen * np.log(overall)).sum())
    return np.array(shares)


def conditional_entropies(
    h1: Int8[ndarray, "token child"], h2: Int8[ndarray, "token parent"], levels: Levels, children: list[int]
) -> dict[str, dict[str, float]]:
    """Quartiles over live parents of `conditional_entropy_shares`, for each number of children; empty without any."""
    quartiles = {"low": 0.25, "median": 0.5, "high": 0.75}
    h1, h2 = np.asfortranarray(h1), np.asfortranarray(h2)  # they are read latent by latent, as often as there are m
    shares = {m: conditional_entropy_shares(h1, h2, levels, m) for m in children if len(levels.alive)}
    return {
        str(m): {name: float(np.quantile(values, at)) for name, at in quartiles.items()} for m, values in shares.items()
    }


def label_information(
    latents: Int8[ndarray, "token latent"],
    labels: Int8[ndarray, "token label"],
    names: list[str],
    margin: int,
    config: InformationConfig,
    stream: Stream,
) -> pd.DataFrame:
    """Of every live latent the label that it tells most of, tested. Rows are latents, those active on the first half.

    For every label a column of that name: I(latent; label) / H(label) on the first half of the tokens, debiased. label:
    the one with the largest of these; u: the same share on the second half, 0 of a latent that is silent there;
    information, p and q as of `nulls.shift_test`, where q counts every latent once, as its label was chosen on the
    first half.
    """
    n = len(latents) // 2
    entropy = [entropies(half) for half in (labels[:n], labels[n : 2 * n])]
    alive = np.flatnonzero((latents[:n] > 0).any(0))
    shifts = draw_shifts(n, config.screening_shifts, margin, stream.of("shifts that labels are chosen by"))
    shares = _shares(debiased(latents[:n, alive], labels[:n], shifts), entropy[0])
    best = shares.argmax(1) if len(alive) else alive
    pairs = pd.DataFrame({"x": alive, "y": best})
    shifts = draw_shifts(n, config.shifts, margin, stream.of("shifts that labels are tested against"))
    tested = shift_test(latents[n : 2 * n], labels[n : 2 * n], pairs, shifts)
    chosen = pd.DataFrame({"latent": alive, "label": np.array(names)[best]})
    u = _shares(tested["information"].to_numpy(), entropy[1][best])
    measured = tested.assign(u=u)[["information", "p", "q", "u"]]
    return pd.concat([chosen, measured, pd.DataFrame(shares, columns=pd.Index(names))], axis=1)


def summarize_labels(tested: pd.DataFrame, fdr: float) -> dict[str, float | None]:
    """Of one level's latents: the share that tells of its best label at the rate `fdr`, and the mean share u of it.

    best_<label>: the share of latents whose best label it is.
    """
    labels = tested["label"].value_counts(normalize=True).sort_index()
    return {
        "significant": _mean(tested["q"].to_numpy() <= fdr),
        "u_best": _mean(tested["u"].to_numpy()),
        **{f"best_{label}": float(share) for label, share in labels.items()},
    }


def common_classes(labels: Int[ndarray, " token"], choosing: Int[ndarray, " other"]) -> Int8[ndarray, " token"]:
    """Classes numbered anew, the most frequent of `choosing` first; of more than 127 classes the rarest become one."""
    classes, inverse = np.unique(labels, return_inverse=True)
    counts = np.bincount(np.searchsorted(classes, choosing[np.isin(choosing, classes)]), minlength=len(classes))
    rank = np.argsort(np.argsort(-counts, kind="stable"))
    return np.minimum(rank, MOST_CLASSES - 1).astype(np.int8)[inverse]


def _correlation(x: Float[ndarray, " n"], y: Float[ndarray, " n"]) -> float | None:
    """Spearman's."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(stats.spearmanr(x, y)[0])  # pyright: ignore[reportArgumentType]


def _shares(information: Float[ndarray, "*shape"], entropy: Float[ndarray, "*#shape"]) -> Float[ndarray, "*shape"]:
    """Information as a share of an entropy; 0 where nothing varies, up to rounding."""
    return information / np.where(entropy > ROUNDING, entropy, np.inf)


def _mean(values: Shaped[ndarray, " n"]) -> float | None:
    return float(values.mean()) if len(values) else None
