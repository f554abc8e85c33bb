"""Sweeps: conditions that are each trained from several seeds, as DVC experiments, and compared.

`python -m hsae.sweep ablations` runs what hsae/sweeps/ablations.yaml describes, as far as it is not finished, and
collects the results into metrics/ and plots/; with `--collect` it only collects.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from hsae import experiments, plots, presets, seed_models
from hsae.clustering import L0_LEVEL
from hsae.config import check, flatten
from hsae.experiments import read_recipe
from hsae.files import write_csv, write_figure, write_json
from hsae.statistics import at_matched_l0, bootstrap_interval, holm, paired_comparison

SWEEPS = Path(__file__).parent / "sweeps"
SIGNIFICANT = 0.05


@dataclass
class Sweep:
    """What every sweep has; hsae/sweeps/ablations.yaml explains the keys."""

    target: str
    metrics: list[str]
    seeds: list[int]
    budget: dict[str, Any]
    conditions: dict[str, dict[str, Any]]
    headline: dict[str, str]

    def __post_init__(self) -> None:
        check("seeds", self.seeds, "at least one, each once", 0 < len(set(self.seeds)) == len(self.seeds))
        for name in self.conditions:
            check("conditions", name, "named in lower case, digits and _", bool(re.fullmatch("[a-z0-9_]+", name)))

    def runs(self, params: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
        """What each condition and seed changes, one condition after the other: its seeds share no stage.

        `params` are those of params.yaml, with dotted keys; for what is refused, see `overrides`.
        """
        values = {condition: self.overrides(condition, params) for condition in self.conditions}
        return {
            (condition, seed): {**values[condition], "seed": seed}
            for condition in self.conditions
            for seed in self.seeds
        }

    def overrides(self, condition: str, params: dict[str, Any]) -> dict[str, Any]:
        """What a condition changes beside the seed: the budget, then its preset, then its own values.

        Raises ValueError, naming the condition, for an unknown preset, a key that `params` does not have, or `seed`.
        """
        own = flatten(self.conditions[condition])
        preset = own.pop("preset", None)
        try:
            of_preset = presets.overrides([f"run={preset}"]) if preset else {}
        except ValueError as error:
            raise ValueError(f"condition {condition}: {error}") from None
        values = {**flatten(self.budget), **of_preset, **own}
        for key in values:
            if key == "seed" or key not in params:
                why = "is set by `seeds`" if key == "seed" else "is no key of params.yaml"
                raise ValueError(f"condition {condition}: `{key}` {why}.")
        return values


@dataclass
class Claim:
    """That a condition moves a headline metric up or down."""

    condition: str
    metric: str
    direction: str


@dataclass
class Ablations(Sweep):
    """Conditions that are compared with one of them, the reference, seed by seed."""

    reference: str
    claims: list[Claim]

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = f"one of the conditions {', '.join(self.conditions)}"
        check("reference", self.reference, allowed, self.reference in self.conditions)
        ablated = [condition for condition in self.conditions if condition != self.reference]
        for claim in self.claims:
            check("claims.condition", claim.condition, f"one of {', '.join(ablated)}", claim.condition in ablated)
            check("claims.metric", claim.metric, f"one of {', '.join(self.headline)}", claim.metric in self.headline)
            check("claims.direction", claim.direction, "up or down", claim.direction in ("up", "down"))


@dataclass
class Frontier(Sweep):
    """Sparsities, and the L0s of each level at which methods are compared; `headline` has metrics of a dictionary."""

    matched_l0: dict[str, list[float]]

    def __post_init__(self) -> None:
        super().__post_init__()
        for level in self.matched_l0:
            check("matched_l0", level, "level1 or level2", level in ("level1", "level2"))


@dataclass
class Comparison(Sweep):
    """One condition: methods against the method `reference`, seed by seed; features of `models` over the seeds."""

    reference: str
    models: dict[str, str]

    def __post_init__(self) -> None:
        super().__post_init__()
        check("conditions", list(self.conditions), "one", len(self.conditions) == 1)


@dataclass
class GroundTruth(Sweep):
    """Difficulties of synthetic data, at each of which methods are compared with the method `reference`.

    `headline` has scores of hsae/ground_truth.py behind the difficulty: `easy.edge_ap`.
    """

    reference: str


AnySweep = Ablations | Frontier | Comparison | GroundTruth
SCHEMAS: dict[str, type[AnySweep]] = {
    "ablations": Ablations,
    "frontier": Frontier,
    "comparison": Comparison,
    "recovery": GroundTruth,
}


def load(name: str) -> AnySweep:
    """Read a sweep from hsae/sweeps. Raises ValueError, in one line, for an unknown or missing key or a bad value."""
    path = SWEEPS / f"{name}.yaml"
    try:
        sweep = OmegaConf.merge(OmegaConf.structured(SCHEMAS[name]), OmegaConf.load(path))
        return OmegaConf.to_object(sweep)  # pyright: ignore[reportReturnType]
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ValueError(f"{path.name}: {' '.join(str(error).split())}") from error


def tidy(results: dict[tuple[str, int], dict[str, Any]]) -> pd.DataFrame:
    """Metrics files of some (condition, seed) as rows: condition, seed, metric (dotted), value (nan for null)."""
    rows = [
        {"condition": condition, "seed": seed, "metric": metric, "value": np.nan if value is None else float(value)}
        for (condition, seed), content in results.items()
        for metric, value in flatten(content).items()
        if not isinstance(value, str)
    ]
    return pd.DataFrame(rows, columns=["condition", "seed", "metric", "value"])


def compare(frame: pd.DataFrame, sweep: Ablations | Comparison | GroundTruth) -> pd.DataFrame:
    """`paired_comparison` of the headline metrics, as far as a condition shares two seeds with the reference.

    Raises ValueError for a headline metric that no result has.
    """
    there = frame["metric"].unique().tolist()
    for metric in sweep.headline:
        check("headline", metric, f"in {' and '.join(sweep.metrics)} ({', '.join(there)})", metric in there)
    shown = frame.query("metric in @sweep.headline").dropna()
    paired = shown.merge(shown.query("condition == @sweep.reference").filter(["metric", "seed"]))
    groups = [group for _, group in paired.groupby(["condition", "metric"], sort=False) if len(group) > 1]
    kept = pd.concat(groups) if groups else paired.head(0)
    if set(kept["condition"]) <= {sweep.reference}:
        return pd.DataFrame(columns=["condition", "metric", "p"])
    return paired_comparison(kept, sweep.reference, seed=0)


def judge(comparisons: pd.DataFrame, claims: list[Claim]) -> list[dict[str, Any]]:
    """Whether each claim holds: its difference has the right sign, and p < .05 after Holm over all claims.

    A claim that cannot be tested yet counts with p = 1: its test can only make the others' p_holm smaller.
    """
    rows = {(row["condition"], row["metric"]): row for row in comparisons.to_dict("records")}
    tested = [rows.get((claim.condition, claim.metric)) for claim in claims]
    p_holm = holm(np.array([row["p"] if row else 1.0 for row in tested], dtype=float)).tolist()
    judged = []
    for claim, row, p in zip(claims, tested, p_holm, strict=True):
        values = {key: row[key] if row else None for key in ("n", "difference", "low", "high", "p")}
        holds = row is not None and (row["difference"] > 0) == (claim.direction == "up") and p < SIGNIFICANT
        judged.append({**vars(claim), **values, "p_holm": p if row else None, "holds": bool(holds)})
    return judged


def summarize(frame: pd.DataFrame, comparisons: pd.DataFrame, headline: list[str]) -> dict[str, dict[str, Any]]:
    """condition -> headline metric -> its mean over n seeds, and its comparison with the reference, if there is one.

    `interval` is the 95% bootstrap interval of the mean; None for one seed.
    """
    shown = frame[frame["metric"].isin(headline)].dropna()
    summary: dict[str, dict[str, Any]] = {}
    for (condition, metric), group in shown.groupby(["condition", "metric"], sort=False):  # pyright: ignore
        values = np.asarray(group["value"], dtype=float)
        interval = list(bootstrap_interval(values, seed=0)) if len(values) > 1 else None
        summary.setdefault(condition, {})[metric] = {"mean": values.mean(), "interval": interval, "n": len(values)}
    for row in comparisons.to_dict("records"):
        compared = {key: row[key] for key in ("n", "difference", "low", "high", "p", "p_holm")}
        summary[row["condition"]][row["metric"]] |= compared
    return summary


def dictionaries(evaluation: dict[str, Any]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Of each dictionary in metrics/evaluate.json: method, HSAE level that it is compared with (1 or 2), metrics.

    A flat autoencoder's level is in its name. A clustering's is the one whose L0 it has, or else whose width.
    """
    width2 = evaluation["hsae"]["level2"]["latents"]
    for family in ("hsae", "flat", "clustering"):
        for name, metrics in evaluation[family].items():
            if family == "clustering":
                level = L0_LEVEL[name] if name in L0_LEVEL else 1 + (metrics["latents"] == width2)
            else:
                level = 1 + name.endswith("level2")
            yield "HSAE" if family == "hsae" else name.removesuffix("_level2"), level, metrics


def methods(results: dict[tuple[str, int], dict[str, Any]]) -> pd.DataFrame:
    """`tidy` rows whose conditions are the methods: metrics/evaluate.json by level, the hierarchy as the HSAE's own."""
    by_method: dict[tuple[str, int], dict[str, Any]] = {}
    for (_, seed), content in results.items():
        for method, level, metrics in dictionaries(content):
            by_method.setdefault((method, seed), {})[f"level{level}"] = metrics
        by_method["HSAE", seed]["hierarchy"] = content["hierarchy"]
    return tidy(by_method)


def known(results: dict[tuple[str, int], dict[str, Any]]) -> pd.DataFrame:
    """`tidy` rows whose conditions are the methods and whose metrics are metrics/synthetic.json's, by difficulty."""
    by_method: dict[tuple[str, int], dict[str, Any]] = {}
    for (difficulty, seed), content in results.items():
        for method, scores in content.items():
            by_method.setdefault((method, seed), {})[difficulty] = scores
    return tidy(by_method)


def compared(sweep: AnySweep, results: dict[tuple[str, int], dict[str, Any]]) -> pd.DataFrame:
    """`tidy` rows of what a sweep compares: methods, or its conditions."""
    if isinstance(sweep, Comparison):
        return methods(results)
    return known(results) if isinstance(sweep, GroundTruth) else tidy(results)


def points(evaluations: dict[tuple[str, int], dict[str, Any]], ys: list[str]) -> pd.DataFrame:
    """A row per method, level and sparsity, the mean over seeds: method, level (1 or 2), l0 and `ys`.

    `evaluations` hold metrics/evaluate.json of some (condition, seed). What no sparsity changes (most clusterings)
    stands there once.
    """
    rows = []
    for (condition, _), evaluation in evaluations.items():
        for method, level, metrics in dictionaries(evaluation):
            values = {key: np.nan if metrics[key] is None else metrics[key] for key in ("l0", *ys)}
            rows.append({"condition": condition, "method": method, "level": level, **values})
    groups = pd.DataFrame(rows).groupby(["method", "level", "condition"], sort=False, as_index=False)
    means = groups.agg(dict.fromkeys(["l0", *ys], "mean"))
    return means.drop(columns="condition").drop_duplicates(ignore_index=True)


def matched(frontiers: pd.DataFrame, sweep: Frontier) -> dict[str, Any]:
    """level -> L0 -> method -> metric, on each method's frontier; None where its sparsities do not reach that L0."""
    result: dict[str, Any] = {level: {f"{l0:g}": {} for l0 in l0s} for level, l0s in sweep.matched_l0.items()}
    for (method, number), own in frontiers.groupby(["method", "level"], sort=False):  # pyright: ignore
        for l0 in sweep.matched_l0.get(f"level{number}", []) if len(own) > 1 else []:
            known = {y: own.filter(["l0", y]).dropna() for y in sweep.headline}
            values = {y: at_matched_l0(points, l0, y) if len(points) else np.nan for y, points in known.items()}
            finite = {y: value if np.isfinite(value) else None for y, value in values.items()}
            result[f"level{number}"][f"{l0:g}"][method] = finite
    return result


def collect(name: str, sweep: AnySweep, results: dict[tuple[str, int], Any], missing: list[str]) -> None:
    """Write the results of some (condition, seed), contents of the metrics files, to metrics/ and plots/."""
    result = {"target": sweep.target, "budget": flatten(sweep.budget), "seeds": sweep.seeds, "missing": missing}
    if isinstance(sweep, Frontier):
        frame = points(results, list(sweep.headline))
        active = frame.query("l0 > 0")  # the axis is logarithmic
        result["matched_l0"] = matched(active, sweep)
        figure = plots.frontier(active, sweep.headline)
    else:
        frame = compared(sweep, results)
        comparisons = compare(frame, sweep)
        summary = summarize(frame, comparisons, list(sweep.headline))
        result["reference"] = sweep.reference
        if isinstance(sweep, Comparison | GroundTruth):
            result["methods"] = summary
        else:
            result["overrides"] = {condition: flatten(values) for condition, values in sweep.conditions.items()}
            result["conditions"] = summary
            result["claims"] = judge(comparisons, sweep.claims)
        labelled = comparisons.replace({"metric": sweep.headline})
        figure = plots.paired_differences(labelled, sweep.reference) if len(comparisons) else None
    write_csv(Path(f"metrics/{name}.csv"), frame)
    write_json(Path(f"metrics/{name}.json"), result)
    if figure:
        write_figure(Path(f"plots/{name}.png"), figure)


def read_committed(commit: str, path: str) -> dict[str, Any]:
    """A JSON file as a commit has it."""
    return json.loads(experiments.git("show", f"{commit}:{path}"))


def main(arguments: list[str] | None = None) -> None:
    """Run a sweep as far as it is not finished, and collect it."""
    parser = argparse.ArgumentParser(description="Run a sweep of hsae/sweeps as DVC experiments, and collect it.")
    parser.add_argument("sweep", choices=SCHEMAS)
    parser.add_argument("--jobs", type=int, default=1, help="experiments at a time")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    try:
        sweep = load(options.sweep)
        recipe = read_recipe(sweep.target)
        runs = sweep.runs(recipe.params)
        names = {run: recipe.name(f"{options.sweep}-{run[0]}-{run[1]}", overrides) for run, overrides in runs.items()}
        if options.collect:
            done = experiments.finished(names.values())
        else:
            wanted = {names[run]: overrides for run, overrides in runs.items()}
            done = experiments.run(wanted, recipe, options.jobs, options.sweep)
        missing = [name for name in names.values() if name not in done]
        results = {
            run: {k: v for path in sweep.metrics for k, v in read_committed(done[name], path).items()}
            for run, name in names.items()
            if name in done
        }
        if results:
            collect(options.sweep, sweep, results, missing)
        if isinstance(sweep, Comparison) and len(results) > 1:
            seed_models.collect({seed: done[names[condition, seed]] for condition, seed in results}, sweep.models)
    except (ValueError, OSError) as error:
        sys.exit(f"error: sweep: {error}")
    except KeyboardInterrupt:
        sys.exit("\nThe workers go on: run this again to wait for them, or `dvc queue stop --kill`.")
    print(f"{options.sweep}: {len(done)} of {len(runs)} experiments are finished; {len(missing)} are missing")
    if missing and not options.collect:
        shown = ", ".join(missing[:10]) + ", ..." * (len(missing) > 10)
        sys.exit(
            f"error: sweep: failed or not run: {shown}; see `dvc queue logs {missing[0]}`; run this again to retry"
        )


if __name__ == "__main__":
    main()
