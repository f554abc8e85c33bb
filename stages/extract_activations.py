"""Transformer -> its residual stream at one layer: shuffled for training, in order for validation and test."""

from pathlib import Path

import torch
from torch import Tensor

from hsae import run
from hsae.activations import ActivationConfig, Normalizer, collect
from hsae.data import windows
from hsae.files import read_json, read_tensors, write_tensors
from hsae.processes import leads, start, together
from stages.transformer import read_transformer


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
        generator = torch.Generator().manual_seed(config.seed)
        stored = {}

        def residual(tokens: Tensor) -> Tensor:
            return model.residual(tokens.to(device).long(), config.layer)

        with together(stage, device):
            for name, n_tokens in config.tokens_per_split().items():
                begin, end = corpus["splits"][name]
                cut = windows(tokens[begin:end], context)
                first_offsets = begin + torch.arange(len(cut)) * context
                shuffled = name == "train"
                chosen = torch.randperm(len(cut), generator=generator) if shuffled else torch.arange(len(cut))
                chosen = chosen[: max(n_tokens // context, 1)]
                shuffle = generator if shuffled else None
                stored[name] = collect(residual, cut[chosen], first_offsets[chosen], document_starts, shuffle)
            if leads():
                normalizer = Normalizer.fit(stored["train"].acts)
                for name, acts in stored.items():
                    tensors = {**vars(acts), **vars(normalizer)}
                    header = {"layer": config.layer, "context": context}
                    write_tensors(Path(f"data/activations/{name}.safetensors"), tensors, header)


if __name__ == "__main__":
    main()
