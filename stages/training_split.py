"""Reading of the training split, whether its activations are kept or not."""

from pathlib import Path

import torch
from torch import Tensor

from hsae.blocks import Blocks, Written
from hsae.files import fingerprint, read_tensors
from hsae.run import Stage
from stages.transformer import read_transformer


def read_train(stage: Stage, device: torch.device) -> Blocks:
    """The blocks of the training split: those in its files or, if none are kept, as the language model makes them.

    Raises ValueError if that, or the text, is another one than they were planned for.
    """
    written = Written.read(stage.input("data/activations/train"), device)
    if written.files:
        return written.kept()
    model = read_transformer(stage, device)
    tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"]
    for path, expected in written.sources.items():
        if fingerprint(Path(path)) != expected:
            raise ValueError(f"{path} is not the one that data/activations/train was planned for: run `dvc repro`.")

    def residual(tokens: Tensor) -> Tensor:
        return model.residual(tokens.to(device).long(), written.plan.layer)

    return written.made(residual, tokens)
