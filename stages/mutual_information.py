"""What latents tell of each other and of the text -> metrics/mutual_information.json, on the test split."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hsae import information_plots, probes, run
from hsae import shared_information as shared
from hsae.activations import Store
from hsae.dictionary import DictionaryConfig
from hsae.files import read_json, read_tensors, write_csv, write_figure, write_json
from hsae.information import quantile_bins
from hsae.labels import CONTEXT, context_labels
from hsae.samples import Record, record
from hsae.shared_information import InformationConfig
from stages.clusters import read_clusters
from stages.files import read_store
from stages.trained import read_flat, read_hsae, read_untrained_flat, read_untrained_hsae

LEVELS = ("hsae_level1", "hsae_level2")


def main() -> None:
    """Run the stage."""
    with run.stage("mutual_information") as stage:
        device = stage.device()
        config = stage.params(InformationConfig, "mutual_information")
        encoders, W_dec = _encoders(stage, device)
        val, test = (read_store(stage, split, device) for split in ("val", "test"))
        half = len(test) // (2 * test.context) * test.context
        n_tokens = min(config.tokens, half) // test.context * test.context
        y_val, y_test = _classes(stage, val, test)

        x_pairs = test.x(slice(0, n_tokens))
        h1, h2 = (quantile_bins(encoders[name](x_pairs).cpu().numpy(), config.bins) for name in LEVELS)
        levels = shared.examine(h1, h2, W_dec, test.context, config)
        of_labels = {
            name: shared.label_information(acts, y_test[:n_tokens], CONTEXT, test.context, config)
            for name, acts in zip(LEVELS, (h1, h2), strict=True)
        }
        # One stream for all representations: they are compared on the same batches and draws of contexts.
        stream, scored = stage.params(DictionaryConfig).stream("mutual_information/probes"), slice(half, 2 * half)
        x_val, x_score, y = val.x(slice(None)), test.x(scored), (y_val, y_test[scored])
        bounds = pd.concat(
            probes.compare(encode(x_val), encode(x_score), *y, CONTEXT, test.context, config.probe, stream)
            .assign(representation=name)
            for name, encode in encoders.items()
        )  # fmt: skip
        metrics = {
            "n_tokens": n_tokens,
            "n_tokens_probes": half,
            "n_shifts": config.shifts,
            "levels": shared.summarize(levels, config.fdr),
            "conditional_entropy": shared.conditional_entropies(h1, h2, levels, config.children),
            "labels": {name: shared.summarize_labels(tested, config.fdr) for name, tested in of_labels.items()},
            "probes": probes.nested(bounds),
            "samples": _samples(val, test, scored),
        }
        write_json(Path("metrics/mutual_information.json"), metrics)
        write_csv(Path("plots/mutual_information.csv"), levels.tested)
        write_csv(Path("plots/probe_bounds.csv"), bounds)
        figures = {
            "mutual_information": information_plots.information_heatmap(levels.u, W_dec),
            "information_weight": information_plots.information_weight(shared.live_pairs(levels)),
            "probe_bounds": information_plots.probe_bounds(bounds),
        }
        for name, figure in figures.items():
            write_figure(Path(f"plots/{name}.png"), figure)


def _classes(stage: run.Stage, val: Store, test: Store) -> tuple[np.ndarray, np.ndarray]:
    """The labels of both splits' tokens, a column each, rare classes put together."""
    tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"].numpy()
    known = context_labels(tokens, read_json(stage.input("data/tokenizer.json"))["vocabulary"])
    offsets = torch.cat([val.activations.offsets, test.activations.offsets]).numpy()
    classes = np.stack([shared.common_classes(known[name][offsets]) for name in CONTEXT], 1)
    y_val, y_test = np.split(classes, [len(val)])
    return y_val, y_test


def _samples(val: Store, test: Store, scored: slice) -> list[Record]:
    """Where probes were fitted and their settings chosen, and where they were scored."""
    what, offsets = "weights, rates, decays and epochs of probes", test.activations.offsets[scored]
    return [
        record(what, "chosen", "val", val.activations.offsets.numpy()),
        record(what, "scored", "test", offsets.numpy()),
    ]


def _encoders(stage: run.Stage, device: torch.device) -> tuple[dict[str, Callable[[Tensor], Tensor]], np.ndarray]:
    """What encodes normalised activations, by name, and the level-2 decoder."""
    hsae, untrained = read_hsae(stage, device), read_untrained_hsae(stage, device)
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
    return {name: _in_batches(encode) for name, encode in encoders.items()}, hsae.level2.W_dec.detach().cpu().numpy()


def _in_batches(encode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return torch.no_grad()(lambda x: torch.cat([encode(batch) for batch in x.split(4096)]))


if __name__ == "__main__":
    main()
