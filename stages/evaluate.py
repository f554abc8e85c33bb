"""All dictionaries on a split -> metrics/evaluate.json: reconstruction, sparsity, loss recovered."""

import argparse
from pathlib import Path

import torch

from hsae import run
from hsae.clusters import load as load_clusters
from hsae.evaluation import EvaluationConfig, evaluate
from hsae.files import read_json, read_tensors, write_json, write_tensors
from stages.files import read_store
from stages.trained import read_flat
from stages.transformer import read_transformer


def main(flat: list[str], clustering: list[str]) -> None:
    """Run the stage."""
    with run.stage("evaluate") as stage:
        device = stage.device()
        model = read_transformer(stage, device)
        l0s = tuple(read_json(stage.input(f"models/l0/level{level}.json"))["l0"] for level in (1, 2))
        methods = {}
        for name in flat:
            methods[f"flat/{name}"] = read_flat(stage, name, device).reconstruct
        for name in clustering:
            tensors, _ = read_tensors(stage.input(f"models/clustering_baseline/{name}.safetensors"))
            methods[f"clustering/{name}"] = load_clusters(name, tensors, l0s, device).reconstruct
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"]
        split = stage.params(EvaluationConfig, "evaluate").split
        measured = evaluate(model, read_store(stage, split, device), tokens, methods)
        computed = {"split": split.value, "threads": torch.get_num_threads(), "device": device.type}
        result = {"language_model": {**measured.language_model, **computed}}
        hsae = read_json(stage.input("metrics/hsae.json"))
        result["hsae"] = {level: hsae[level] for level in ("level1", "level2")}
        for path, metrics in measured.methods.items():
            family, name = path.split("/")
            result.setdefault(family, {})[name] = metrics
        write_tensors(Path("data/contexts/evaluate.safetensors"), measured.tensors())
        write_json(Path("metrics/evaluate.json"), result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--flat", nargs="*", default=[])
    parser.add_argument("--clustering", nargs="*", default=[])
    main(**vars(parser.parse_args()))
