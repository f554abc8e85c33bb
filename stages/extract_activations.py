"""Transformer -> its residual stream at one layer: in shuffled blocks to train on, in order to evaluate on."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hsae import blocks, run
from hsae.activations import ActivationConfig, Store, collect
from hsae.blocks import Plan
from hsae.config import check
from hsae.data import context_starts, windows
from hsae.files import fingerprint, read_json, read_tensors, replace_folder, write_json
from hsae.processes import leads, start, together
from hsae.progress import Progress
from hsae.streams import Stream
from stages.transformer import read_transformer

HELD_OUT = ("test", "final")  # what is read by all evaluations, and by the last comparison alone
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
        special = torch.tensor(read_json(stage.input("data/tokenizer.json"))["special"], dtype=torch.long)
        document_starts = torch.tensor([document["start"] for document in corpus["documents"]])
        context = model.context
        ranges = {name: torch.tensor(own) for name, own in corpus["splits"].items()}
        stream = Stream(config.seed, "extract_activations")
        plan = Plan.draw(context_starts(ranges["train"], context), document_starts, context, config, stream)
        sources = {path: fingerprint(Path(path)) for path in SOURCES}

        def residual(tokens: Tensor) -> Tensor:
            return model.residual(tokens.to(device).long(), config.layer)

        with together(stage, device) as folder:
            made = folder / "train"
            make = partial(plan.make, residual, tokens)
            fitted = blocks.write(plan, made, make, tokens, special, config, sources)
            counts = {"first_block": fitted.counts}
            for name, n_tokens in {"val": config.val_tokens, **dict.fromkeys(HELD_OUT, config.test_tokens)}.items():
                chosen = context_starts(ranges[name], context, most=max(n_tokens // context, 1))
                with Progress("extract_activations", len(chosen)) as bar:
                    rows = collect(residual, windows(tokens, chosen, context), chosen, document_starts, bar=bar)
                rows = fitted.mask(rows, tokens)
                counts[name] = fitted.mask.counts(rows, tokens)
                check(f"tokens of `{name}` that are kept", int(rows.kept.sum()), "above 0", bool(rows.kept.any()))
                if leads():
                    store = Store(rows, fitted.normalizer, config.layer, context)
                    store.write(Path(f"data/activations/{name}.safetensors"))
            if leads():
                replace_folder(made, Path("data/activations/train"))
                write_json(Path("metrics/activations.json"), counts)


if __name__ == "__main__":
    main()
