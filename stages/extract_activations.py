"""Transformer -> its residual stream at one layer: in shuffled blocks to train on, in order to evaluate on."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hsae import blocks, run
from hsae.activations import ActivationConfig, Store, collect
from hsae.blocks import Plan
from hsae.data import windows
from hsae.files import fingerprint, read_json, read_tensors, replace_folder
from hsae.processes import leads, start, together
from hsae.progress import Progress
from stages.transformer import read_transformer

SOURCES = ("models/transformer.safetensors", "data/tokens.safetensors")


def main() -> None:
    """Run the stage."""
    with run.stage("extract_activations") as stage:
        device = stage.device()
        config = stage.params(ActivationConfig, "extract_activations")
        start(stage, device)
        model = read_transformer(stage, device)
        config.check_layer(model.n_layer)
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"]
        corpus = read_json(stage.input("data/corpus.json"))
        document_starts = torch.tensor([document["start"] for document in corpus["documents"]])
        context = model.context
        begins = {name: begin for name, (begin, _) in corpus["splits"].items()}
        cut = {name: windows(tokens[slice(*ends)], context) for name, ends in corpus["splits"].items()}
        plan = Plan.draw(len(cut["train"]), begins["train"], document_starts, context, config)
        sources = {path: fingerprint(Path(path)) for path in SOURCES}

        def residual(tokens: Tensor) -> Tensor:
            return model.residual(tokens.to(device).long(), config.layer)

        with together(stage, device) as folder:
            made = folder / "train"
            normalizer = blocks.write(plan, made, partial(plan.make, residual, tokens), config.keep, sources)
            for name, n_tokens in {"val": config.val_tokens, "test": config.test_tokens}.items():
                chosen = cut[name][: max(n_tokens // context, 1)]
                first_offsets = begins[name] + torch.arange(len(chosen)) * context
                with Progress("extract_activations", len(chosen)) as bar:
                    rows = collect(residual, chosen, first_offsets, document_starts, bar=bar)
                if leads():
                    store = Store(rows, normalizer, config.layer, context)
                    store.write(Path(f"data/activations/{name}.safetensors"))
            if leads():
                replace_folder(made, Path("data/activations/train"))


if __name__ == "__main__":
    main()
