"""The trained HSAE on the test split -> metrics/hsae.json: both levels as dictionaries, and its parent-child graph."""

from pathlib import Path

from hsae import gpt, graph, hierarchical, run
from hsae.evaluation import evaluate
from hsae.files import read_tensors, write_csv, write_json
from stages.files import read_store


def main() -> None:
    """Run the stage."""
    with run.stage("evaluate_hsae") as stage:
        device = stage.device()
        model = gpt.load(*read_tensors(stage.input("models/transformer.safetensors"))).to(device)
        hsae = hierarchical.load(*read_tensors(stage.input("models/phase3.safetensors"))).to(device)
        tokens = read_tensors(stage.input("data/tokens.safetensors"))[0]["tokens"]
        test = read_store(stage, "test", device)
        methods = {"level1": hsae.reconstruct_from_h1, "level2": hsae.reconstruct_from_h2}
        _, metrics = evaluate(model, test, tokens, methods)
        metrics["level2"]["fvu_h1"] = hierarchical.validate(hsae, test.batches())["level2"]["fvu_h1"]
        measured = graph.measure(hsae, test.batches())
        metrics["hierarchy"] = graph.summarize(measured, hsae.level1.W_dec)
        write_json(Path("metrics/hsae.json"), metrics)
        write_csv(Path("plots/edges.csv"), graph.edges(measured).drop_duplicates("child"))


if __name__ == "__main__":
    main()
