"""Tokens -> character transformer, its loss curve and a sample of what it writes."""

from pathlib import Path

import pandas as pd
import torch

from hsae import run
from hsae.checkpoint import Checkpoints
from hsae.data import CharTokenizer
from hsae.files import read_json, read_tensors, write_csv, write_json, write_tensors, write_text
from hsae.gpt import GPT, GPTConfig
from hsae.language_model import TransformerConfig, train


def main() -> None:
    """Run the stage."""
    with run.stage("train_transformer") as stage:
        device = stage.device()
        config = stage.params(TransformerConfig, "train_transformer")
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"]
        splits = read_json(stage.input("data/corpus.json"))["splits"]
        tokenizer = CharTokenizer(**read_json(stage.input("data/tokenizer.json")))
        train_tokens, val_tokens = (tokens[slice(*splits[name])] for name in ("train", "val"))
        torch.manual_seed(config.seed)
        shape = GPTConfig(config.n_layer, config.n_head, config.d_model, config.context, config.dropout)
        model = GPT(shape, tokenizer.n_vocab).to(device)
        with stage.checkpoints() as folder:
            trained = train(model, train_tokens, val_tokens, config, Checkpoints(folder))
            prompt = val_tokens[: config.context].to(device).long()
            sample = trained.model.generate(prompt, config.sample_chars, torch.Generator().manual_seed(config.seed))
            header = {"config": vars(shape), "n_vocab": tokenizer.n_vocab}
            write_tensors(Path("models/transformer.safetensors"), model.state_dict(), header)
            write_text(Path("models/transformer_sample.txt"), tokenizer.decode(sample[config.context :]))
            write_csv(Path("plots/train_transformer.csv"), pd.DataFrame(trained.curve))
            tokens_seen = config.steps * config.batch_size * config.context
            computed = {"tokens_seen": tokens_seen, "threads": torch.get_num_threads(), "device": device.type}
            write_json(Path("metrics/train_transformer.json"), {**trained.best, **computed})


if __name__ == "__main__":
    main()
