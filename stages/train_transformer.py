"""Tokens -> the language model: ours, trained, or a pretrained one, converted; and a sample of what it writes."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from hsae import pretrained, run
from hsae.causal_lm import ModelConfig, Source
from hsae.checkpoint import Checkpoints
from hsae.data import windows
from hsae.files import read_json, read_tensors, write_csv, write_json, write_tensors, write_text
from hsae.gpt import GPT, GPTConfig
from hsae.language_model import TrainedTransformer, TransformerConfig, cross_entropy, train


def main() -> None:
    """Run the stage."""
    with run.stage("train_transformer") as stage:
        device = stage.device()
        config, source = stage.params(TransformerConfig, "train_transformer"), stage.params(ModelConfig, "model")
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"]
        splits = read_json(stage.input("data/corpus.json"))["splits"]
        vocabulary = read_json(stage.input("data/tokenizer.json"))["vocabulary"]
        train_tokens, val_tokens = (tokens[slice(*splits[name])] for name in ("train", "val"))
        with stage.checkpoints() as folder:
            if source.source == Source.hf:
                trained, tensors, header = _convert(source, vocabulary, val_tokens, config.eval_windows, device)
            else:
                torch.manual_seed(config.seed)
                shape = GPTConfig(config.n_layer, config.n_head, config.d_model, config.context, config.dropout)
                model = GPT(shape, len(vocabulary)).to(device)
                trained = train(model, train_tokens, val_tokens, config, Checkpoints(folder))
                tensors, header = model.state_dict(), {"config": vars(shape), "n_vocab": len(vocabulary)}
            model = trained.model
            prompt = val_tokens[: model.context].to(device).long()
            sample = model.generate(prompt, config.sample_chars, torch.Generator().manual_seed(config.seed))
            write_tensors(Path("models/transformer.safetensors"), tensors, header)
            text = "".join(vocabulary[token] for token in sample[len(prompt) :].tolist())
            write_text(Path("models/transformer_sample.txt"), text)
            write_csv(Path("plots/train_transformer.csv"), pd.DataFrame(trained.curve))
            steps = config.steps if source.source == Source.train else 0
            tokens_seen = steps * config.batch_size * config.context
            computed = {"tokens_seen": tokens_seen, "threads": torch.get_num_threads(), "device": device.type}
            write_json(Path("metrics/train_transformer.json"), {**trained.best, **computed})


def _convert(
    source: ModelConfig, vocabulary: list[str], val_tokens: Tensor, eval_windows: int, device: torch.device
) -> tuple[TrainedTransformer, dict[str, Tensor], dict[str, Any]]:
    """A pretrained model, its loss on the validation split being all that is to be measured; tensors and header."""
    tensors, header = pretrained.convert(source, vocabulary)
    model = pretrained.load(tensors, header).to(device)
    loss = cross_entropy(model, windows(val_tokens, source.context)[:eval_windows], chunk=8)
    row = {"step": 0, "train_loss": loss, "val_loss": loss}
    return TrainedTransformer(model, [{**row, "lr": 0.0}], row), tensors, header


if __name__ == "__main__":
    main()
