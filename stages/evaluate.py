"""All dictionaries -> metrics/evaluate.json: reconstruction, sparsity and loss recovered on the test split."""

import argparse
from pathlib import Path

import torch

from hsae import gpt, hierarchical, run, sae
from hsae.clustering import Clusters
from hsae.evaluation import evaluate
from hsae.files import read_tensors, write_json
from stages.files import read_store


def main(flat: list[str], clustering: list[str]) -> None:
    """Run the stage."""
    with run.stage("evaluate") as stage:
        device = stage.device()
        model = gpt.load(*read_tensors(stage.input("models/transformer.safetensors"))).to(device)
        hsae = hierarchical.load(*read_tensors(stage.input("models/phase3.safetensors"))).to(device)
        methods = {("hsae", "level1"): hsae.reconstruct_from_h1, ("hsae", "level2"): hsae.reconstruct_from_h2}
        for name in flat:
            tensors, header = read_tensors(stage.input(f"models/flat_baseline/{name}.safetensors"))
            methods["flat", name] = sae.load(tensors, header).to(device)
        for name in clustering:
            tensors, _ = read_tensors(stage.input(f"models/clustering_baseline/{name}.safetensors"))
            methods["clustering", name] = Clusters.load(tensors, device).reconstruct
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"]
        test = read_store(stage, "test", device)
        language_model, measured = evaluate(model, test, tokens, methods)
        result = {"language_model": {**language_model, "threads": torch.get_num_threads(), "device": device.type}}
        for (family, name), metrics in measured.items():
            result.setdefault(family, {})[name] = metrics
        result["hsae"]["level2"]["fvu_h1"] = hierarchical.validate(hsae, test.batches())["level2"]["fvu_h1"]
        write_json(Path("metrics/evaluate.json"), result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--flat", nargs="*", default=[])
    parser.add_argument("--clustering", nargs="*", default=[])
    main(**vars(parser.parse_args()))
