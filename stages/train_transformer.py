"""Tokens -> the language model: ours, trained, or a pretrained one, converted; and a sample of what it writes."""

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from hsae import pretrained, run
from hsae.causal_lm import ModelConfig, Source
from hsae.checkpoint import Checkpoints
from hsae.data import windows
from hsae.files import read_json, read_tensors, write_csv, write_json, write_tensors, write_text
from hsae.gpt import GPT, GPTConfig
from hsae.language_model import TrainedTransformer, TransformerConfig, cross_entropy, halves, train
from hsae.samples import Record, Role, record
from hsae.streams import Stream


def main() -> None:
    """Run the stage."""
    with run.stage("train_transformer") as stage:
        device = stage.device()
        config, source = stage.params(TransformerConfig, "train_transformer"), stage.params(ModelConfig, "model")
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"]
        splits = read_json(stage.input("data/corpus.json"))["splits"]
        ranges, val = (torch.tensor(splits[name]) for name in ("train", "val"))
        vocabulary = read_json(stage.input("data/tokenizer.json"))["vocabulary"]
        context = source.context if source.source == Source.hf else config.context
        choosing, scoring = halves(val, context, config.eval_windows)
        stream = Stream(config.seed, "train_transformer")
        with stage.checkpoints() as folder:
            if source.source == Source.hf:
                tensors, header = pretrained.convert(source, vocabulary)
                trained = TrainedTransformer(pretrained.load(tensors, header).to(device), [], {})
            else:
                shape = GPTConfig(config.n_layer, config.n_head, config.d_model, config.context, config.dropout)
                with stream.of("weights").seeding():
                    model = GPT(shape, len(vocabulary)).to(device)
                batch = windows(tokens, choosing, context)
                trained = train(model, tokens, ranges, batch, config, stream, Checkpoints(folder))
                tensors, header = model.state_dict(), {"config": vars(shape), "n_vocab": len(vocabulary)}
            model = trained.model
            prompt = tokens[val[0, 0] : val[0, 0] + context].to(device).long()
            sample = model.generate(prompt, config.sample_chars, stream.of("sample").torch())
            write_tensors(Path("models/transformer.safetensors"), tensors, header)
            text = "".join(vocabulary[token] for token in sample[len(prompt) :].tolist())
            write_text(Path("models/transformer_sample.txt"), text)
            loss = cross_entropy(model, windows(tokens, scoring, context), chunk=8)
            given = {"step": 0, "train_loss": loss, "val_loss": loss}  # of a pretrained one
            write_csv(Path("plots/train_transformer.csv"), pd.DataFrame(trained.curve or [{**given, "lr": 0.0}]))
            steps = config.steps if trained.curve else 0
            tokens_seen = steps * config.batch_size * config.context
            computed = {"tokens_seen": tokens_seen, "threads": torch.get_num_threads(), "device": device.type}
            samples = _samples(choosing, scoring, context) if trained.curve else []
            metrics = {**given, **trained.best, "val_loss": loss, **computed, "samples": samples}
            write_json(Path("metrics/train_transformer.json"), metrics)


def _samples(choosing: Tensor, scoring: Tensor, context: int) -> list[Record]:
    """At which tokens the weights were chosen, by what they predict there, and at which their loss was measured."""
    roles: dict[Role, Tensor] = {"chosen": choosing, "scored": scoring}
    return [
        record("weights of the transformer", role, "val", (starts[:, None] + torch.arange(context)).flatten().numpy())
        for role, starts in roles.items()
    ]


if __name__ == "__main__":
    main()
