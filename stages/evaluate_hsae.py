"""The trained HSAE on a split -> metrics/hsae.json: both levels as dictionaries, and its parent-child graph."""

from pathlib import Path
from typing import Any

from hsae import graph, hierarchical, run
from hsae.evaluation import EvaluationConfig, evaluate
from hsae.files import read_tensors, write_csv, write_json, write_tensors
from stages.files import read_store
from stages.trained import read_hsae
from stages.transformer import read_transformer


def main() -> None:
    """Run the stage."""
    with run.stage("evaluate_hsae") as stage:
        device = stage.device()
        model = read_transformer(stage, device)
        hsae = read_hsae(stage, device)
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"]
        test = read_store(stage, stage.params(EvaluationConfig, "evaluate").split, device)
        methods = {"hsae/level1": hsae.reconstruct_from_h1, "hsae/level2": hsae.reconstruct_from_h2}
        measured = evaluate(model, test, tokens, methods)
        write_tensors(Path("data/contexts/hsae.safetensors"), measured.tensors())
        metrics: dict[str, Any] = {path.split("/")[1]: own for path, own in measured.methods.items()}
        metrics["level2"]["fvu_h1"] = hierarchical.validate(hsae, test.batches())["level2"]["fvu_h1"]
        edges = graph.measure(hsae, test.batches())
        metrics["hierarchy"] = graph.summarize(edges, hsae.level1.W_dec)
        write_json(Path("metrics/hsae.json"), metrics)
        write_csv(Path("plots/edges.csv"), graph.edges(edges).drop_duplicates("child"))


if __name__ == "__main__":
    main()
