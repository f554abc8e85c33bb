"""The trained HSAE on a split -> metrics/hsae.json: both levels as dictionaries, and its parent-child graph.

Beside it stands `untrained`: what the same HSAE scores at its start. The edges, which other stages show, are those on
the test split, whatever the HSAE is evaluated on.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from hsae import graph, hierarchical, hierarchy, run
from hsae.activations import Store
from hsae.dictionary import DictionaryConfig
from hsae.evaluation import EvaluationConfig, Reconstruction, Split, evaluate
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
        transformer = read_transformer(stage, device)
        models = {"hsae": read_hsae(stage, device), "untrained": read_untrained_hsae(stage, device)}
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"]
        split = stage.params(EvaluationConfig, "evaluate").split
        val, scored = (read_store(stage, name, device) for name in ("val", split))
        methods = {f"{name}/{level}": own for name, model in models.items() for level, own in _levels(model).items()}
        measured = evaluate(transformer, scored, tokens, methods)
        write_tensors(Path("data/contexts/hsae.safetensors"), measured.tensors())
        found: dict[str, dict[str, Any]] = {}
        for name, model in models.items():
            own: dict[str, Any] = {level: measured.methods[f"{name}/{level}"] for level in ("level1", "level2")}
            own["level2"]["fvu_h1"] = hierarchical.validate(model, scored.batches())["level2"]["fvu_h1"]
            own["hierarchy"] = _hierarchy(model, val, scored, stream.of("shifts and draws", name))
            found[name] = own
        samples = hierarchy.samples(*(store.activations.offsets.numpy() for store in (val, scored)), split=split.value)
        write_json(Path("metrics/hsae.json"), {**found["hsae"], "untrained": found["untrained"], "samples": samples})
        test = scored if split == Split.test else read_store(stage, Split.test, device)
        edges = graph.edges(graph.measure(models["hsae"], test.batches()))
        write_csv(Path("plots/edges.csv"), edges.drop_duplicates("child"))


def _levels(model: HierarchicalSAE) -> dict[str, Callable[[Tensor], Reconstruction]]:
    return {"level1": model.reconstruct_from_h1, "level2": model.reconstruct_from_h2}


def _hierarchy(model: HierarchicalSAE, val: Store, scored: Store, stream: Stream) -> dict[str, float | None]:
    """What the graph on a split is like, with parents that the validation split chose."""
    by_val, by_scored = (graph.measure(model, store.batches()) for store in (val, scored))
    return hierarchy.summarize(by_val, by_scored, model.level1.W_dec, scored.context, stream)


if __name__ == "__main__":
    main()
