"""What the finished experiments of a sweep say: tables of their metrics, comparisons over seeds, figures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hsae import claims
from hsae.claims import LEAST_SEEDS, Claim
from hsae.clusters import L0_LEVEL
from hsae.config import check, flatten
from hsae.context_bootstrap import Run, intervals
from hsae.files import write_csv, write_figure, write_json
from hsae.ground_truth import RANDOM, UNTRAINED
from hsae.statistics import at_matched_l0, bootstrap_interval, holm, paired_comparison
from hsae.streams import Stream
from hsae.sweep_config import Ablations, AnySweep, Comparison, Controls, Frontier, GroundTruth
from hsae.sweep_plots import (
    SIGNIFICANT,
    comparison_table,
    controls_over_seeds,
    frontier,
    known_hierarchies,
    paired_differences,
)

CHANCE = "untrained HSAE"
NO_METHODS = ("data", RANDOM, CHANCE)  # beside what metrics/synthetic.json calls untrained


def tidy(results: dict[tuple[str, int], dict[str, Any]]) -> pd.DataFrame:
    """Metrics files of some (condition, seed) as rows: condition, seed, metric (dotted), value (nan for null)."""
    rows = [
        {"condition": condition, "seed": seed, "metric": metric, "value": np.nan if value is None else float(value)}
        for (condition, seed), content in results.items()
        for metric, value in flatten(content).items()
        if not isinstance(value, str | list)
    ]
    return pd.DataFrame(rows, columns=["condition", "seed", "metric", "value"])


def compare(frame: pd.DataFrame, metrics: list[str], reference: str, stream: Stream) -> pd.DataFrame:
    """`paired_comparison` of some metrics, as far as a condition shares two seeds with the reference.

    Raises ValueError for a metric that no result has.
    """
    there = frame["metric"].unique().tolist()
    for metric in metrics:
        check("headline", metric, f"a metric of the results ({', '.join(there)})", metric in there)
    shown = frame.query("metric in @metrics").dropna()
    paired = shown.merge(shown.query("condition == @reference").filter(["metric", "seed"]))
    groups = [group for _, group in paired.groupby(["condition", "metric"], sort=False) if len(group) > 1]
    kept = pd.concat(groups) if groups else paired.head(0)
    if set(kept["condition"]) <= {reference}:
        return pd.DataFrame(columns=["condition", "metric", "p"])
    return paired_comparison(kept, reference, stream)


def judge(comparisons: pd.DataFrame, claims: list[Claim]) -> list[dict[str, Any]]:
    """Whether each claim holds: its difference has the right sign, and p < .05 after Holm over all claims.

    The metrics of `comparisons` are the claims' components. A claim that cannot be tested yet, or of too few seeds
    (`LEAST_SEEDS`), does not hold and counts with p = 1: its test can only make the others' p_holm smaller.
    """
    rows = {row["metric"]: row for row in comparisons.to_dict("records")}
    compared = [rows.get(claim.component) for claim in claims]
    tested = [row is not None and row["n"] >= LEAST_SEEDS for row in compared]
    ps = [row["p"] if row and enough else 1.0 for row, enough in zip(compared, tested, strict=True)]
    p_holm = holm(np.array(ps, dtype=float)).tolist()
    judged = []
    for claim, row, enough, p in zip(claims, compared, tested, p_holm, strict=True):
        said = {key: value for key, value in vars(claim).items() if key not in ("note", "exploratory")}
        values = {key: row[key] if row else None for key in ("n", "difference", "low", "high", "p")}
        holds = row is not None and enough and (row["difference"] > 0) == (claim.direction == "up") and p < SIGNIFICANT
        judged.append({**said, **values, "p_holm": p if enough else None, "holds": bool(holds)})
    return judged


def summarize(
    frame: pd.DataFrame, comparisons: pd.DataFrame, metrics: list[str], stream: Stream
) -> dict[str, dict[str, Any]]:
    """condition -> metric -> its mean over n seeds, and its comparison with the reference, if there is one.

    `interval` is the 95% bootstrap interval of the mean; None for one seed.
    """
    shown = frame[frame["metric"].isin(metrics)].dropna()
    summary: dict[str, dict[str, Any]] = {}
    for (condition, metric), group in shown.groupby(["condition", "metric"], sort=False):  # pyright: ignore
        values = np.asarray(group["value"], dtype=float)
        interval = list(bootstrap_interval(values, stream.of(condition, metric))) if len(values) > 1 else None
        summary.setdefault(condition, {})[metric] = {"mean": values.mean(), "interval": interval, "n": len(values)}
    for row in comparisons.to_dict("records"):
        compared = {key: row[key] for key in ("n", "difference", "low", "high", "p", "p_holm")}
        summary[row["condition"]][row["metric"]] |= compared
    return summary


class Dictionary(NamedTuple):
    """An entry of metrics/evaluate.json."""

    method: str
    level: int
    """The HSAE's level that it is compared with: 1 or 2."""
    metrics: dict[str, Any]
    path: str
    """family/name."""


def dictionaries(evaluation: dict[str, Any]) -> Iterator[Dictionary]:
    """All dictionaries in metrics/evaluate.json.

    A flat autoencoder's level is in its name. A clustering's is the one whose L0 it has, or else whose width.
    """
    width2 = evaluation["hsae"]["level2"]["latents"]
    for family in ("hsae", "flat", "clustering"):
        for name, metrics in evaluation[family].items():
            if family == "clustering":
                level = L0_LEVEL[name] if name in L0_LEVEL else 1 + (metrics["latents"] == width2)
            else:
                level = 1 + name.endswith("level2")
            method = "HSAE" if family == "hsae" else name.removesuffix("_level2")
            yield Dictionary(method, level, metrics, f"{family}/{name}")


def methods(results: dict[tuple[str, int], dict[str, Any]]) -> pd.DataFrame:
    """`tidy` rows whose conditions are the methods: metrics/evaluate.json by level, the hierarchy as the HSAE's own.

    One of the methods is an HSAE that was never trained (hsae/untrained.py).
    """
    by_method: dict[tuple[str, int], dict[str, Any]] = {}
    for (_, seed), content in results.items():
        for entry in dictionaries(content):
            by_method.setdefault((entry.method, seed), {})[f"level{entry.level}"] = entry.metrics
        by_method["HSAE", seed]["hierarchy"] = content["hierarchy"]
        by_method[CHANCE, seed] = content["untrained"]
    return tidy(by_method)


def known(results: dict[tuple[str, int], dict[str, Any]]) -> pd.DataFrame:
    """`tidy` rows whose conditions are the methods and whose metrics are metrics/synthetic.json's, by difficulty.

    What that file says of the samples is no method's.
    """
    by_method: dict[tuple[str, int], dict[str, Any]] = {}
    for (difficulty, seed), content in results.items():
        for method, scores in content.items():
            if method != "samples":
                by_method.setdefault((method, seed), {})[difficulty] = scores
    return tidy(by_method)


def by_control(results: dict[tuple[str, int], dict[str, Any]]) -> pd.DataFrame:
    """`tidy` rows whose conditions are the controls."""
    return tidy({(name, seed): own for (_, seed), content in results.items() for name, own in content.items()})


def differences(sweep: AnySweep, frame: pd.DataFrame, metrics: list[str], stream: Stream) -> pd.DataFrame:
    """`compare` with the sweep's reference; of controls the other way round, so that it is what training has found.

    Of methods it is those that are trained: what is scored by chance would count in Holm's family, which says how
    methods differ.
    """
    if isinstance(sweep, GroundTruth | Comparison):
        names = frame["condition"]
        frame = pd.DataFrame(frame.loc[~(names.isin(NO_METHODS) | names.str.startswith(UNTRAINED))])
    comparisons = compare(frame, metrics, sweep.reference, stream)
    if not isinstance(sweep, Controls) or comparisons.empty:
        return comparisons
    signs = {"difference": -comparisons["difference"], "low": -comparisons["high"], "high": -comparisons["low"]}
    return comparisons.assign(**signs)


def claimed(sweep: Ablations, frame: pd.DataFrame, own_frontier: pd.DataFrame | None, stream: Stream) -> pd.DataFrame:
    """The comparisons that the claims of ablations ask for, with the claims' components as metrics."""
    points = pd.DataFrame(columns=["level", "seed", "l0"]) if own_frontier is None else own_frontier
    rows = claims.rows(sweep.claims, frame, points, sweep.reference)
    return compare(rows, rows["metric"].unique().tolist(), sweep.reference, stream)


def compared(sweep: AnySweep, results: dict[tuple[str, int], dict[str, Any]]) -> pd.DataFrame:
    """`tidy` rows of what a sweep compares: methods, controls, or its conditions."""
    if isinstance(sweep, Comparison):
        return methods(results)
    if isinstance(sweep, Controls):
        return by_control(results)
    return known(results) if isinstance(sweep, GroundTruth) else tidy(results)


def points(evaluations: dict[tuple[str, int], dict[str, Any]], ys: list[str]) -> pd.DataFrame:
    """A row per method, level (1 or 2), sparsity (condition) and seed: with l0 and `ys`.

    `evaluations` hold metrics/evaluate.json of some (condition, seed). What no sparsity changes (most clusterings)
    stands there once a seed.
    """
    rows = []
    for (condition, seed), evaluation in evaluations.items():
        for entry in dictionaries(evaluation):
            known = {key: entry.metrics[key] for key in ("l0", *ys)}
            values = {key: np.nan if value is None else value for key, value in known.items()}
            place = {"method": entry.method, "level": entry.level, "condition": condition, "seed": seed}
            rows.append({**place, **values})
    table = pd.DataFrame(rows, columns=["method", "level", "condition", "seed", "l0", *ys])
    return table.drop_duplicates(["method", "level", "seed", "l0", *ys], ignore_index=True)


def matched(frontiers: pd.DataFrame, sweep: Frontier) -> pd.DataFrame:
    """`tidy` rows whose conditions are the methods: the frontier of each of their seeds, read at the sweep's L0s.

    Metrics are `level1.l0_8.fvu` and the like, nan where the sparsities of a seed do not reach that L0. A method of one
    sparsity has no frontier.
    """
    rows, active = [], frontiers.query("l0 > 0")
    for (method, level, seed), own in active.groupby(["method", "level", "seed"], sort=False):  # pyright: ignore
        for l0 in sweep.matched_l0.get(f"level{level}", []) if len(own) > 1 else []:
            for y in sweep.headline:
                known = own.filter(["l0", y]).dropna()
                value = at_matched_l0(known, l0, y) if len(known) else np.nan
                rows.append(
                    {"condition": method, "seed": seed, "metric": f"level{level}.l0_{l0:g}.{y}", "value": value}
                )
    return pd.DataFrame(rows, columns=["condition", "seed", "metric", "value"])


def over_contexts(
    results: dict[tuple[str, int], Any], runs: list[Run], reference: str, stream: Stream
) -> dict[tuple[str, str], dict[str, Any]]:
    """(method, headline metric) -> `contexts`: intervals of its mean and of its difference from the reference's."""
    entries = {entry.path: entry for entry in dictionaries(next(iter(results.values())))}
    references = {entry.level: path for path, entry in entries.items() if entry.method == reference}
    rivals = {path: references[entry.level] for path, entry in entries.items()}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in intervals(runs, rivals, stream).to_dict("records"):
        entry = entries[row["method"]]
        interval, difference = [row["low"], row["high"]], [row["difference_low"], row["difference_high"]]
        own = {"interval": interval} | ({} if entry.method == reference else {"difference": difference})
        found[entry.method, f"level{entry.level}.{row['metric']}"] = {"contexts": own}
    return found


def collect(
    name: str,
    sweep: AnySweep,
    results: dict[tuple[str, int], Any],
    missing: list[str],
    runs: list[Run] | None = None,
    own_frontier: pd.DataFrame | None = None,
) -> None:
    """Write the results of some (condition, seed), contents of the metrics files, to metrics/ and plots/.

    `runs` has what the seeds of a comparison were measured to be context by context, `own_frontier` the points of the
    reference of ablations.
    """
    result = {"target": sweep.target, "budget": flatten(sweep.budget), "seeds": sweep.seeds, "missing": missing}
    if isinstance(sweep, Frontier):
        table = points(results, list(sweep.headline))
        whole = {run: r for run, r in results.items() if all((name, run[1]) in results for name in sweep.conditions)}
        frame = matched(points(whole, list(sweep.headline)), sweep)
        shown = frame["metric"].unique().tolist()
        figure = frontier(table.query("l0 > 0"), sweep.headline)  # the axis is logarithmic
    else:
        table = frame = compared(sweep, results)
        shown, figure = list(sweep.headline), None
    stream = Stream(0, f"sweep_results/{name}")
    comparisons = differences(sweep, frame, shown, stream.of("differences"))
    summary = summarize(frame, comparisons, shown, stream.of("means"))
    result["reference"] = sweep.reference
    if isinstance(sweep, Ablations):
        result["overrides"] = {condition: flatten(values) for condition, values in sweep.conditions.items()}
        result["conditions"] = summary
        result["claims"] = judge(claimed(sweep, frame, own_frontier, stream.of("claims")), sweep.claims)
    elif isinstance(sweep, Controls):
        result["controls"] = summary
    else:
        result["methods"] = summary
    if isinstance(sweep, Comparison):
        of_contexts = over_contexts(results, runs, sweep.reference, stream.of("contexts drawn")) if runs else {}
        for (method, metric), own in of_contexts.items():
            if metric in sweep.headline:
                summary[method][metric] |= own
        figure = comparison_table(summary, sweep.headline, sweep.reference)
    elif isinstance(sweep, GroundTruth):
        figure = known_hierarchies(summary, sweep.headline, [sweep.reference, *sweep.beside])
    elif isinstance(sweep, Controls):
        figure = controls_over_seeds(summary, sweep.headline, sweep.reference)
    elif isinstance(sweep, Ablations):
        labelled = comparisons.replace({"metric": sweep.headline})
        figure = paired_differences(labelled, sweep.reference) if len(comparisons) else None
    write_csv(Path(f"metrics/{name}.csv"), table)
    write_json(Path(f"metrics/{name}.json"), result)
    if figure:
        # plots/controls.png is the pipeline's, of one run.
        write_figure(Path(f"plots/{name}{'_sweep' if isinstance(sweep, Controls) else ''}.png"), figure)
