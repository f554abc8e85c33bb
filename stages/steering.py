"""The latents that matter most in causal tracing, added to the stream of ordinary text: gains and damage."""

from itertools import islice
from pathlib import Path

import pandas as pd
import torch

from hsae import causal, causal_plots, run, steering
from hsae.causal_nodes import LEVEL1, LEVEL2, UNTRAINED
from hsae.dictionary import DictionaryConfig
from hsae.files import read_json, read_tensors, write_csv, write_figure, write_json
from hsae.samples import record
from hsae.steering import SteeringConfig
from stages.files import read_store
from stages.trained import read_hsae, read_untrained_hsae
from stages.transformer import read_transformer

LEVELS = (LEVEL1, LEVEL2)
SHOWN = {
    LEVEL1: "top of level 1",
    LEVEL2: "top of level 2",
    UNTRAINED[LEVEL1]: "top of untrained level 1",
    UNTRAINED[LEVEL2]: "top of untrained level 2",
}


def main() -> None:
    """Run the stage."""
    with run.stage("steering") as stage:
        device = stage.device()
        config, stream = stage.params(SteeringConfig, "steering"), stage.params(DictionaryConfig).stream("steering")
        model = read_transformer(stage, device)
        test, bases = read_store(stage, "test", device), causal.hsae_bases(read_hsae(stage, device))
        untrained = causal.hsae_bases(read_untrained_hsae(stage, device))
        bases |= {name: untrained[level] for level, name in UNTRAINED.items()}
        nulls = read_tensors(stage.input("data/causal_nulls.safetensors"))[0]
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"]
        vocabulary = read_json(stage.input("data/tokenizer.json"))["vocabulary"]
        tracing = read_json(stage.input("metrics/causal_tracing.json"))
        tasks = read_json(stage.input("data/causal_tasks.json"))
        targets = [[c in task["targets"] for c in vocabulary] for task in tasks.values()]
        classes = torch.tensor(targets, dtype=torch.bool).view(len(tasks), len(vocabulary)).to(device)

        # Chosen in causal tracing, on its discovery pairs, from the validation split; those of chance too.
        promoted = {(task, name): tracing["tasks"][task]["promoted"][name] for task in tasks for name in SHOWN}
        latents = sorted({(name, latent) for (_, name), latent in promoted.items()})
        random = [nulls[f"{task}.{level}"].to(device) for task in tasks for level in LEVELS]
        directions = [torch.zeros(0, test.d_in, device=device), *random]
        directions += [bases[name].directions[None, latent] for name, latent in latents]
        found = iter(steering.responses(model, test, tokens, torch.cat(directions), classes, config))
        chance = {
            (task, level): list(islice(found, len(nulls[f"{task}.{level}"]))) for task in tasks for level in LEVELS
        }
        by_latent = dict(zip(latents, found, strict=True))

        metrics, frames = {}, [pd.DataFrame(columns=["direction", "dose", "gain", "damage", "task"])]
        for index, task in enumerate(tasks):
            responses = {name: by_latent[name, promoted[task, name]] for name in SHOWN}
            random = {level: chance[task, level] for level in LEVELS}
            summary = steering.summarize(responses, random, index, config, stream.of("contexts", task))
            metrics[task] = summary | {name: {"latent": promoted[task, name], **summary[name]} for name in SHOWN}
            shown = {SHOWN[name]: response for name, response in responses.items()}
            shown_random = {SHOWN[level]: drawn for level, drawn in random.items()}
            frames.append(steering.frame(shown, shown_random, index, config.doses).assign(task=task))
        table = pd.concat(frames)
        chosen = [{**own, "what": "latents"} for own in tracing["samples"] if own["role"] == "chosen"]
        scored = record("latents", "scored", "test", test.activations.offsets[: config.contexts * test.context].numpy())
        samples = [*chosen, scored] if chosen else []
        result = {
            "doses": config.doses,
            "damage": config.damage,
            "tasks": steering.adjusted(metrics, LEVELS),
            "samples": samples,
        }
        write_json(Path("metrics/steering.json"), result)
        write_csv(Path("plots/steering.csv"), table)
        write_figure(Path("plots/steering.png"), causal_plots.steering(table))


if __name__ == "__main__":
    main()
