"""Every method trained on data whose features and hierarchy are known, by the pipeline's own code, and scored.

What each finds of the features, and how well its hierarchy is the true one: the HSAE has one, of a flat dictionary it
is read off afterwards (hsae/ground_truth_scores.py).

All methods are told the truth's sparsity, and none is told another's: the mean number of features that fire in a
training sample, for level 1 and all flat autoencoders, and that of roots, for level 2. Clusterings and matrix
factorisations get the same two numbers. Level 1 and the flat kinds that have a penalty are steered to the first, which
they miss by a little (the score `l0` says by how much); TopK kinds have it rounded. The price of an active level-2
latent is fixed (`coefficients.beta2`): its L0 follows from it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from hsae import clusters, curriculum, flat, recovery, synthetic, untrained, variants
from hsae.activations import Normalizer
from hsae.clustering import ClusteringConfig, fit_clusters
from hsae.clusters import DICTIONARIES, Dictionary
from hsae.config import check, check_positive
from hsae.dictionary import Activation, LatentConfig, Start
from hsae.ground_truth_scores import Samples, Scores, Truth, score
from hsae.hierarchical import HierarchicalSAE
from hsae.losses import Coefficients
from hsae.sae import SAE
from hsae.samples import Record, record
from hsae.sharpening import sharpen
from hsae.streams import Stream
from hsae.synthetic import Forest, SyntheticConfig
from hsae.training import Phase, fit

ALONE = "level1_alone"
UNTRAINED = "untrained_"
RANDOM = "random_directions"
CHOOSING, SCORING = "choosing samples", "scoring samples"
Map = Callable[[Callable[[str], tuple[str, Scores]], Iterable[str]], Iterable[tuple[str, Scores]]]


@dataclass
class RivalConfig:
    """How a flat autoencoder is trained, where that is not as the HSAE's level 1: each kind has its own best."""

    batch_size: int
    lr: float

    def __post_init__(self) -> None:
        check_positive(self, ["batch_size", "lr"])


@dataclass
class GroundTruthConfig:
    """Section `synthetic`: the data, the widths of both levels, and all that params.yaml says of an HSAE's training.

    Phase 1 is steered to `start_l0` times the true L0, and sharpening, with the decoder frozen, to the true L0 itself:
    while features are being found, a sparse code makes children absorb their parents (one latent is cheaper than two).
    The TopK kinds have the true one throughout. As many samples choose (`ground_truth_scores`) as score.

    The `rivals` are as wide as level 1, and flat autoencoders among them train for as many epochs as all phases of the
    HSAE together, by the batches and rates of `rival_settings`; each kind's are the best of as many (hsae/search.py).
    So long trains `level1_alone`, too: the HSAE's level 1, by the settings of phase 1. Clusterings
    and matrix factorisations have widths and L0s as in the pipeline (hsae/clustering.py, hsae/clusters.py).
    """

    data: SyntheticConfig
    train_samples: int
    test_samples: int
    d_sae1: int
    d_sae2: int
    coefficients: Coefficients
    activation: Activation
    dead_tokens: int
    init_level2: Start
    init_tokens: int
    start_l0: float
    phase1: Phase
    sharpening: Phase
    phase2: Phase
    phase3: Phase
    clustering: ClusteringConfig
    rivals: list[str]
    rival_settings: dict[str, RivalConfig]

    def __post_init__(self) -> None:
        check_positive(self, ["train_samples", "test_samples", "d_sae1", "d_sae2", "init_tokens", "start_l0"])
        check("dead_tokens", self.dead_tokens, "0 or above", self.dead_tokens >= 0)
        known = [*variants.VARIANTS, *DICTIONARIES]
        for name in self.rivals:
            check("rivals", name, f"one of {', '.join(known)}", name in known)
        for name in self.rival_settings:
            check("rival_settings", name, f"for {', '.join(variants.VARIANTS)}", name in variants.VARIANTS)
        for name in self.flat_rivals:
            there = list(self.rival_settings)
            check("rival_settings", there, f"such that `{name}` has some", name in self.rival_settings)

    @property
    def epochs(self) -> float:
        """Passes over the data in all phases."""
        return self.phase1.epochs + self.sharpening.epochs + self.phase2.epochs + self.phase3.epochs

    @property
    def flat_rivals(self) -> list[str]:
        """The flat autoencoders among the rivals."""
        return [name for name in self.rivals if name in variants.VARIANTS]

    @property
    def methods(self) -> list[str]:
        """All that is scored: the HSAE, its rivals, and what they and random directions score untrained."""
        of_chance = [f"{UNTRAINED}{name}" for name in dict.fromkeys(["hsae", self.activation.name, *self.flat_rivals])]
        return ["hsae", ALONE, *self.rivals, *of_chance, RANDOM]

    def latents(self, l0s: tuple[float, float]) -> LatentConfig:
        """Both levels' latents, told these L0s."""
        k1, k2 = (max(round(l0), 1) for l0 in l0s)
        return LatentConfig(self.activation, k1, k2, self.dead_tokens, self.init_level2, self.init_tokens)


@dataclass(frozen=True)
class Drawn:
    """A forest and its samples: what all methods train on, what is chosen on, and what is scored on."""

    forest: Forest
    train: Samples
    choosing: Truth
    scoring: Truth

    @property
    def l0s(self) -> tuple[float, float]:
        """Mean numbers of features, and of roots, that fire in a training sample: what all methods are told."""
        fires = self.train.data.acts != 0
        roots = fires[:, self.forest.parent_of < 0]
        return fires.sum().item() / len(fires), roots.sum().item() / len(fires)


def score_all(config: GroundTruthConfig, stream: Stream, each: Map = map) -> dict[str, Any]:
    """Scores of the HSAE, of its level 1 trained alone for as long, of its rivals, and of chance, on one drawn forest.

    `stream` draws the forest, the samples and the models. See hsae/ground_truth_scores.py for the scores. `data` has
    the L0s that all are told and the `prevalence` of edges, which is the average precision of a random ranking;
    `samples` says what was chosen and scored on which. `untrained_<kind>` is the kind at its start, as sparse as the
    truth. Methods depend on nothing but their arguments: `each` may be another `map`, of several processes.
    """
    scores = dict(each(partial(score_method, config, stream), config.methods))
    drawn = draw(config, stream)
    l0, l0_roots = drawn.l0s
    data = {
        "l0": l0,
        "l0_roots": l0_roots,
        "features": float(config.data.features),
        "prevalence": recovery.prevalence(drawn.forest.parent_of),
    }
    return {"data": data, **scores, "samples": records(config, stream)}


def score_method(config: GroundTruthConfig, stream: Stream, method: str) -> tuple[str, Scores]:
    """`method` and its scores."""
    drawn = draw(config, stream)
    if method == RANDOM:
        directions = torch.randn(config.d_sae1, config.data.d_in, generator=stream.of("random directions").torch())
        return method, {"mcc": recovery.mcc(directions, drawn.forest.features)}
    model = model_of(method, config, drawn, stream)
    return method, score(model, drawn.choosing, drawn.scoring, stream.of("scores", method))


def draw(config: GroundTruthConfig, stream: Stream) -> Drawn:
    """Draw a forest and its samples, all normalised as the training samples are."""
    forest = synthetic.ground_truth(config.data, stream.of("forest").torch())
    train = synthetic.sample(forest, config.train_samples, stream.of("training samples").torch())
    normalizer = Normalizer.fit(train.inputs)
    choosing, scoring = (
        Truth(forest, Samples(synthetic.sample(forest, config.test_samples, stream.of(name).torch()), normalizer))
        for name in (CHOOSING, SCORING)
    )
    return Drawn(forest, Samples(train, normalizer), choosing, scoring)


def records(config: GroundTruthConfig, stream: Stream) -> list[Record]:
    """What is chosen and scored on which samples."""
    rows = np.arange(config.test_samples)
    chosen = ("latents of features, by activation", "latents of level 2", "matching of children", "best reading")
    return [
        *(record(what, "chosen", CHOOSING, rows, stream.of(CHOOSING)) for what in chosen),
        *(record(what, "scored", SCORING, rows, stream.of(SCORING)) for what in chosen),
    ]


def model_of(
    method: str, config: GroundTruthConfig, drawn: Drawn, stream: Stream
) -> SAE | HierarchicalSAE | Dictionary:
    """What `method` makes of the training samples. Methods are compared pair by pair: weights and batches are paired.

    Flat autoencoders and level 1 of one kind start from the same weights, and see the same batches in the same order as
    far as their batches are of one size.
    """
    if method.startswith(UNTRAINED):
        return untrained_model(method.removeprefix(UNTRAINED), config, drawn, stream.of("untrained"))
    if method == "hsae":
        return train_hsae(config, drawn, stream)
    if method == ALONE:
        longer = replace(config.phase1, epochs=config.epochs - config.sharpening.epochs)
        return train_level1(config, drawn, longer, stream)
    if method in DICTIONARIES:
        return fit_dictionary(method, config, drawn, stream.of("clustering", method))
    return train_flat(method, config, drawn, stream)


def train_level1(config: GroundTruthConfig, drawn: Drawn, phase: Phase, stream: Stream) -> SAE:
    """Phase 1, and sharpening."""
    model, l0 = drawn_model(config.activation, config, drawn.l0s[0], stream), drawn.l0s[0]
    steered = flat.SteeredGradients(model, config.start_l0 * l0)
    fit("phase1", model, drawn.train, steered, phase, stream.of("phase1"), config.dead_tokens)
    if config.sharpening.n_steps(drawn.train):
        steered = partial(flat.SteeredGradients, model, l0)
        sharpen(model, drawn.train, steered, config.sharpening, stream.of("sharpening"))
    return model


def train_hsae(config: GroundTruthConfig, drawn: Drawn, stream: Stream) -> HierarchicalSAE:
    """All three phases."""
    c, latents, train = config.coefficients, config.latents(drawn.l0s), drawn.train
    level1 = train_level1(config, drawn, config.phase1, stream)
    model, _ = curriculum.phase2(level1, config.d_sae2, train, c, config.phase2, latents, stream.of("phase2"))
    curriculum.phase3(model, train, c, config.phase3, latents.dead_tokens_later, stream.of("phase3"))
    return model


def train_flat(variant: str, config: GroundTruthConfig, drawn: Drawn, stream: Stream) -> SAE:
    """A flat autoencoder at the true L0."""
    model = drawn_model(variant, config, drawn.l0s[0], stream)
    phase = _as_told(replace(config.phase1, epochs=config.epochs), config.rival_settings[variant])
    steered = flat.SteeredGradients(model, drawn.l0s[0])
    fit(variant, model, drawn.train, steered, phase, stream.of("phase1"), config.dead_tokens)
    return model


def fit_dictionary(method: str, config: GroundTruthConfig, drawn: Drawn, stream: Stream) -> Dictionary:
    """A clustering or matrix factorisation, as large as an HSAE level, with as many active components at most."""
    x, latents = drawn.train.x(slice(0, config.clustering.fit_tokens)), config.latents(drawn.l0s)
    widths = config.d_sae1, config.d_sae2
    tensors = fit_clusters(method, x.cpu().numpy(), widths, config.clustering, stream)
    return clusters.load(method, tensors, (latents.k1, latents.k2), x.device)


def untrained_model(kind: str, config: GroundTruthConfig, drawn: Drawn, stream: Stream) -> SAE | HierarchicalSAE:
    """The HSAE, or a flat autoencoder, at its start (hsae/untrained.py), with weights of its own."""
    widths, latents = (config.d_sae1, config.d_sae2), config.latents(drawn.l0s)
    if kind == "hsae":
        beta2 = config.coefficients.beta2
        return untrained.hierarchical(widths, drawn.l0s, drawn.train, beta2, latents, stream.of("hsae"))
    x = drawn.train.x(slice(0, config.init_tokens))
    return untrained.flat(kind, config.d_sae1, drawn.l0s[0], x, stream.of("weights", kind))


def drawn_model(kind: str, config: GroundTruthConfig, l0: float, stream: Stream) -> SAE:
    """Level 1 or a flat autoencoder before its training, told that L0."""
    weights, beta1 = stream.of("weights of level 1"), config.coefficients.beta1
    return flat.drawn(kind, config.data.d_in, config.d_sae1, l0, beta1, weights)


def _as_told(phase: Phase, settings: RivalConfig) -> Phase:
    return replace(phase, batch_size=settings.batch_size, lr=settings.lr)
