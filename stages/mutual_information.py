"""What latents tell of each other and of the text -> metrics/mutual_information.json, on the test split."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int8
from numpy import ndarray
from torch import Tensor

from hsae import information_plots, probes, run
from hsae import shared_information as shared
from hsae.activations import Store
from hsae.dictionary import DictionaryConfig
from hsae.files import read_json, read_tensors, write_csv, write_figure, write_json
from hsae.hierarchical import HierarchicalSAE
from hsae.labels import CONTEXT, context_labels
from hsae.samples import Record, record
from hsae.shared_information import InformationConfig, Levels
from hsae.streams import Stream
from stages.clusters import read_clusters
from stages.files import read_store
from stages.trained import read_flat, read_hsae, read_untrained_flat, read_untrained_hsae


def main() -> None:
    """Run the stage."""
    with run.stage("mutual_information") as stage:
        device = stage.device()
        config = stage.params(InformationConfig, "mutual_information")
        stream = stage.params(DictionaryConfig).stream("mutual_information")
        hsae, untrained = read_hsae(stage, device), read_untrained_hsae(stage, device)
        encoders = _encoders(stage, hsae, untrained, device)
        val, test = (read_store(stage, split, device) for split in ("val", "test"))
        # Of each document the first half is for pairs, and of that again the first half chooses; the second for probes.
        first, second = test.halves()
        classes = _classes(stage, val, test)
        of_pairs = first.spread(config.tokens).halves_in_turn()
        fit, pairs, score = (own.scored(slice(None)) for own in (val, of_pairs, second))
        y_fit, labels, y_score = (classes[own.activations.offsets.numpy()] for own in (fit, pairs, score))

        x = pairs.x(slice(None))
        levels, of_levels = _of_levels(hsae, x, labels, test.context, config, stream.of("trained"))
        _, by_chance = _of_levels(untrained, x, labels, test.context, config, stream.of("untrained"))

        # One stream for all representations: they are compared on the same batches and draws of contexts.
        probing, kept = stream.of("probes"), second.kept.view(-1, test.context).numpy()
        x_fit, x_score, y = fit.x(slice(None)), score.x(slice(None)), (y_fit, y_score)
        bounds = pd.concat(
            probes.compare(encode(x_fit), encode(x_score), *y, CONTEXT, kept, config.probe, probing)
            .assign(representation=name)
            for name, encode in encoders.items()
        )  # fmt: skip
        metrics = {
            "n_tokens": len(pairs),
            "n_tokens_probes": len(score),
            "n_shifts": config.shifts,
            **of_levels,
            "untrained": by_chance,
            "probes": probes.nested(bounds),
            "samples": _samples(fit, score)
            + shared.samples(
                pairs.activations.offsets.numpy(), "children that entropies are conditioned on", "best labels"
            ),
        }
        write_json(Path("metrics/mutual_information.json"), metrics)
        write_csv(Path("plots/mutual_information.csv"), levels.tested)
        write_csv(Path("plots/probe_bounds.csv"), bounds)
        figures = {
            "mutual_information": information_plots.information_heatmap(levels.u, levels.weight),
            "information_weight": information_plots.information_weight(shared.live_pairs(levels)),
            "probe_bounds": information_plots.probe_bounds(bounds),
        }
        for name, figure in figures.items():
            write_figure(Path(f"plots/{name}.png"), figure)


def _of_levels(
    model: HierarchicalSAE, x: Tensor, labels: np.ndarray, margin: int, config: InformationConfig, stream: Stream
) -> tuple[Levels, dict[str, object]]:
    """What a model's levels tell of each other and of labels, and what metrics/mutual_information.json has of it."""
    acts = {"hsae_level1": model.level1.encode, "hsae_level2": model.encode_h2}
    bins = {name: shared.binned(_in_batches(encode)(x).cpu().numpy(), config.bins) for name, encode in acts.items()}
    h1, h2 = bins.values()
    W_dec = model.level2.W_dec.detach().cpu().numpy()
    levels = shared.examine(h1, h2, W_dec, margin, config, stream.of("levels"))
    tested = {
        name: shared.label_information(own, labels, CONTEXT, margin, config, stream.of("labels", name))
        for name, own in bins.items()
    }
    return levels, {
        "levels": shared.summarize(levels, config.fdr),
        "conditional_entropy": shared.conditional_entropies(h1, h2, levels, config.children),
        "labels": {name: shared.summarize_labels(own, config.fdr) for name, own in tested.items()},
    }


def _classes(stage: run.Stage, val: Store, test: Store) -> Int8[ndarray, "corpus label"]:
    """The labels of all tokens that are kept, a column each, what is rare in `val` put together; 0 elsewhere."""
    tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"].numpy()
    known = context_labels(tokens, read_json(stage.input("data/tokenizer.json"))["vocabulary"])
    chosen, scored = (own.scored(slice(None)).activations.offsets.numpy() for own in (val, test))
    offsets = np.concatenate([chosen, scored])
    classes = np.zeros((len(tokens), len(CONTEXT)), dtype=np.int8)
    classes[offsets] = np.stack(
        [shared.common_classes(known[name][offsets], known[name][chosen]) for name in CONTEXT], 1
    )
    return classes


def _samples(fit: Store, score: Store) -> list[Record]:
    """Where probes were fitted and their settings chosen, and where they were scored."""
    what = "weights, rates, decays and epochs of probes"
    return [
        record(what, "chosen", "val", fit.activations.offsets.numpy()),
        record(what, "scored", "test", score.activations.offsets.numpy()),
    ]


def _encoders(
    stage: run.Stage, hsae: HierarchicalSAE, untrained: HierarchicalSAE, device: torch.device
) -> dict[str, Callable[[Tensor], Tensor]]:
    """What encodes normalised activations, by name."""
    flat = {name: read_flat(stage, name, device) for name in ("topk", "topk_level2")}
    kmeans = read_clusters(stage, "kmeans", device)
    encoders = {
        "hsae_level1": hsae.level1.encode,
        "hsae_level2": hsae.encode_h2,
        "flat_topk": flat["topk"].encode,
        "flat_topk_level2": flat["topk_level2"].encode,
        "kmeans": lambda x: kmeans.reconstruct(x)[0],
        "activations": lambda x: x,
        "untrained_hsae_level1": untrained.level1.encode,
        "untrained_hsae_level2": untrained.encode_h2,
        "untrained_flat_topk": read_untrained_flat(stage, "topk", device).encode,
    }
    return {name: _in_batches(encode) for name, encode in encoders.items()}


def _in_batches(encode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return torch.no_grad()(lambda x: torch.cat([encode(batch) for batch in x.split(4096)]))


if __name__ == "__main__":
    main()
