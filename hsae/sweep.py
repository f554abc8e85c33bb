"""Sweeps: conditions that are each trained from several seeds, as DVC experiments, and compared.

`python -m hsae.sweep ablations` runs what hsae/sweeps/ablations.yaml describes, as far as it is not finished, and
collects the results into metrics/ and plots/; with `--collect` it only collects. `--share 2/3` runs every third
experiment from the second on, and collects nothing: the part of one of three clones.

What is collected is kept in metrics/sweeps, to be committed: no clone runs again what stands there.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from hsae import context_bootstrap, experiments, seed_models
from hsae.experiments import Recipe, read_recipe
from hsae.files import read_json, write_json
from hsae.run import LOCK
from hsae.sweep_config import LANGUAGE_MODEL_SEEDS, SCHEMAS, Ablations, AnySweep, Comparison, load
from hsae.sweep_results import collect, points
from hsae.workers import share


def read_committed(commit: str, path: str) -> dict[str, Any]:
    """A JSON file as a commit has it."""
    return json.loads(experiments.git("show", f"{commit}:{path}"))


KEPT = Path("metrics/sweeps")


def read_kept(label: str, activations: str | None) -> dict[str, Any]:
    """Contents of the metrics files of a sweep's experiments, by their names, as `write_kept` left them.

    The names tell of code and parameters (experiments.Recipe), not of the language model, which another processor
    trains to another result: what was measured on other activations is not taken.
    """
    path = KEPT / f"{label}.json"
    content = read_json(path) if path.is_file() else {"activations": None, "results": {}}
    return content["results"] if content["activations"] == activations else {}


def write_kept(label: str, activations: str | None, results: dict[str, Any]) -> None:
    """Keep these and no others."""
    write_json(KEPT / f"{label}.json", {"activations": activations, "results": results})


def read_frontier(activations: str | None) -> pd.DataFrame:
    """The HSAE's points (sweep_results.points) in what is kept of the frontier, as code and parameters are now."""
    described = load("frontier")
    recipe, kept = read_recipe(described.target), read_kept("frontier", activations)
    names = {
        run: recipe.name(f"frontier-{run[0]}-{run[1]}", overrides)
        for run, overrides in described.runs(recipe.params).items()
    }
    found = points({run: kept[name] for run, name in names.items() if name in kept}, list(described.headline))
    return found.query("method == 'HSAE'")


def activations_of(lock: str, recipe: Recipe) -> str | None:
    """MD5 of the activations that a dvc.lock (its text) names; None if it names none, or the recipe needs none."""
    made = re.search(r"^  extract_activations:\n(?:    .*\n)*?    outs:\n((?:    [- ].*\n)+)", lock, re.MULTILINE)
    found = made and re.search(r"- path: data/activations/train\n +hash: md5\n +md5: (\w{32})", made[1])
    return found[1] if found and "extract_activations" in recipe.stages else None


def the_same(activations: dict[str, str | None]) -> str | None:
    """The activations that all experiments have, of which there is one at least. Raises ValueError if they differ."""
    first, *others = activations
    for name in others:
        if activations[name] != activations[first]:
            raise ValueError(
                f"`{name}` has activations of md5 {activations[name]}, `{first}` {activations[first]}: `dvc repro` "
                "makes those of this machine, without which experiments make their own; `dvc exp remove` forgets some."
            )
    return activations[first]


def same_language_model(overrides: dict[str, Any], params: dict[str, Any]) -> bool:
    """Whether an experiment has the language model of these parameters: others have other activations."""
    return all(overrides.get(key, params.get(key)) == params.get(key) for key in LANGUAGE_MODEL_SEEDS)


def main(arguments: list[str] | None = None) -> None:
    """Run a sweep as far as it is not finished and collect it, or run a share of it."""
    parser = argparse.ArgumentParser(description="Run a sweep of hsae/sweeps as DVC experiments, and collect it.")
    parser.add_argument("sweep", choices=SCHEMAS)
    parser.add_argument("--jobs", type=int, default=1, help="experiments at a time")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--collect", action="store_true", help="run nothing")
    ways.add_argument("--share", metavar="I/N", help="run the I-th of N parts, and collect nothing")
    options = parser.parse_args(arguments)
    try:
        sweep = load(options.sweep)
        recipe = read_recipe(sweep.target)
        runs = sweep.runs(recipe.params)
        if options.share is not None:
            runs = dict([*runs.items()][share(options.share)])
        names = {run: recipe.name(f"{options.sweep}-{run[0]}-{run[1]}", overrides) for run, overrides in runs.items()}
        here = activations_of(LOCK.read_text(encoding="utf-8") if LOCK.is_file() else "", recipe)
        # A comparison takes models and sums over contexts from the experiments themselves.
        kept = {} if isinstance(sweep, Comparison) else read_kept(options.sweep, here)
        kept = {name: kept[name] for name in names.values() if name in kept}
        wanted = {names[run]: overrides for run, overrides in runs.items() if names[run] not in kept}
        if options.collect:
            done = experiments.finished(wanted)
        else:
            done = experiments.run(wanted, recipe, options.jobs, options.sweep)
        missing = [name for name in wanted if name not in done]
        if options.share is None and (done or kept):
            locks = {name: experiments.git("show", f"{commit}:dvc.lock") for name, commit in done.items()}
            activations = dict.fromkeys(kept, here) | {n: activations_of(lock, recipe) for n, lock in locks.items()}
            of_this_model = [names[run] for run, values in runs.items() if same_language_model(values, recipe.params)]
            activations = {name: activations[name] for name in of_this_model if name in activations}
            _collect(options.sweep, sweep, names, done, kept, the_same(activations) if activations else here)
    except (ValueError, OSError) as error:
        sys.exit(f"error: sweep: {error}")
    except KeyboardInterrupt:
        sys.exit("\nThe workers go on: run this again to wait for them, or `dvc queue stop --kill`.")
    finished = len(runs) - len(missing)
    print(f"{options.sweep}: {finished} of {len(runs)} experiments are finished; {len(missing)} are missing")
    if missing and not options.collect:
        shown = ", ".join(missing[:10]) + ", ..." * (len(missing) > 10)
        sys.exit(
            f"error: sweep: failed or not run: {shown}; see `dvc queue logs {missing[0]}`; run this again to retry"
        )


def _collect(
    label: str,
    sweep: AnySweep,
    names: dict[tuple[str, int], str],
    done: dict[str, str],
    kept: dict[str, Any],
    activations: str | None,
) -> None:
    """Write what is known of a sweep's experiments, finished or kept, into metrics/ and plots/."""
    by_name = {
        name: sweep.content({path: read_committed(commit, path) for path in sweep.metrics})
        for name, commit in done.items()
    }
    by_name |= kept
    results = {run: by_name[name] for run, name in names.items() if name in by_name}
    missing = [name for name in names.values() if name not in by_name]
    if isinstance(sweep, Comparison):
        commits = {seed: done[names[condition, seed]] for condition, seed in results}
        by_context = [context_bootstrap.read(commit) for commit in commits.values()]
        collect(label, sweep, results, missing, by_context)
        if len(results) > 1:
            name = "stability" if label == "comparison" else f"{label}_stability"
            seed_models.collect(commits, sweep.models, name)
    else:
        of_claims = isinstance(sweep, Ablations) and any(claim.compared == "matched L0" for claim in sweep.claims)
        collect(label, sweep, results, missing, own_frontier=read_frontier(activations) if of_claims else None)
        write_kept(label, activations, {names[run]: content for run, content in results.items()})


if __name__ == "__main__":
    main()
