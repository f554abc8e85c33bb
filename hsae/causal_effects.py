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
from hsae.causal_nodes import (
    DIFFERENCE,
    LEVEL1,
    LEVEL2,
    MATCHED,
    NEURONS,
    UNTRAINED,
    Choice,
    choose,
    difference_of_means,
    liveliness,
    matched,
    promoted_by_chance,
)
from hsae.causal_tasks import Task
from hsae.config import check, check_positive
from hsae.hierarchical import HierarchicalSAE
from hsae.statistics import cluster_weights, holm
from hsae.streams import Stream

DRAWS = 20  # times `N_CLUSTER_RESAMPLES`: the smallest p is then below .05 / 448, so that Holm can let it pass


@dataclass
class CausalConfig:
    """Section `causal_tracing`.

    prompt_chars: length of prompts. pairs: of each task in discovery and test, at most; min_pairs: with fewer, a task
    is reported but not traced. ks: numbers of nodes of the curves. steps: of integrated gradients. exact: nodes
    whose effect is also measured one by one. draws: of matched random latents. nulls: random bases, of which each is
    asked for the direction to steer with. distance: positions of the map, back
    from the last. parents, children: of the path diagrams.
    """

    prompt_chars: int
    pairs: int
    min_pairs: int
    ks: list[int]
    steps: int
    exact: int
    draws: int
    nulls: int
    distance: int
    parents: int
    children: int

    def __post_init__(self) -> None:
        check_positive(self, [name for name in vars(self) if name != "ks"])
        check("ks", self.ks, "ascending, from 1", self.ks[:1] == [1] and self.ks == sorted(set(self.ks)))
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
    kept = [k for k in ks if k <= len(choice.basis)]
    return Curve(kept, *_measure(choice.basis, runs, [choice.order[:k] for k in kept]))


def _measure(basis: Basis, runs: Runs, sets: list[Tensor]) -> tuple[ndarray, ndarray]:
    codes = runs.codes(basis)
    parts = [causal.part(codes, basis, nodes) for nodes in sets]
    restored = np.stack([_array(runs.restore(part)) for part in parts])
    return restored, np.stack([_array(runs.knock_out(part)) for part in parts])


class Bootstrap:
    """Ratios of means over the pairs of a task, and their intervals as pieces of the corpus are drawn anew.

    All methods see the same draws, so that their differences are paired.
    """

    def __init__(self, task: Task, stream: Stream):
        clusters = task.clusters.numpy()
        sums = np.zeros((clusters.max() + 1, len(clusters)))
        sums[clusters, np.arange(len(clusters))] = 1
        drawn = [cluster_weights(len(sums), stream.of(batch)) @ sums for batch in range(DRAWS)]
        self.weights = np.vstack([np.ones(len(clusters)), *drawn])
        """Row 0: every pair once."""

    def ratio(self, effects: Float[ndarray, "*more pair"], total: Float[ndarray, " pair"]) -> ndarray:
        """Mean effect / mean total effect, of all pairs and of every draw: shape (draw, *more)."""
        shares = np.moveaxis(np.asarray(effects) @ self.weights.T, -1, 0)
        whole = self.weights @ total
        return shares / whole.reshape(-1, *[1] * (shares.ndim - 1))

    def share(self, effect: Float[Tensor, " pair"], runs: Runs) -> Float[ndarray, " draw"]:
        """Mean of an effect on log odds / mean effect of the replaced character."""
        return self.ratio(_array(effect), _array(runs.m_clean - runs.m_corrupt))

    def shares(self, part: Float[Tensor, "pair pos d_in"], runs: Runs) -> tuple[ndarray, ndarray]:
        """What a part of the difference suffices for, and what it is needed for."""
        sufficient, necessary = runs.restore(part) - runs.m_corrupt, runs.m_clean - runs.knock_out(part)
        return self.share(sufficient, runs), self.share(necessary, runs)


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
    clean, corrupt = _array(runs.m_clean), _array(runs.m_corrupt)
    total = clean - corrupt
    return bootstrap.ratio(found.restored - corrupt, total), bootstrap.ratio(clean - found.knocked, total)


def areas(ks: list[int], sufficient: ndarray, last: int) -> dict[str, Float[ndarray, " draw"]]:
    """cpr, the area under faithfulness, and cmd, that of its distance from 1 (Mueller et al. 2025, MIB)."""
    return {"cpr": area(ks, sufficient, last), "cmd": 1 - area(ks, 1 - np.abs(1 - sufficient), last)}


def matched_curve(
    choice: Choice, runs: Runs, x: Float[Tensor, "token d_in"], ks: list[int], draws: int, stream: Stream
) -> Curve:
    """Random latents that are like the first k, for every k anew, as those are left out; means over draws, per pair.

    For as many nodes as leave as many others.
    """
    kept, lively = [k for k in ks if 2 * k <= len(choice.basis)], liveliness(choice.basis, x)
    sets = [matched(choice.order, lively, k, stream.of(k, draw)) for k in kept for draw in range(draws)]
    restored, knocked = (odds.reshape(len(kept), draws, -1).mean(1) for odds in _measure(choice.basis, runs, sets))
    return Curve(kept, restored, knocked)


def shares(
    runs: Runs, parts: dict[str, Float[Tensor, "pair pos d_in"]], bootstrap: Bootstrap
) -> dict[str, dict[str, Any]]:
    """How much of the effect is in each of `causal.groups`: sufficient, necessary, and their mean."""
    found = {}
    for name, part in parts.items():
        sufficient, necessary = bootstrap.shares(part, runs)
        found[name] = {
            "sufficient": interval(sufficient),
            "necessary": interval(necessary),
            "share": interval((sufficient + necessary) / 2),
        }
    return found


def economy(
    pair: Pair, choice2: Choice, level1: Basis, h1: Float[Tensor, "pair pos d_in"], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Level 2's effect as a share of level 1's, with a quarter as many latents as differ at level 1 in a pair.

    So many differ on discovery; effects are those on test. `h1` is all that differs at level 1 there.
    """
    differ = (pair.discovery.codes(level1) != 0).any(1).sum(1).double().mean().item()
    k, runs = max(int(differ / 4), 1), pair.test
    few = causal.part(runs.codes(choice2.basis), choice2.basis, choice2.order[:k])
    of_2, of_1 = (_array(runs.restore(part) - runs.m_corrupt) for part in (few, h1))
    return {"level1_latents": differ, "level2_latents": k, "share": interval(bootstrap.ratio(of_2, of_1))}


def agreement(basis: Basis, pair: Pair, steps: int, n: int) -> dict[str, Any]:
    """Whether attribution ranks nodes as patching one by one does: Spearman's correlation over `n` nodes, on test.

    Of attribution patching, which predicts what one node restores, and of gradients that are integrated in `steps`. The
    nodes are the largest that attribution patching finds on discovery: on test neither is favoured.
    """
    first = causal.attribution(pair.discovery.codes(basis), basis, pair.discovery.gradient([0.0])).mean(0)
    nodes = first.abs().argsort(descending=True, stable=True)[:n]
    runs, codes = pair.test, pair.test.codes(basis)
    shares = {"attribution_patching": [0.0], "integrated_gradients": causal.middles(steps)}
    scores = {name: causal.attribution(codes, basis, runs.gradient(at)).mean(0) for name, at in shares.items()}
    effects = causal.exact(runs, codes, basis, nodes).mean(1).cpu().numpy()
    ranks: dict[str, Any] = {name: spearmanr(effects, own[nodes].cpu().numpy()) for name, own in scores.items()}
    return {name: float(r.statistic) if np.isfinite(r.statistic) else None for name, r in ranks.items()}


@torch.no_grad()
def character_before(runs: Runs, bootstrap: Bootstrap) -> dict[str, Any] | None:
    """Effect of replacing the character before instead, by the same one, as a share of the total effect: a control.

    In a task whose answer hangs on the replaced character alone it is 0. Pairs in which no character stands before, or
    already that one, are left out; None if no pair is left.
    """
    task, rows = runs.task, torch.arange(len(runs))
    before, replacement = (task.changed - 1).clamp(min=0), task.corrupt[rows, task.changed]
    kept = ((task.changed > 0) & (task.clean[rows, before] != replacement)).numpy()
    if not kept.any():
        return None
    other = task.clean.clone()
    other[rows, before] = replacement
    effect = _array(runs.m_clean - task.metric(runs.tracer.answer(other)))
    with np.errstate(invalid="ignore"):  # 0 / 0, of draws that hold none of these pairs
        values = bootstrap.ratio(np.where(kept, effect, 0), np.where(kept, _array(runs.m_clean - runs.m_corrupt), 0))
    return interval(values[np.isfinite(values)])


def latents(choice: Choice, runs: Runs, n: int, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """The first `n` nodes, one by one: what each suffices for and is needed for, as a share of the total effect."""
    codes, rows = runs.codes(choice.basis), []
    for node in choice.order[:n]:
        sufficient, necessary = bootstrap.shares(causal.part(codes, choice.basis, node[None]), runs)
        rows.append({"latent": int(node), "sufficient": interval(sufficient), "necessary": interval(necessary)})
    return rows


def path_effects(
    pair: Pair, model: HierarchicalSAE, choice: Choice, n_parents: int, n_children: int, bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """The first parents, and of each the children by way of which it has most effect, as shares of the total effect.

    Children are chosen on discovery, among those of largest weight.
    """
    test, rows = pair.test, []
    of_discovery, codes = (runs.codes(choice.basis) for runs in (pair.discovery, test))
    for parent in choice.order[:n_parents].tolist():
        heaviest = model.level2.W_dec[parent].topk(min(4 * n_children, model.level1.d_sae)).indices
        by_way = causal.paths(pair.discovery, model, of_discovery, parent, heaviest).mean(1)
        children = heaviest[by_way.argsort(descending=True, stable=True)[:n_children]]
        effects = causal.paths(test, model, codes, parent, children)
        whole = test.restore(causal.part(codes, choice.basis, choice.order.new_tensor([parent]))) - test.m_corrupt
        found = zip(children.tolist(), effects, strict=True)
        rows.append(
            {
                "parent": parent,
                "effect": interval(bootstrap.share(whole, test)),
                "children": [{"child": child, **interval(bootstrap.share(effect, test))} for child, effect in found],
            }
        )
    return rows


def compare(found: dict[str, dict[str, dict[str, Float[ndarray, " draw"]]]]) -> dict[str, Any]:
    """measure -> reference -> method -> task -> its difference from the reference: value, interval, p, p_holm.

    `found`: task -> method -> measure. References are neurons and both levels, and of each level what it was before
    training, with which it alone is compared. p_holm is adjusted over all that is returned, as all of it is read
    together: measures, references, methods and tasks.
    """
    result: dict[str, Any] = {}
    methods = [method for method in next(iter(found.values()), {}) if method not in UNTRAINED.values()]
    pairs = [(reference, method) for reference in (NEURONS, LEVEL1, LEVEL2) for method in methods]
    pairs += [(untrained, level) for level, untrained in UNTRAINED.items()]
    compared = [
        (measure, reference, method, task)
        for measure in ("cpr", "cmd")
        for reference, method in pairs
        for task in found
        if method != reference
    ]
    rows = []
    for measure, reference, method, task in compared:
        difference = found[task][method][measure] - found[task][reference][measure]
        rows.append({**interval(difference), "p": two_sided(difference)})
    adjusted = holm(np.array([row["p"] for row in rows])).tolist() if rows else []
    for (measure, reference, method, task), row, p_holm in zip(compared, rows, adjusted, strict=True):
        of_method = result.setdefault(measure, {}).setdefault(reference, {}).setdefault(method, {})
        of_method[task] = {**row, "p_holm": p_holm}
    return result


@dataclass(frozen=True)
class Traced:
    """What is measured of a task."""

    metrics: dict[str, Any]
    areas: dict[str, dict[str, Float[ndarray, " draw"]]]
    """method -> measure (see `areas`), of all pairs and of every draw."""
    chance: dict[str, Float[Tensor, "null d_in"]]
    """level -> `promoted_by_chance` of as many random directions as the level has latents."""


def trace(
    pair: Pair,
    model: HierarchicalSAE,
    bases: dict[str, Basis],
    x: Float[Tensor, "token d_in"],
    config: CausalConfig,
    stream: Stream,
) -> Traced:
    """Everything of one task. `bases` hold both levels, before training too, and neurons by their names.

    `x` says what latents are like. `stream` is the task's: it draws pieces of the corpus anew, random latents and
    random directions.

    A map is drawn only where some replaced character is not the last one: otherwise it can be nothing but 1 there.
    """
    discovery, test, last = pair.discovery, pair.test, config.ks[-1]
    bootstrap, gradient = (
        Bootstrap(test.task, stream.of("pieces of the corpus")),
        discovery.gradient(causal.middles(config.steps)),
    )
    own = {**bases, DIFFERENCE: difference_of_means(discovery)}
    choices = {name: choose(basis, discovery, gradient) for name, basis in own.items()}
    curves = {name: curve(choice, test, config.ks) for name, choice in choices.items()}
    curves[MATCHED] = matched_curve(choices[LEVEL1], test, x, config.ks, config.draws, stream.of("matched latents"))
    methods, found = {}, {}
    for name, of_method in curves.items():
        sufficient, necessary = faithfulness(of_method, test, bootstrap)
        found[name] = areas(of_method.ks, sufficient, last)
        methods[name] = {
            **{measure: interval(values) for measure, values in found[name].items()},
            "curve": {
                str(k): {"sufficient": interval(sufficient[:, i]), "necessary": interval(necessary[:, i])}
                for i, k in enumerate(of_method.ks)
            },
        }
    total, parts, restored = _array(test.m_clean - test.m_corrupt), causal.groups(test, bases), None
    if (test.task.changed < test.task.clean.shape[1] - 1).any():
        restored = causal.restoration_map(test, config.distance).double().mean(2).cpu().numpy() / total.mean()
    levels = (LEVEL1, LEVEL2)
    metrics = {
        "total_effect": interval(bootstrap.weights @ total / bootstrap.weights.sum(1)),
        "character_before": character_before(test, bootstrap),
        "shares": shares(test, parts, bootstrap),
        "economy": economy(pair, choices[LEVEL2], bases[LEVEL1], parts["h1"], bootstrap),
        "map": None if restored is None else restored.tolist(),
        "agreement": {name: agreement(bases[name], pair, config.steps, config.exact) for name in levels},
        "methods": methods,
        "promoted": {name: choices[name].promoted for name in (*levels, *UNTRAINED.values())},
        "latents": {name: latents(choices[name], test, config.parents, bootstrap) for name in levels},
        "paths": path_effects(pair, model, choices[LEVEL2], config.parents, config.children, bootstrap),
    }
    chance = {
        name: promoted_by_chance(len(bases[name]), config.nulls, discovery, gradient, stream.of("random bases", name))
        for name in levels
    }
    return Traced(metrics, found, chance)


def _array(values: Tensor) -> ndarray:
    return values.cpu().numpy().astype(float)
