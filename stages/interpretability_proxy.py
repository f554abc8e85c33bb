"""A short rule for every latent, and how well it does on other text: proxies, not human judgements."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from scipy.sparse import csc_array
from torch import Tensor

from hsae import feature_plots, interpretability_proxy, run
from hsae.coactivation import sparse_acts
from hsae.dictionary import DictionaryConfig
from hsae.files import read_json, read_tensors, write_csv, write_figure, write_json
from hsae.interpretability_proxy import Part, ProxyConfig
from hsae.progress import Progress
from hsae.run import Stage
from hsae.samples import Role, record
from stages.clusters import read_clusters
from stages.files import read_store
from stages.trained import read_flat, read_hsae, read_untrained_hsae


def main(flat: list[str]) -> None:
    """Run the stage."""
    with run.stage("interpretability_proxy") as stage:
        device = stage.device()
        config = stage.params(ProxyConfig, "interpretability_proxy")
        stream = stage.params(DictionaryConfig).stream("interpretability_proxy")
        encoders = _encoders(stage, flat, device)
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"].numpy()
        vocabulary = read_json(stage.input("data/tokenizer.json"))["vocabulary"]
        parts, samples = [], []
        roles: list[tuple[str, Role, int]] = [
            ("val", "chosen", config.fit_tokens),
            ("test", "scored", config.score_tokens),
        ]
        for split, role, n in roles:
            own = read_store(stage, split, device).spread(n).scored(slice(None))
            offsets = own.activations.offsets.long().numpy()
            codes = interpretability_proxy.ngram_codes(tokens, offsets, len(vocabulary), config.longest)
            samples.append(record("rules, and the latents that have one", role, split, offsets))
            parts.append((codes, own.x(slice(None)).split(4096)))
        tables = []
        with Progress("interpretability_proxy", len(encoders)) as bar:
            for name, encode in encoders.items():
                fit, test = (Part(codes, csc_array(sparse_acts(encode, x))) for codes, x in parts)
                found = interpretability_proxy.score(fit, test, config, vocabulary, stream.of(name))
                tables.append(found.assign(method=name))
                bar.advance(1, name)
        table = pd.concat(tables, ignore_index=True)
        found = interpretability_proxy.summarize(table, stream.of("intervals"))
        write_json(Path("metrics/interpretability_proxy.json"), {**found, "samples": samples})
        write_csv(Path("plots/interpretability_proxy.csv"), table)
        write_figure(Path("plots/interpretability_proxy.png"), feature_plots.proxies(table))


def _encoders(stage: Stage, flat: list[str], device: torch.device) -> dict[str, Callable[[Tensor], Tensor]]:
    """What encodes normalised activations, by method; both levels as they were before training, too."""
    hsae, untrained = read_hsae(stage, device), read_untrained_hsae(stage, device)
    kmeans = read_clusters(stage, "kmeans", device)
    return {
        "HSAE level1": hsae.level1.encode,
        "HSAE level2": hsae.encode_h2,
        **{name: read_flat(stage, name, device).encode for name in flat},
        "kmeans": lambda x: kmeans.reconstruct(x)[0],
        "untrained HSAE level1": untrained.level1.encode,
        "untrained HSAE level2": untrained.encode_h2,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--flat", nargs="*", default=[])
    main(**vars(parser.parse_args()))
