"""Activations of every arm -> the trials of a study with people: data/study/trials.json."""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csc_array, csr_array

from hsae import run
from hsae.coactivation import among, sparse_acts
from hsae.dictionary import DictionaryConfig
from hsae.files import read_json, read_tensors, write_text
from hsae.study import design, trials
from hsae.study.design import StudyConfig
from stages.clusters import read_clusters
from stages.files import read_store
from stages.trained import read_flat, read_hsae

RANDOM = 256  # directions among which those that match the other arms are chosen


def main(flat: str) -> None:
    """Run the stage."""
    with run.stage("build_study") as stage:
        device = stage.device()
        config = stage.params(StudyConfig, "build_study")
        stream = stage.params(DictionaryConfig).stream("build_study")
        hsae, kmeans = read_hsae(stage, device), read_clusters(stage, "kmeans", device)
        store = read_store(stage, "test", device)
        n = min(config.tokens, len(store)) // store.context * store.context
        # The text is whole; on what is masked nothing is active.
        x, kept = store.scored(slice(n)).x(slice(None)).split(4096), store.kept[:n].numpy()
        encoders = {
            "level1": hsae.level1.encode,
            "level2": hsae.encode_h2,
            f"flat {flat}": read_flat(stage, flat, device).encode,
            "kmeans": lambda part: kmeans.reconstruct(part)[0],
        }
        acts = {name: sparse_acts(encode, x) for name, encode in encoders.items()}
        densities = np.concatenate([np.diff(csc_array(acts[level]).indptr) for level in ("level1", "level2")])
        densities = densities / kept.sum()
        directions = torch.randn(store.d_in, RANDOM, generator=stream.of("random directions").torch())
        projections = torch.cat([part.cpu() @ directions for part in x]).numpy()
        quantiles = np.quantile(densities[densities > 0], np.linspace(0, 1, RANDOM))
        acts["random directions"] = csr_array(design.random_directions(projections, quantiles))
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"]
        vocabulary = read_json(stage.input("data/tokenizer.json"))["vocabulary"]
        pieces = [vocabulary[token] for token in tokens[store.activations.offsets[:n].long()].tolist()]
        # People read characters: each has its token's activations.
        token_of = np.repeat(np.arange(n), [len(piece) for piece in pieces])
        arms = {name: csc_array(among(own, kept)[token_of]) for name, own in acts.items()}
        text = "".join(pieces)
        corpus = read_json(stage.input("data/corpus.json"))["name"]
        edges = pd.read_csv(stage.input("plots/edges.csv"))
        study = design.build(arms, edges, text, config, corpus, stream.of("trials"))
        write_text(Path("data/study/trials.json"), trials.dumps(study))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--flat", required=True)
    main(**vars(parser.parse_args()))
