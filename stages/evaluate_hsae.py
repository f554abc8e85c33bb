"""The trained HSAE on a split -> metrics/hsae.json: both levels as dictionaries, and its parent-child graph.

Beside it stands `untrained`: what the same HSAE scores at its start.
"""

from pathlib import Path
from typing import Any

from hsae import graph, hierarchical, hierarchy, run
from hsae.activations import Store
from hsae.dictionary import DictionaryConfig
from hsae.evaluation import EvaluationConfig, evaluate
from hsae.files import read_tensors, write_csv, write_json, write_tensors
from hsae.hierarchical import HierarchicalSAE
from hsae.streams import Stream
from stages.files import read_store
from stages.trained import read_hsae, read_untrained_hsae
from stages.transformer import read_transformer


def main() -> None:
    """Run the stage."""
    with run.stage("evaluate_hsae") as stage:
        device = stage.device()
        stream = stage.params(DictionaryConfig).stream("evaluate_hsae")
        model = read_transformer(stage, device)
        hsae, untrained = read_hsae(stage, device), read_untrained_hsae(stage, device)
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"]
        split = stage.params(EvaluationConfig, "evaluate").split
        val, test = (read_store(stage, name, device) for name in ("val", split))
        methods = {"hsae/level1": hsae.reconstruct_from_h1, "hsae/level2": hsae.reconstruct_from_h2}
        measured = evaluate(model, test, tokens, methods)
        write_tensors(Path("data/contexts/hsae.safetensors"), measured.tensors())
        metrics: dict[str, Any] = {path.split("/")[1]: own for path, own in measured.methods.items()}
        metrics["level2"]["fvu_h1"] = hierarchical.validate(hsae, test.batches())["level2"]["fvu_h1"]
        edges, metrics["hierarchy"] = _hierarchy(hsae, val, test, stream.of("trained"))
        _, by_chance = _hierarchy(untrained, val, test, stream.of("untrained"))
        metrics["untrained"] = {**hierarchical.validate(untrained, test.batches()), "hierarchy": by_chance}
        metrics["samples"] = hierarchy.samples(*(store.activations.offsets.numpy() for store in (val, test)))
        write_json(Path("metrics/hsae.json"), metrics)
        write_csv(Path("plots/edges.csv"), graph.edges(edges).drop_duplicates("child"))


def _hierarchy(
    model: HierarchicalSAE, val: Store, test: Store, stream: Stream
) -> tuple[graph.Graph, dict[str, float | None]]:
    """The graph on the test split, and what it is like with parents that the validation split chose."""
    chosen, scored = (graph.measure(model, store.batches()) for store in (val, test))
    return scored, hierarchy.summarize(chosen, scored, model.level1.W_dec, test.context, stream)


if __name__ == "__main__":
    main()
