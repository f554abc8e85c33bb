"""All dictionaries, and concepts that are known of every token -> feature splitting and absorption, and a picture."""

import argparse
from pathlib import Path

from hsae import absorption, feature_plots, labels, run
from hsae.absorption import AbsorptionConfig, Method
from hsae.files import read_json, read_tensors, write_figure, write_json
from stages.clusters import read_clusters
from stages.files import read_store
from stages.trained import read_flat, read_hsae


def main(flat: list[str]) -> None:
    """Run the stage."""
    with run.stage("absorption") as stage:
        device = stage.device()
        config = stage.params(AbsorptionConfig, "absorption")
        hsae = read_hsae(stage, device)
        methods = {
            "HSAE level1": Method(hsae.level1.encode, hsae.level1.W_dec),
            "HSAE level2": Method(hsae.encode_h2, hsae.directions_h2),
        }
        for name in flat:
            model = read_flat(stage, name, device)
            methods[name] = Method(model.encode, model.W_dec)
        kmeans = read_clusters(stage, "kmeans", device)
        methods["kmeans"] = Method(lambda x: kmeans.reconstruct(x)[0], kmeans.centers)
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"].numpy()
        concepts = labels.concepts(tokens, read_json(stage.input("data/tokenizer.json"))["vocabulary"])
        fit = absorption.labelled(read_store(stage, "val", device), concepts, config.fit_tokens)
        score = absorption.labelled(read_store(stage, "test", device), concepts, config.score_tokens)
        result = absorption.measure(methods, fit, score, config)
        write_json(Path("metrics/absorption.json"), result)
        write_figure(Path("plots/absorption.png"), feature_plots.absorption(absorption.tidy(result)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--flat", nargs="*", default=[])
    main(**vars(parser.parse_args()))
