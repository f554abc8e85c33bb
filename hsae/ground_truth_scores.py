"""What a dictionary finds of features and a hierarchy that are known: all scores of hsae/ground_truth.py.

Whatever is chosen (which latent stands for which feature, which reading of a dictionary is its best) is chosen on other
samples than it is scored on. A matching by direction needs no samples.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae import posthoc, recovery
from hsae.activations import Normalizer
from hsae.clusters import Clusters, Dictionary, Mixture, NonnegativeParts, PrincipalComponents
from hsae.hierarchical import HierarchicalSAE
from hsae.metrics import summarize
from hsae.sae import SAE
from hsae.streams import Stream
from hsae.synthetic import Forest, SyntheticData

META_K = 2  # meta-latents of a latent: its parent's and its own
NO_RIVAL = "meta_sae_untrained"  # a reading that is chance: never a dictionary's best
Scores = dict[str, float]


@dataclass(frozen=True)
class Samples:
    """Normalised samples (`Shuffled`), and the truth behind them."""

    data: SyntheticData
    normalizer: Normalizer

    def __len__(self) -> int:
        return len(self.data)

    def x(self, rows: slice) -> Float[Tensor, "batch d_in"]:
        """Inputs at some rows."""
        return self.normalizer(self.data.x(rows))

    def batches(self, size: int = 4096) -> Iterator[Float[Tensor, "batch d_in"]]:
        """All inputs, in their order."""
        return (self.x(slice(start, start + size)) for start in range(0, len(self), size))


@dataclass(frozen=True)
class Truth:
    """A forest, and samples of it on which something is chosen, or scored."""

    forest: Forest
    samples: Samples

    @property
    def acts(self) -> Float[Tensor, "n feature"]:
        """True magnitudes."""
        return self.samples.data.acts

    @property
    def parent_of(self) -> Int[Tensor, " feature"]:
        """Index of each feature's parent; -1 for roots."""
        return self.forest.parent_of


class Reading(NamedTuple):
    """Edges as they are read off a dictionary, and which of its latents stand for the features."""

    edges: Float[Tensor, "parent_latent child_latent"]
    parents: Int[Tensor, " feature"]
    children: Int[Tensor, " feature"]

    def average_precision(self, truth: Truth) -> float:
        """Of the edges, ranked (`recovery.edge_scores`)."""
        return recovery.edge_scores(*self, truth.parent_of).average_precision


Readings = dict[tuple[str, str], Reading]
"""By way of reading and way of matching: direction or activation."""


def score(model: SAE | Dictionary | HierarchicalSAE, choosing: Truth, scoring: Truth, stream: Stream) -> Scores:
    """`score_hsae` or `score_flat`."""
    scores = score_hsae if isinstance(model, HierarchicalSAE) else score_flat
    return scores(model, choosing, scoring, stream)  # pyright: ignore[reportArgumentType]


def score_flat(model: SAE | Dictionary, choosing: Truth, scoring: Truth, stream: Stream) -> Scores:
    """`dictionary_scores`, and edges that are read off in four ways (hsae/posthoc.py).

    - edge_ap_<way>: average precision by the better of two matchings, by direction and by activation
    - edge_ap, edge_f1, ancestor_precision, ancestor_recall: of the best way and matching
    - edge_ap_by_direction: of the best way, matched by direction
    - edge_ap_meta_sae_untrained: of a meta-SAE at its start, on the same dictionary

    The best is the one of highest average precision on the choosing samples. All scores are those of the others.
    """
    directions, features = directions_of(model), scoring.forest.features
    n_roots = int((scoring.parent_of < 0).sum())
    metas = {
        "meta_sae": posthoc.meta_sae(directions, n_roots, META_K, stream.of("meta-SAE")),
        NO_RIVAL: posthoc.untrained_meta_sae(directions, n_roots, META_K, stream.of("untrained meta-SAE")),
    }
    meta_readings = {way: (edges, recovery.match(parents, features)) for way, (parents, edges) in metas.items()}
    acts, scored_acts = (acts_of(model, truth.samples) for truth in (choosing, scoring))
    matchings = matchings_of(directions, acts, choosing)
    chosen_from = _readings(directions, acts, matchings, meta_readings, n_roots)
    scored = _readings(directions, scored_acts, matchings, meta_readings, n_roots)
    precision = {key: reading.average_precision(choosing) for key, reading in chosen_from.items()}

    def best(keys: Iterable[tuple[str, str]]) -> Reading:
        return scored[max(keys, key=precision.__getitem__)]

    own = [(way, matching) for way, matching in precision if way != NO_RIVAL]
    by_way = {way: best(key for key in precision if key[0] == way) for way, _ in precision}
    by_direction = best(key for key in own if key[1] == "direction")
    return {
        **dictionary_scores(scored_acts, directions, model.reconstruct, scoring),
        **{f"edge_ap_{way}": reading.average_precision(scoring) for way, reading in by_way.items()},
        "edge_ap_by_direction": by_direction.average_precision(scoring),
        **_hierarchy_scores(best(own), scoring, stream.of("tie breaks")),
    }


def score_hsae(model: HierarchicalSAE, choosing: Truth, scoring: Truth, stream: Stream) -> Scores:
    """`dictionary_scores` of level 1, and how far level 2 is the hierarchy.

    - l0_level2; parent_f1, root_f1: F1 of the level-2 latents that stand for the parents, and for all roots
    - edge_ap, edge_f1, ancestor_precision, ancestor_recall: of the edges ranked by P(level-2 latent active | level-1
      latent active), beyond chance, as those of a flat dictionary are
    - edge_ap_decoder: average precision by level-2 decoder weight
    - edge_ap_by_direction: the former, both levels matched by direction
    - absorption_level2: share of the children's firings at which the level-2 latent of the parent is silent

    Level 2's latents are matched with features by activation, and nobody says which features are roots. Level 1's are
    by direction or activation, whichever has the higher average precision on the choosing samples; the matching by
    activation is that of the choosing samples. All scores are of the others.
    """
    parent_of, directions = scoring.parent_of, model.level1.W_dec.detach()
    h1, h2 = _levels(model, choosing.samples)
    parents = recovery.assign(recovery.f1_scores(h2, choosing.acts))
    matchings = matchings_of(directions, h1, choosing)
    readings = [Reading(posthoc.conditional_probability(h2, h1), parents, children) for children in matchings.values()]
    children = max(readings, key=lambda reading: reading.average_precision(choosing)).children
    h1, h2 = _levels(model, scoring.samples)
    coactive, W_dec = posthoc.conditional_probability(h2, h1), model.level2.W_dec.detach()
    parents_by_direction = recovery.match(W_dec @ directions, scoring.forest.features)
    by_direction = Reading(coactive, parents_by_direction, matchings["direction"])
    f1 = _matched(recovery.f1_scores(h2, scoring.acts), parents)
    has_children = torch.isin(torch.arange(len(parent_of)), parent_of)
    return {
        **dictionary_scores(h1, directions, model.reconstruct_from_h1, scoring),
        "l0_level2": (h2 != 0).double().sum(1).mean().item(),
        "parent_f1": f1[has_children].mean().item(),
        "root_f1": f1[parent_of < 0].mean().item(),
        "edge_ap_by_direction": by_direction.average_precision(scoring),
        **_hierarchy_scores(Reading(coactive, parents, children), scoring, stream.of("tie breaks")),
        "edge_ap_decoder": Reading(W_dec, parents, children).average_precision(scoring),
        "absorption_level2": _silent_parents(h2, parents, scoring),
    }


def dictionary_scores(
    acts: Float[Tensor, "n latent"],
    directions: Float[Tensor, "latent d_in"],
    reconstruct: Callable[[Tensor], tuple[Tensor, Tensor]],
    truth: Truth,
) -> Scores:
    """What a dictionary finds of the features (hsae/recovery.py); latents are matched with them by direction.

    l0, dead_fraction, explained_variance; mcc, uniqueness; feature_f1: of each latent against its nearest feature;
    matched_f1: of each feature's matched latent; absorption; edges are not scored here.
    """
    features, latent_of = truth.forest.features, recovery.match(directions, truth.forest.features)
    totals = summarize(reconstruct, truth.samples.batches())
    return {
        **{name: totals[name] for name in ("l0", "dead_fraction", "explained_variance")},
        "mcc": recovery.mcc(directions, features),
        "uniqueness": recovery.uniqueness(directions, features),
        "feature_f1": recovery.activation_f1(acts, truth.acts, directions, features),
        "matched_f1": _matched(recovery.f1_scores(acts, truth.acts), latent_of).mean().item(),
        "absorption": recovery.absorption(acts, truth.acts, latent_of, truth.parent_of),
    }


def directions_of(model: SAE | Dictionary) -> Float[Tensor, "latent d_in"]:
    """What each latent adds to a reconstruction: decoder rows, centres (of data whose mean is 0), components, parts."""
    match model:
        case Clusters():
            return model.centers
        case Mixture():
            return model.means
        case PrincipalComponents():
            return model.components
        case NonnegativeParts():
            positive, negative = model.parts.chunk(2, dim=1)
            return positive - negative
        case _:
            return model.W_dec.detach()


@torch.no_grad()
def acts_of(model: SAE | Dictionary, samples: Samples) -> Float[Tensor, "n latent"]:
    """Activations on some samples."""
    return torch.cat([model.reconstruct(x)[0] for x in samples.batches()])


def matchings_of(
    directions: Float[Tensor, "latent d_in"], acts: Float[Tensor, "n latent"], truth: Truth
) -> dict[str, Int[Tensor, " feature"]]:
    """Latent of each feature by direction, and by the F1 of their activations on the samples of `truth`."""
    return {
        "direction": recovery.match(directions, truth.forest.features),
        "activation": recovery.assign(recovery.f1_scores(acts, truth.acts)),
    }


def _readings(
    directions: Float[Tensor, "latent d_in"],
    acts: Float[Tensor, "n latent"],
    matchings: Mapping[str, Int[Tensor, " feature"]],
    metas: Mapping[str, tuple[Tensor, Tensor]],
    n_roots: int,
) -> Readings:
    """All ways to read a flat dictionary's edges; `metas` are the edges and parents of meta-SAEs."""
    n_groups = min(n_roots, int((acts != 0).any(0).sum()))
    ways = {
        "conditional_probability": posthoc.conditional_probability(acts, acts),
        "decoder_cosine": posthoc.decoder_cosine(directions, acts),
        "agglomerative": posthoc.agglomerative(directions, acts, n_groups),
    }
    own = {(way, name): Reading(edges, m, m) for way, edges in ways.items() for name, m in matchings.items()}
    meta = {
        (way, name): Reading(edges, parents, m)
        for way, (edges, parents) in metas.items()
        for name, m in matchings.items()
    }
    return own | meta


@torch.no_grad()
def _levels(model: HierarchicalSAE, samples: Samples) -> tuple[Float[Tensor, "n d_sae1"], Float[Tensor, "n d_sae2"]]:
    """Activations of both levels."""
    h1 = acts_of(model.level1, samples)
    return h1, torch.cat([model.level2.encode(rows) for rows in h1.split(4096)])


def _hierarchy_scores(reading: Reading, truth: Truth, stream: Stream) -> Scores:
    """Scores of candidate edges (hsae/recovery.py)."""
    of_edges = recovery.edge_scores(*reading, truth.parent_of)
    precision, recall = recovery.ancestor_scores(*reading, truth.parent_of, stream)
    return {
        "edge_ap": of_edges.average_precision,
        "edge_f1": of_edges.f1,
        "ancestor_precision": precision,
        "ancestor_recall": recall,
    }


def _matched(f1: Float[Tensor, "latent feature"], latent_of: Int[Tensor, " feature"]) -> Float[Tensor, " feature"]:
    """F1 of each feature's latent; 0 for a feature without one."""
    return f1[latent_of, torch.arange(len(latent_of))].where(latent_of >= 0, 0.0)


def _silent_parents(h2: Float[Tensor, "n latent"], parents: Int[Tensor, " feature"], truth: Truth) -> float:
    """Share of the children's firings at which the level-2 latent of the parent is silent."""
    children = (truth.parent_of >= 0).nonzero()[:, 0]
    fires = truth.acts[:, children] != 0
    latents = parents[truth.parent_of[children]]
    silent = (h2[:, latents] == 0) | (latents < 0)
    return (fires & silent).sum().item() / fires.sum().item()
