"""The latents that matter most in causal tracing, added to the stream of ordinary text: gains and damage."""

from pathlib import Path

import pandas as pd
import torch

from hsae import causal, causal_plots, run, steering
from hsae.dictionary import DictionaryConfig
from hsae.files import read_json, read_tensors, write_csv, write_figure, write_json
from hsae.samples import record
from hsae.steering import SteeringConfig
from stages.files import read_store
from stages.trained import read_hsae
from stages.transformer import read_transformer

LEVELS = {"level1": "level 1", "level2": "level 2"}


def main() -> None:
    """Run the stage."""
    with run.stage("steering") as stage:
        device = stage.device()
        config, stream = stage.params(SteeringConfig, "steering"), stage.params(DictionaryConfig).stream("steering")
        model = read_transformer(stage, device)
        bases, test = causal.hsae_bases(read_hsae(stage, device)), read_store(stage, "test", device)
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"]
        vocabulary = read_json(stage.input("data/tokenizer.json"))["vocabulary"]
        tracing = read_json(stage.input("metrics/causal_tracing.json"))
        tasks = read_json(stage.input("data/causal_tasks.json"))
        targets = [[c in task["targets"] for c in vocabulary] for task in tasks.values()]
        classes = torch.tensor(targets, dtype=torch.bool).view(len(tasks), len(vocabulary)).to(device)

        # Chosen in causal tracing, on its discovery pairs, from the validation split.
        promoted = {(task, level): tracing["tasks"][task]["promoted"][level] for task in tasks for level in LEVELS}
        latents = sorted({(level, latent) for (_, level), latent in promoted.items()})
        generator = stream.of("random directions").torch()
        random = torch.randn(config.random, test.d_in, generator=generator).to(device)
        directions = torch.stack([*(bases[level].directions[latent] for level, latent in latents), *random])
        found = steering.responses(model, test, tokens, directions, classes, config)
        by_latent, by_chance = dict(zip(latents, found, strict=False)), found[len(latents) :]

        metrics, frames = {}, [pd.DataFrame(columns=["direction", "dose", "gain", "damage", "task"])]
        for index, task in enumerate(tasks):
            own = {level: promoted[task, level] for level in LEVELS}
            responses = {level: by_latent[level, latent] for level, latent in own.items()}
            summary = steering.summarize(responses, by_chance, index, config, stream.of("contexts", task))
            metrics[task] = {name: summary[name] for name in ("random", "difference")} | {
                level: {"latent": own[level], **summary[level]} for level in LEVELS
            }
            shown = {f"top of {LEVELS[level]}": response for level, response in responses.items()}
            frames.append(steering.frame(shown, by_chance, index, config.doses).assign(task=task))
        table = pd.concat(frames)
        chosen = [{**own, "what": "latents"} for own in tracing["samples"] if own["role"] == "chosen"]
        scored = record("latents", "scored", "test", test.activations.offsets[: config.contexts * test.context].numpy())
        samples = [*chosen, scored] if chosen else []
        result = {"doses": config.doses, "damage": config.damage, "tasks": metrics, "samples": samples}
        write_json(Path("metrics/steering.json"), result)
        write_csv(Path("plots/steering.csv"), table)
        write_figure(Path("plots/steering.png"), causal_plots.steering(table))


if __name__ == "__main__":
    main()
