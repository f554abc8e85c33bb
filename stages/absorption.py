"""All dictionaries, and concepts that are known of every token -> feature splitting and absorption, and a picture."""

import argparse
from pathlib import Path

import torch

from hsae import absorption, feature_plots, labels, run
from hsae.absorption import UNTRAINED, AbsorptionConfig, Method
from hsae.dictionary import DictionaryConfig
from hsae.files import read_json, read_tensors, write_figure, write_json
from hsae.hierarchical import HierarchicalSAE
from hsae.run import Stage
from hsae.samples import record
from stages.clusters import read_clusters
from stages.files import read_store
from stages.trained import read_flat, read_hsae, read_untrained_flat, read_untrained_hsae


def main(flat: list[str]) -> None:
    """Run the stage."""
    with run.stage("absorption") as stage:
        device = stage.device()
        config = stage.params(AbsorptionConfig, "absorption")
        stream = stage.params(DictionaryConfig).stream("absorption/contexts drawn")
        methods = _methods(stage, flat, device)
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"].numpy()
        concepts = labels.concepts(tokens, read_json(stage.input("data/tokenizer.json"))["vocabulary"])
        fit = absorption.labelled(read_store(stage, "val", device), concepts, config.fit_tokens)
        score = absorption.labelled(read_store(stage, "test", device), concepts, config.score_tokens)
        result = absorption.measure(methods, fit, score, config, stream)
        chosen = "probes, main latents and their thresholds"
        samples = [record(chosen, "chosen", "val", fit.offsets), record(chosen, "scored", "test", score.offsets)]
        write_json(Path("metrics/absorption.json"), {**result, "samples": samples})
        write_figure(Path("plots/absorption.png"), feature_plots.absorption(absorption.tidy(result)))


def _methods(stage: Stage, flat: list[str], device: torch.device) -> dict[str, Method]:
    """All dictionaries by name, and what the HSAE and the flat ones of level 1's width were before training."""
    kmeans = read_clusters(stage, "kmeans", device)
    models = {name: read_flat(stage, name, device) for name in flat}
    methods = {
        **_levels(read_hsae(stage, device)),
        **{name: Method(model.encode, model.W_dec) for name, model in models.items()},
        "kmeans": Method(lambda x: kmeans.reconstruct(x)[0], kmeans.centers),
    }
    before = _levels(read_untrained_hsae(stage, device))
    for name, model in models.items():
        if not name.endswith("_level2"):
            untrained = read_untrained_flat(stage, model.kind, device)
            before[name] = Method(untrained.encode, untrained.W_dec)
    return methods | {UNTRAINED + name: method for name, method in before.items()}


def _levels(hsae: HierarchicalSAE) -> dict[str, Method]:
    """The two levels as dictionaries of x."""
    return {
        "HSAE level1": Method(hsae.level1.encode, hsae.level1.W_dec),
        "HSAE level2": Method(hsae.encode_h2, hsae.directions_h2),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--flat", nargs="*", default=[])
    main(**vars(parser.parse_args()))
