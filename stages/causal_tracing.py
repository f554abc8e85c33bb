"""What causes the next character: tasks from the corpus, effects of latents and of rivals, paths through the levels."""

import argparse
from pathlib import Path
from typing import Any

from torch import Tensor

from hsae import causal, causal_plots, causal_tasks, run
from hsae.causal import Basis, Runs, Tracer
from hsae.causal_effects import CausalConfig, Pair, compare, trace
from hsae.causal_nodes import UNTRAINED, rival_bases
from hsae.causal_tasks import Kept, Task
from hsae.config import check
from hsae.dictionary import DictionaryConfig
from hsae.files import read_json, read_tensors, write_csv, write_figure, write_json, write_tensors
from hsae.hierarchical import HierarchicalSAE
from hsae.progress import Progress
from hsae.streams import Stream
from stages.clusters import read_clusters
from stages.files import read_store
from stages.trained import read_flat, read_hsae, read_untrained_hsae
from stages.transformer import read_transformer

SPLITS = {"discovery": "val", "test": "test"}
FIGURES = {
    "map": causal_plots.tracing_map,
    "effects": causal_plots.effects,
    "shares": causal_plots.shares,
    "curves": causal_plots.curves,
    "paths": causal_plots.paths,
}
FIRST = 16384  # tokens of the validation split that say how often latents are active, and which way the stream varies


def main(flat: list[str], clusters: list[str]) -> None:
    """Run the stage."""
    with run.stage("causal_tracing") as stage:
        device = stage.device()
        config = stage.params(CausalConfig, "causal_tracing")
        stream = stage.params(DictionaryConfig).stream("causal_tracing")
        model = read_transformer(stage, device)
        hsae, val = read_hsae(stage, device), read_store(stage, "val", device)
        tracer, longest = Tracer(model, val.layer, val.normalizer, val.masked_positions), model.context
        check("prompt_chars", config.prompt_chars, f"at most the context (={longest})", config.prompt_chars <= longest)
        tasks, kept, records = _tasks(stage, tracer, config, stream.of("pairs"))
        first = val.scored(slice(FIRST))
        x = first.x(slice(None))
        bases = _bases(stage, hsae, x, flat, clusters, stream.of("random directions"))
        traced = {}
        with Progress("causal_tracing", len(tasks)) as bar:
            for name, splits in tasks.items():
                pair = Pair(*(Runs.of(tracer, splits[split]) for split in SPLITS))
                traced[name] = trace(pair, hsae, bases, x, config, stream.of("tasks", name))
                bar.advance(1, name)
        result = {
            "pairs": causal_tasks.report(kept),
            "total_effect_of": causal_tasks.KEPT,
            "tasks": {name: found.metrics for name, found in traced.items()},
            "comparisons": compare({name: found.areas for name, found in traced.items()}),
            "samples": causal_tasks.samples(tasks, SPLITS, first.activations.offsets.numpy(), stream.of("pairs")),
        }
        write_json(Path("data/causal_tasks.json"), records)
        chance = {f"{task}.{level}": rows for task, found in traced.items() for level, rows in found.chance.items()}
        write_tensors(Path("data/causal_nulls.safetensors"), chance)
        write_json(Path("metrics/causal_tracing.json"), result)
        write_csv(Path("plots/causal_curves.csv"), causal_plots.curve_frame(result["tasks"]))
        for name, figure in FIGURES.items():
            write_figure(Path(f"plots/causal_{name}.png"), figure(result["tasks"]))


def _tasks(
    stage: run.Stage, tracer: Tracer, config: CausalConfig, stream: Stream
) -> tuple[dict[str, dict[str, Task]], dict[str, dict[str, Kept]], dict[str, Any]]:
    """The tasks that have enough pairs in both splits; how many pairs all have; the pairs as JSON."""
    tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"].numpy()
    vocabulary = read_json(stage.input("data/tokenizer.json"))["vocabulary"]
    bounds = read_json(stage.input("data/corpus.json"))["splits"]
    tasks: dict[str, dict[str, Task]] = {}
    kept: dict[str, dict[str, Kept]] = {}
    for rule in causal_tasks.rules(tokens, vocabulary, bounds["train"][-1][1]):
        found = {
            name: causal_tasks.keep(
                rule,
                tokens,
                bounds[split],
                config.prompt_chars,
                config.pairs,
                stream.of(name, rule.name),
                tracer.answer,
            )
            for name, split in SPLITS.items()
        }
        kept[rule.name] = {name: counts for name, (_, counts) in found.items()}
        if min(counts.kept for counts in kept[rule.name].values()) >= config.min_pairs:
            tasks[rule.name] = {name: task for name, (task, _) in found.items()}
    return tasks, kept, causal_tasks.records(tasks, vocabulary)


def _bases(
    stage: run.Stage, hsae: HierarchicalSAE, x: Tensor, flat: list[str], clusters: list[str], stream: Stream
) -> dict[str, Basis]:
    """All ways in which the stream is taken apart, but those that a task makes itself."""
    bases, untrained = causal.hsae_bases(hsae), causal.hsae_bases(read_untrained_hsae(stage, x.device))
    bases |= {name: untrained[level] for level, name in UNTRAINED.items()}
    for name in flat:
        model = read_flat(stage, name, x.device)
        bases[f"flat {name}"] = causal.dictionary_basis(model.encode, model.W_dec)
    for name in clusters:
        found = read_clusters(stage, name, x.device)
        bases[name] = causal.dictionary_basis(lambda x, found=found: found.reconstruct(x)[0], found.centers)
    return {**bases, **rival_bases(x, stream)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--flat", nargs="*", default=[])
    parser.add_argument("--clusters", nargs="*", default=[])
    main(**vars(parser.parse_args()))
