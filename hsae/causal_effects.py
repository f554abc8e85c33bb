"""How much of a task's effect which nodes carry: curves over the number of nodes, shares, intervals, tests."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.stats import spearmanr
from torch import Tensor

from hsae import causal
from hsae.causal import Basis, Runs
from hsae.causal_nodes import DIFFERENCE, LEVEL1, LEVEL2, MATCHED, NEURONS, Choice, choose, difference_of_means, matched
from hsae.causal_tasks import Task
from hsae.config import check, check_positive
from hsae.hierarchical import HierarchicalSAE
from hsae.statistics import cluster_weights, holm


@dataclass
class CausalConfig:
    """Section `causal_tracing`.

    prompt_chars: length of prompts. pairs: of each task in discovery and test, at most; min_pairs: with fewer, a task
    is reported but not traced. ks: numbers of nodes of the curves. steps: of integrated gradients. exact: nodes
    whose effect is also measured one by one. draws: of matched random latents. distance: positions of the map, back
    from the last. parents, children: of the path diagrams.
    """

    prompt_chars: int
    pairs: int
    min_pairs: int
    ks: list[int]
    steps: int
    exact: int
    draws: int
    distance: int
    parents: int
    children: int

    def __post_init__(self) -> None:
        check_positive(self, [name for name in vars(self) if name != "ks"])
        check("ks", self.ks, "ascending, from 1", self.ks == sorted(set(self.ks)) and bool(self.ks) and self.ks[0] >= 1)
        check(
            "distance",
            self.distance,
            f"at most prompt_chars (={self.prompt_chars})",
            self.distance <= self.prompt_chars,
        )


@dataclass(frozen=True)
class Pair:
    """A task's runs: nodes are chosen on `discovery` and measured on `test`."""

    discovery: Runs
    test: Runs


@dataclass(frozen=True)
class Curve:
    """Log odds of every test pair with the first k nodes restored, and with them knocked out."""

    ks: list[int]
    restored: Float[ndarray, "k pair"]
    knocked: Float[ndarray, "k pair"]


def curve(choice: Choice, runs: Runs, ks: list[int]) -> Curve:
    """Measure the first k nodes of a choice, for every k that the basis has."""
    codes, basis = runs.codes(choice.basis), choice.basis
    kept = [k for k in ks if k <= len(basis)]
    parts = [causal.part(codes, basis, choice.order[:k]) for k in kept]
    restored, knocked = ([change(part).cpu().numpy() for part in parts] for change in (runs.restore, runs.knock_out))
    return Curve(kept, np.stack(restored).astype(float), np.stack(knocked).astype(float))


class Bootstrap:
    """Ratios of means over the pairs of a task, and their intervals as pieces of the corpus are drawn anew."""

    def __init__(self, task: Task, seed: int):
        clusters = task.clusters.numpy()
        sums = np.zeros((clusters.max() + 1, len(clusters)))
        sums[clusters, np.arange(len(clusters))] = 1
        drawn = cluster_weights(len(sums), seed) @ sums
        self.weights = np.vstack([np.ones(len(clusters)), drawn])
        """Row 0: every pair once."""

    def ratio(self, effects: Float[ndarray, "*more pair"], total: Float[ndarray, " pair"]) -> ndarray:
        """Mean effect / mean total effect, of all pairs and of every draw: shape (draw, *more)."""
        shares = np.moveaxis(np.asarray(effects) @ self.weights.T, -1, 0)
        whole = self.weights @ total
        return shares / whole.reshape(-1, *[1] * (shares.ndim - 1))


def interval(values: Float[ndarray, " draw"]) -> dict[str, Any]:
    """The value of all pairs, and the 95% percentile interval over draws."""
    return {"value": float(values[0]), "interval": np.percentile(values[1:], [2.5, 97.5]).tolist()}


def two_sided(differences: Float[ndarray, " draw"]) -> float:
    """P-value of a bootstrapped difference: how much of its distribution lies beyond 0, both sides."""
    drawn = differences[1:]
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return min(2 * (int(beyond) + 1) / (len(drawn) + 1), 1.0)


def area(ks: list[int], f: Float[ndarray, "draw k"], last: int) -> Float[ndarray, " draw"]:
    """Mean of f over 0 .. `last` nodes, by trapezia: f(0) = 0, and after its last k it stays as it is."""
    x = np.array([0, *ks, *([last] if ks[-1] < last else [])])
    y = np.concatenate([np.zeros((len(f), 1)), f, f[:, -1:]], 1)[:, : len(x)]
    return np.asarray(np.trapezoid(y, x, axis=1)) / last


def faithfulness(found: Curve, runs: Runs, bootstrap: Bootstrap) -> tuple[ndarray, ndarray]:
    """(m(C) - m(0)) / (m(M) - m(0)), C the restored nodes; and (m(M) - m(M without C)) / (m(M) - m(0)); draw x k."""
    clean, corrupt = (m.cpu().numpy().astype(float) for m in (runs.m_clean, runs.m_corrupt))
    total = clean - corrupt
    return bootstrap.ratio(found.restored - corrupt, total), bootstrap.ratio(clean - found.knocked, total)


def describe(ks: list[int], sufficient: ndarray, necessary: ndarray, last: int) -> dict[str, Any]:
    """CPR (area under faithfulness), CMD (area of its distance from 1), and both curves, with intervals."""
    return {
        "cpr": interval(area(ks, sufficient, last)),
        "cmd": interval(1 - area(ks, 1 - np.abs(1 - sufficient), last)),
        "curve": {
            str(k): {"sufficient": interval(sufficient[:, i]), "necessary": interval(necessary[:, i])}
            for i, k in enumerate(ks)
        },
    }


def shares(runs: Runs, bases: dict[str, Basis], bootstrap: Bootstrap) -> dict[str, Any]:
    """How much of the effect is in level-2 latents and in both errors: sufficient, necessary, and their mean."""
    total = (runs.m_clean - runs.m_corrupt).cpu().numpy().astype(float)
    found = {}
    for name, part in causal.groups(runs, bases).items():
        sufficient = bootstrap.ratio((runs.restore(part) - runs.m_corrupt).cpu().numpy().astype(float), total)
        necessary = bootstrap.ratio((runs.m_clean - runs.knock_out(part)).cpu().numpy().astype(float), total)
        found[name] = {
            "sufficient": interval(sufficient),
            "necessary": interval(necessary),
            "share": interval((sufficient + necessary) / 2),
        }
    return found


def economy(runs: Runs, choice2: Choice, bases: dict[str, Basis], bootstrap: Bootstrap) -> dict[str, Any]:
    """Level 2's effect as a share of level 1's, with a quarter as many latents as differ at level 1 in a pair."""
    differ = (runs.codes(bases[LEVEL1]) != 0).any(1).sum(1).double().mean().item()
    k = max(int(differ / 4), 1)
    few = causal.part(runs.codes(choice2.basis), choice2.basis, choice2.order[:k])
    all_of_1 = runs.restore(causal.groups(runs, bases)["h1"])
    effects = (runs.restore(few) - runs.m_corrupt, all_of_1 - runs.m_corrupt)
    of_2, of_1 = (effect.cpu().numpy().astype(float) for effect in effects)
    return {"level1_latents": differ, "level2_latents": k, "share": interval(bootstrap.ratio(of_2, of_1))}


def agreement(basis: Basis, runs: Runs, n: int) -> dict[str, Any]:
    """Whether attribution patching ranks its `n` largest nodes as exact patching does: Spearman's correlation."""
    codes = runs.codes(basis)
    attributed = causal.attribution(codes, basis, runs.gradient([0.0])).mean(0)
    nodes = attributed.abs().argsort(descending=True, stable=True)[:n]
    effects = causal.exact(runs, codes, basis, nodes).mean(1)
    found: Any = spearmanr(effects.cpu().numpy(), attributed[nodes].cpu().numpy())
    return {"nodes": len(nodes), "spearman": float(found.statistic) if np.isfinite(found.statistic) else None}


def latents(choice: Choice, runs: Runs, n: int, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """The first `n` nodes, one by one: what each suffices for and is needed for, as a share of the total effect."""
    total = (runs.m_clean - runs.m_corrupt).cpu().numpy().astype(float)
    codes, rows = runs.codes(choice.basis), []
    for node in choice.order[:n]:
        own = causal.part(codes, choice.basis, node[None])
        sufficient = (runs.restore(own) - runs.m_corrupt).cpu().numpy().astype(float)
        necessary = (runs.m_clean - runs.knock_out(own)).cpu().numpy().astype(float)
        values = {"sufficient": interval(bootstrap.ratio(sufficient, total))}
        rows.append({"latent": int(node), **values, "necessary": interval(bootstrap.ratio(necessary, total))})
    return rows


def path_effects(
    runs: Runs, model: HierarchicalSAE, choice: Choice, n_parents: int, n_children: int, bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """The first parents, and of each the children by way of which it has most effect, as shares of the total effect."""
    total = (runs.m_clean - runs.m_corrupt).cpu().numpy().astype(float)
    codes, rows = runs.codes(choice.basis), []
    for parent in choice.order[:n_parents].tolist():
        children = model.level2.W_dec[parent].topk(min(4 * n_children, model.level1.d_sae)).indices
        by_way = causal.paths(runs, model, codes, parent, children).cpu().numpy().astype(float)
        strongest = np.argsort(-by_way.mean(1), kind="stable")[:n_children]
        whole = runs.restore(causal.part(codes, choice.basis, torch.tensor([parent]))) - runs.m_corrupt
        rows.append(
            {
                "parent": parent,
                "effect": interval(bootstrap.ratio(whole.cpu().numpy().astype(float), total)),
                "children": [
                    {"child": int(children[i]), **interval(bootstrap.ratio(by_way[i], total))} for i in strongest
                ],
            }
        )
    return rows


def against_neurons(areas: dict[str, dict[str, Float[ndarray, " draw"]]]) -> dict[str, dict[str, Any]]:
    """method -> task -> CPR minus that of neurons: value, interval, p and p_holm over the tasks."""
    found: dict[str, dict[str, Any]] = {}
    tasks = list(areas)
    for method in next(iter(areas.values()), {}):
        if method == NEURONS:
            continue
        differences = {task: areas[task][method] - areas[task][NEURONS] for task in tasks}
        p = np.array([two_sided(values) for values in differences.values()])
        for task, own, adjusted in zip(tasks, p.tolist(), holm(p).tolist(), strict=True):
            found.setdefault(method, {})[task] = {**interval(differences[task]), "p": own, "p_holm": adjusted}
    return found


@dataclass(frozen=True)
class Traced:
    """What is measured of a task."""

    metrics: dict[str, Any]
    areas: dict[str, Float[ndarray, " draw"]]
    """CPR of every method, of all pairs and of every draw."""


def trace(
    pair: Pair,
    model: HierarchicalSAE,
    bases: dict[str, Basis],
    x: Float[Tensor, "token d_in"],
    config: CausalConfig,
    seed: int,
) -> Traced:
    """Everything of one task. `bases` hold both levels and neurons by their names; `x` says what latents are like."""
    discovery, test, last = pair.discovery, pair.test, bases[NEURONS].directions.shape[1]
    bootstrap, gradient = Bootstrap(test.task, seed), discovery.gradient(causal.middles(config.steps))
    own = {**bases, DIFFERENCE: difference_of_means(discovery)}
    choices = {name: choose(basis, discovery, gradient) for name, basis in own.items()}
    curves = {name: curve(choice, test, config.ks) for name, choice in choices.items()}
    drawn = [matched(choices[LEVEL1], x, max(config.ks), seed + i) for i in range(config.draws)]
    curves[MATCHED] = _mean([curve(choice, test, config.ks) for choice in drawn])
    methods, areas = {}, {}
    for name, found in curves.items():
        sufficient, necessary = faithfulness(found, test, bootstrap)
        methods[name] = describe(found.ks, sufficient, necessary, last)
        areas[name] = area(found.ks, sufficient, last)
    total = (test.m_clean - test.m_corrupt).cpu().numpy().astype(float)
    restored = causal.restoration_map(test, config.distance).double().mean(2).cpu().numpy()
    levels = (LEVEL1, LEVEL2)
    metrics = {
        "total_effect": interval(bootstrap.weights @ total / bootstrap.weights.sum(1)),
        "shares": shares(test, bases, bootstrap),
        "economy": economy(test, choices[LEVEL2], bases, bootstrap),
        "map": (restored / total.mean()).tolist(),
        "agreement": {name: agreement(bases[name], discovery, config.exact) for name in levels},
        "methods": methods,
        "promoted": {name: choices[name].promoted for name in levels},
        "latents": {name: latents(choices[name], test, config.parents, bootstrap) for name in levels},
        "paths": path_effects(test, model, choices[LEVEL2], config.parents, config.children, bootstrap),
    }
    return Traced(metrics, areas)


def _mean(curves: list[Curve]) -> Curve:
    """Of several draws, pair by pair."""
    kept = [k for k in curves[0].ks if k <= min(curve.ks[-1] for curve in curves)]
    restored, knocked = (
        np.mean([getattr(curve, name)[: len(kept)] for curve in curves], axis=0) for name in ("restored", "knocked")
    )
    return Curve(kept, restored, knocked)
