"""Controls: the same HSAE where there is nothing to learn, or where it may not; every headline stands beside them.

What a number is worth shows where it should be lost. Decoders that stay random come near trained ones on many metrics
of interpretability (Korznikov et al. 2026, arXiv 2602.14111), and so do autoencoders of a transformer that was never
trained (Heap et al. 2025, arXiv 2501.17727). All are trained by the code of phases 1 to 3, with its settings, and so is
the HSAE proper, again, on the controls' smaller budget.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from hsae import feature_clustering, graph, hierarchy, shared_information, variants
from hsae.activations import Activations, Normalizer, Store, collect
from hsae.causal_lm import CausalLM
from hsae.checkpoint import NOWHERE, Checkpoints
from hsae.config import check, check_positive
from hsae.curriculum import phase3, stack, train_level2
from hsae.dictionary import DictionaryConfig, LatentConfig
from hsae.evaluation import evaluate
from hsae.feature_clustering import FeatureClusteringConfig
from hsae.hierarchical import HierarchicalSAE, validate
from hsae.latent_classes import Text
from hsae.losses import Coefficients
from hsae.progress import Progress
from hsae.sae import SAE
from hsae.shared_information import InformationConfig
from hsae.sharpening import Sharpening, phase1
from hsae.streams import Stream
from hsae.training import Phase

LEVELS = ("level1", "level2")
INFORMATION = ("live_parents", "parents_with_child")
RECOVERED = ("ce_recovered_zero", "ce_recovered_mean")


class Control(StrEnum):
    """What is trained: the HSAE proper, or one of its controls."""

    trained = "trained"
    random_decoder = "random_decoder"
    random_transformer = "random_transformer"
    shuffled_activations = "shuffled_activations"


@dataclass
class ControlConfig:
    """Section `control`: tokens of the training and of the other splits, and the share of the phases' epochs.

    A pair of latents is tested against `shifts` for shared information, all else being as in `mutual_information`.
    """

    tokens: int
    test_tokens: int
    epochs_share: float
    shifts: int

    def __post_init__(self) -> None:
        check_positive(self, ["tokens", "test_tokens"])
        check("shifts", self.shifts, "at least 2, to have a variance", self.shifts >= 2)
        check("epochs_share", self.epochs_share, "above 0 and at most 1", 0 < self.epochs_share <= 1)


@dataclass(frozen=True)
class Training:
    """All that phases 1 to 3 are told."""

    coefficients: Coefficients
    latents: LatentConfig
    dictionary: DictionaryConfig
    phase1: Phase
    sharpening: Sharpening
    phase2: Phase
    phase3: Phase

    def shortened(self, share: float) -> "Training":
        """The same with a share of every phase's epochs."""
        names = ("phase1", "sharpening", "phase2", "phase3")
        phases: dict[str, Any] = {name: getattr(self, name) for name in names}
        return replace(self, **{name: replace(phase, epochs=share * phase.epochs) for name, phase in phases.items()})


def train(
    data: Store, settings: Training, random_decoder: bool, stream: Stream, checkpoints: Checkpoints = NOWHERE
) -> HierarchicalSAE:
    """Phases 1 to 3 on some data. With `random_decoder` both decoders are random and stay so, to the bit.

    Then encoders, biases and thresholds learn, and level 2 starts from data as ever but for its directions. No latent
    is revived: that would give it a direction.
    """
    # All controls of a seed have these streams in common, to be compared pair by pair: weights, batches, revivals.
    c = settings.coefficients
    width1, width2 = settings.dictionary.widths(data.d_in)
    latents = replace(settings.latents, dead_tokens=0) if random_decoder else settings.latents
    weights = [stream.of(f"weights of level {level}") for level in (1, 2)]
    level1 = variants.drawn(latents.activation, data.d_in, width1, k=latents.k1, beta=c.beta1, stream=weights[0])
    level1 = level1.to(data.activations.acts.device)
    if random_decoder:
        hold_decoder(level1, level1.W_dec.detach().clone())
    phase1(level1, data, c, settings.phase1, settings.sharpening, latents.dead_tokens, stream.of("phase1"), checkpoints)
    model = stack(level1, width2, data, c.beta2, latents, weights[1])
    if random_decoder:
        directions = torch.randn(width2, width1, generator=stream.of("random decoder of level 2").torch()).abs()
        hold_decoder(model.level2, directions.to(model.level2.W_dec))
        model.level2.init_from_data(model.level1.encode(data.x(slice(0, latents.init_tokens))))
    train_level2(model, data, c, settings.phase2, latents.dead_tokens_later, stream.of("phase2"), checkpoints)
    phase3(model, data, c, settings.phase3, latents.dead_tokens_later, stream.of("phase3"), checkpoints)
    return model


def hold_decoder(model: SAE, directions: Float[Tensor, "d_sae d_in"]) -> None:
    """Set the decoder to these directions, as unit rows, for good.

    Whatever a start from data or an optimizer step makes of it, `constrain`, which follows both, puts it back: what is
    valid is this decoder alone. It still counts as one that learns, for that is how a level says that its other
    parameters do.
    """
    held = directions / directions.norm(dim=1, keepdim=True)

    @torch.no_grad()
    def constrain() -> None:
        model.W_dec.copy_(held)

    model.constrain = constrain
    constrain()


def contexts(store: Store, n_tokens: int) -> Store:
    """The rows of as many whole contexts as `n_tokens` make (one at least), those that the store shows first.

    Rows stay in the store's order, so that a shuffled store gives a random choice, and an ordered one its beginning.
    """
    rows = store.activations
    starts = (rows.offsets - rows.positions).numpy()
    chosen = pd.unique(starts)[: max(n_tokens // store.context, 1)]
    kept = torch.from_numpy(np.flatnonzero(np.isin(starts, chosen)))
    return replace(store, activations=Activations(**{name: values[kept] for name, values in vars(rows).items()}))


def of_transformer(
    model: CausalLM, train: Store, others: list[Store], tokens: Integer[Tensor, " corpus"]
) -> list[Store]:
    """The stores as another transformer of the same shape would fill them, row by row: `train`, then the `others`.

    They are normalised as its activations of `train` tell.
    """
    device = train.activations.acts.device
    model = model.to(device)

    def residual(tokens: Tensor) -> Tensor:
        return model.residual(tokens.to(device).long(), train.layer)

    filled = [
        replace(store.activations, acts=_collected(residual, store, tokens).to(device)) for store in (train, *others)
    ]
    normalizer = Normalizer.fit(filled[0].acts, filled[0].kept)
    return [Store(rows, normalizer, train.layer, train.context) for rows in filled]


def _collected(
    residual: Callable[[Tensor], Tensor], store: Store, tokens: Integer[Tensor, " corpus"]
) -> Float[Tensor, "n d_model"]:
    """Residual stream at every row of a store, whatever their order, that is made of whole contexts."""
    positions = store.activations.positions.long()
    starts, context = (store.activations.offsets - positions).unique(return_inverse=True)
    windows = tokens[starts[:, None] + torch.arange(store.context + 1)]
    with Progress("activations", len(windows)) as bar:
        in_order = collect(residual, windows, starts, torch.zeros(1, dtype=torch.long), bar=bar)
    return in_order.acts[context * store.context + positions]


def shuffled(store: Store, stream: Stream) -> Store:
    """Every coordinate permuted over tokens on its own: its distribution is kept, and nothing joint is.

    What is masked stays where it is.
    """
    generator = stream.torch()
    acts, own = store.activations.acts, store.kept.nonzero()[:, 0]

    def permuted(column: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        place = torch.arange(len(column))
        place[own] = own[torch.randperm(len(own), generator=generator)]
        return column[place.to(column.device)]

    columns = [permuted(column) for column in acts.T.contiguous()]
    return replace(store, activations=replace(store.activations, acts=torch.stack(columns, 1)))


def measure(
    model: HierarchicalSAE,
    choose: Store,
    store: Store,
    text: Text,
    information: InformationConfig,
    clustering: FeatureClusteringConfig,
    stream: Stream,
) -> dict[str, Any]:
    """The headlines that need no transformer, on what is kept of an ordered store; `text` is that of these rows.

    level1, level2: `hierarchical.validate`; hierarchy: `hierarchy.summarize`, by what is chosen on another ordered
    store, `choose`; information: `shared_information.headline`; ami: `feature_clustering.headline`. None where a number
    is not defined: a level 2 that is dead has no parents.
    """
    chosen, scored = (graph.measure(model, own.batches()) for own in (choose, store))
    W_dec, h1, h2 = model.level2.W_dec.detach().cpu().numpy(), scored.h1.toarray(), scored.h2.toarray()
    shared = shared_information.headline(h1, h2, W_dec, store.context, information, stream.of("information"))
    parents, kept = scored.parents("decoder").numpy(), store.scored(slice(None))
    return {
        "n_tokens": len(kept),
        **validate(model, store.batches()),
        "hierarchy": hierarchy.summarize(chosen, scored, model.level1.W_dec, store.context, stream.of("hierarchy")),
        "information": {name: shared[name] for name in INFORMATION},
        "ami": feature_clustering.headline(parents, scored.h1, text, clustering),
        "samples": [
            *hierarchy.samples(*(own.activations.offsets.numpy() for own in (choose, store)), split="test"),
            *shared_information.samples(kept.activations.offsets.numpy()),
        ],
    }


def loss_recovered(
    model: HierarchicalSAE, transformer: CausalLM, store: Store, tokens: Integer[Tensor, " corpus"]
) -> dict[str, dict[str, float]]:
    """Share of the transformer's loss by zero and mean ablation that each level recovers (`evaluation.evaluate`).

    Only for activations of this transformer. An untrained one's stream is none that the later blocks could read, and
    coordinates of different tokens make up no token's activation: there is nothing to be recovered.
    """
    methods = {"level1": model.reconstruct_from_h1, "level2": model.reconstruct_from_h2}
    measured = evaluate(transformer, store, tokens, methods).methods
    return {level: {name: metrics[name] for name in RECOVERED} for level, metrics in measured.items()}
