"""Every method trained on data whose features and hierarchy are known, by the pipeline's own code, and scored.

What each finds of the features, and how well its hierarchy is the true one: the HSAE has one, of a flat dictionary it
is read off afterwards (hsae/posthoc.py).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hsae import clusters, curriculum, flat, posthoc, recovery, sharpening, synthetic, variants
from hsae.activations import Normalizer
from hsae.clustering import ClusteringConfig, fit_clusters
from hsae.clusters import DICTIONARIES, Clusters, Dictionary, Mixture, NonnegativeParts, PrincipalComponents
from hsae.config import check, check_positive
from hsae.dictionary import LatentConfig
from hsae.hierarchical import HierarchicalSAE
from hsae.losses import Coefficients
from hsae.metrics import summarize
from hsae.sae import SAE
from hsae.sharpening import Sharpening
from hsae.streams import Stream
from hsae.synthetic import Forest, SyntheticConfig, SyntheticData
from hsae.training import Phase, fit

META_K = 2  # meta-latents of a latent: its parent's and its own
Scores = dict[str, float]
Map = Callable[[Callable[[str], tuple[str, Scores]], Iterable[str]], Iterable[tuple[str, Scores]]]


@dataclass
class GroundTruthConfig:
    """Section `synthetic`: the data, the widths of both levels, and all that params.yaml says of an HSAE's training.

    Of the `rivals`, flat autoencoders have level 1's width, L0, batches and learning rate, and train for as many epochs
    as all phases of the HSAE together; clusterings and matrix factorisations have widths and L0s as in the pipeline
    (hsae/clustering.py, hsae/clusters.py).
    """

    data: SyntheticConfig
    train_samples: int
    test_samples: int
    d_sae1: int
    d_sae2: int
    coefficients: Coefficients
    latents: LatentConfig
    phase1: Phase
    sharpening: Sharpening
    phase2: Phase
    phase3: Phase
    clustering: ClusteringConfig
    rivals: list[str]

    def __post_init__(self) -> None:
        check_positive(self, ["train_samples", "test_samples", "d_sae1", "d_sae2"])
        known = [*variants.VARIANTS, *DICTIONARIES]
        for name in self.rivals:
            check("rivals", name, f"one of {', '.join(known)}", name in known)

    @property
    def epochs(self) -> float:
        """Passes over the data in all phases."""
        return self.phase1.epochs + self.sharpening.epochs + self.phase2.epochs + self.phase3.epochs


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
    """What methods are scored against: the forest, and test samples of it."""

    forest: Forest
    test: Samples
    parent_of: Int[Tensor, " feature"]

    @property
    def acts(self) -> Float[Tensor, "n feature"]:
        """True magnitudes."""
        return self.test.data.acts


@dataclass(frozen=True)
class Found:
    """A dictionary's activations on the test samples and directions, and how they match the features."""

    acts: Float[Tensor, "n latent"]
    directions: Float[Tensor, "latent d_in"]
    f1: Float[Tensor, "latent feature"]
    latent_of: Int[Tensor, " feature"]
    """By direction."""

    @classmethod
    def match(cls, model: SAE | Dictionary, truth: Truth) -> "Found":
        """What `model` has on the test samples."""
        acts, directions = _acts(model, truth.test), directions_of(model)
        f1 = recovery.f1_scores(acts, truth.acts)
        return cls(acts, directions, f1, recovery.match(directions, truth.forest.features))


def score_all(config: GroundTruthConfig, seed: int, each: Map = map) -> dict[str, Scores]:
    """Scores of the HSAE, of its level 1 trained alone for as long, and of its rivals, on one drawn forest.

    `seed` draws the forest, the samples and the models. See `score_flat` and `score_hsae` for the scores; `data` has
    the true L0. Methods depend on nothing but their arguments: `each` may be another `map`, of several processes.
    """
    own = dict(each(partial(score_method, config, seed, None), ["hsae", "level1_alone"]))
    l0s = own["hsae"]["l0"], own["hsae"]["l0_level2"]
    rivals = dict(each(partial(score_method, config, seed, l0s), config.rivals))
    _, truth = draw(config, seed)
    data = {"l0": truth.test.data.l0(), "features": float(config.data.features)}
    return {"data": data, **own, **rivals}


def score_method(
    config: GroundTruthConfig, seed: int, l0s: tuple[float, float] | None, method: str
) -> tuple[str, Scores]:
    """`method` and its scores; `l0s`, those of the HSAE's levels, are what a rival is held to."""
    train, truth = draw(config, seed)
    if method == "hsae":
        return method, score_hsae(train_hsae(config, train, seed), truth)
    if method == "level1_alone":
        longer = config.phase2.epochs + config.phase3.epochs
        return method, score_flat(train_level1(config, train, seed, longer), truth, seed)
    assert l0s is not None
    if method in DICTIONARIES:
        return method, score_flat(fit_dictionary(method, config, train, l0s, seed), truth, seed)
    return method, score_flat(train_flat(method, config, train, l0s[0], seed), truth, seed)


def draw(config: GroundTruthConfig, seed: int) -> tuple[Samples, Truth]:
    """A forest and its samples: those that all methods train on, and what they are scored against."""
    stream = Stream(seed, "ground truth")
    forest = synthetic.ground_truth(config.data, stream.of("forest").torch())
    train = synthetic.sample(forest, config.train_samples, stream.of("training samples").torch())
    normalizer = Normalizer.fit(train.inputs)
    test = synthetic.sample(forest, config.test_samples, stream.of("test samples").torch())
    return Samples(train, normalizer), Truth(forest, Samples(test, normalizer), forest.parent_of)


def train_level1(config: GroundTruthConfig, data: Samples, seed: int, longer: float = 0.0) -> SAE:
    """Phase 1, by so many epochs longer."""
    c, latents, phase = config.coefficients, config.latents, config.phase1
    kind, d_in, weights = latents.activation, config.data.d_in, Stream(seed, "weights of level 1")
    model = variants.drawn(kind, d_in, config.d_sae1, k=latents.k1, beta=c.beta1, stream=weights)
    phase = replace(phase, epochs=phase.epochs + longer)
    sharpening.phase1(model, data, c, phase, config.sharpening, latents.dead_tokens, Stream(seed, "phase1"))
    return model


def train_hsae(config: GroundTruthConfig, data: Samples, seed: int) -> HierarchicalSAE:
    """All three phases."""
    c, latents = config.coefficients, config.latents
    level1 = train_level1(config, data, seed)
    model, _ = curriculum.phase2(level1, config.d_sae2, data, c, config.phase2, latents, Stream(seed, "phase2"))
    curriculum.phase3(model, data, c, config.phase3, latents.dead_tokens_later, Stream(seed, "phase3"))
    return model


def train_flat(variant: str, config: GroundTruthConfig, data: Samples, l0: float, seed: int) -> SAE:
    """A flat autoencoder at that L0."""
    weights = Stream(seed, "weights of level 1")
    model = flat.drawn(variant, config.data.d_in, config.d_sae1, l0, config.coefficients.beta1, weights)
    phase = replace(config.phase1, epochs=config.epochs)
    fit(
        variant,
        model,
        data,
        flat.SteeredGradients(model, l0),
        phase,
        Stream(seed, "phase1"),
        config.latents.dead_tokens,
    )
    return model


def fit_dictionary(
    method: str, config: GroundTruthConfig, data: Samples, l0s: tuple[float, float], seed: int
) -> Dictionary:
    """A clustering or matrix factorisation, as large as an HSAE level, with as many active components at most."""
    x = data.x(slice(0, config.clustering.fit_tokens))
    tensors = fit_clusters(
        method, x.cpu().numpy(), (config.d_sae1, config.d_sae2), config.clustering, Stream(seed, "clustering")
    )
    rounded = max(round(l0s[0]), 1), max(round(l0s[1]), 1)
    return clusters.load(method, tensors, rounded, x.device)


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


def score_flat(model: SAE | Dictionary, truth: Truth, seed: int) -> Scores:
    """`dictionary_scores`, and edges read off in four ways (hsae/posthoc.py).

    edge_ap_<way>: average precision by the better of two matchings, by direction and by activation; edge_ap, edge_f1,
    ancestor_precision, ancestor_recall: of the way of highest average precision. Both favour flat dictionaries.
    """
    latents = Found.match(model, truth)
    n_roots = int((truth.parent_of < 0).sum())
    n_groups = min(n_roots, int((latents.acts != 0).any(0).sum()))
    meta_directions, meta_edges = posthoc.meta_sae(latents.directions, n_roots, META_K, Stream(seed, "meta-SAE"))
    meta_parents = recovery.match(meta_directions, truth.forest.features)
    ways = {
        "conditional_probability": posthoc.conditional_probability(latents.acts),
        "decoder_cosine": posthoc.decoder_cosine(latents.directions, latents.acts),
        "agglomerative": posthoc.agglomerative(latents.directions, latents.acts, n_groups),
        "meta_sae": meta_edges,
    }
    matchings = (latents.latent_of, recovery.assign(latents.f1))
    readings = [
        (way, (edges, meta_parents if way == "meta_sae" else own, own))
        for way, edges in ways.items()
        for own in matchings
    ]
    found = [recovery.edge_scores(*reading, truth.parent_of).average_precision for _, reading in readings]
    best = readings[found.index(max(found))][1]
    by_way = {
        f"edge_ap_{way}": max(ap for ap, (name, _) in zip(found, readings, strict=True) if name == way) for way in ways
    }
    return {**dictionary_scores(latents, model.reconstruct, truth), **by_way, **_hierarchy_scores(*best, truth)}


def score_hsae(model: HierarchicalSAE, truth: Truth) -> Scores:
    """`dictionary_scores` of level 1, and how far level 2 is the hierarchy.

    - l0_level2; parent_f1, root_f1: F1 of the level-2 latents that stand for the parents, and for all roots
    - edge_ap, edge_f1, ancestor_precision, ancestor_recall: of the edges ranked by P(level-2 latent active | level-1
      latent active); edge_ap_decoder: average precision by level-2 decoder weight
    - absorption_level2: share of the children's firings at which the level-2 latent of the parent is silent
    """
    level1, parent_of = Found.match(model.level1, truth), truth.parent_of
    h1, children = level1.acts, level1.latent_of
    h2 = torch.cat([model.level2.encode(rows) for rows in h1.split(4096)]).detach()
    scores = dictionary_scores(level1, model.reconstruct_from_h1, truth)
    parents = recovery.match_roots(h2, truth.acts, parent_of)
    f1 = _matched(recovery.f1_scores(h2, truth.acts), parents)
    has_children = torch.isin(torch.arange(len(parent_of)), parent_of)
    coactive = recovery.coactivation(h2, h1) / (h1 != 0).sum(0).clamp(min=1)
    by_decoder = recovery.edge_scores(model.level2.W_dec.detach(), parents, children, parent_of)
    return {
        **scores,
        "l0_level2": (h2 != 0).double().sum(1).mean().item(),
        "parent_f1": f1[has_children].mean().item(),
        "root_f1": f1[parent_of < 0].mean().item(),
        **_hierarchy_scores(coactive, parents, children, truth),
        "edge_ap_decoder": by_decoder.average_precision,
        "absorption_level2": _silent_parents(h2, parents, truth),
    }


def dictionary_scores(latents: Found, reconstruct: Callable[[Tensor], tuple[Tensor, Tensor]], truth: Truth) -> Scores:
    """What a dictionary finds of the features (hsae/recovery.py).

    l0, dead_fraction, explained_variance; mcc, uniqueness; feature_f1: of each latent against its nearest feature;
    matched_f1: of each feature's matched latent; absorption; edges are not scored here.
    """
    features, acts, directions = truth.forest.features, latents.acts, latents.directions
    totals = summarize(reconstruct, truth.test.batches())
    return {
        **{name: totals[name] for name in ("l0", "dead_fraction", "explained_variance")},
        "mcc": recovery.mcc(directions, features),
        "uniqueness": recovery.uniqueness(directions, features),
        "feature_f1": recovery.activation_f1(acts, truth.acts, directions, features),
        "matched_f1": _matched(latents.f1, latents.latent_of).mean().item(),
        "absorption": recovery.absorption(acts, truth.acts, latents.latent_of, truth.parent_of),
    }


@torch.no_grad()
def _acts(model: SAE | Dictionary, samples: Samples) -> Float[Tensor, "n latent"]:
    return torch.cat([model.reconstruct(x)[0] for x in samples.batches()])


def _hierarchy_scores(
    edges: Float[Tensor, "parent_latent child_latent"],
    parents: Int[Tensor, " feature"],
    children: Int[Tensor, " feature"],
    truth: Truth,
) -> Scores:
    """Scores of candidate edges (hsae/recovery.py)."""
    of_edges = recovery.edge_scores(edges, parents, children, truth.parent_of)
    precision, recall = recovery.ancestor_scores(edges, parents, children, truth.parent_of)
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
