"""The whole HSAE, fine-tuned: level 1 now learns from level 2 as well."""

from pathlib import Path

from hsae import hierarchical, run
from hsae.checkpoint import Checkpoints
from hsae.curriculum import phase3
from hsae.dictionary import DictionaryConfig, LatentConfig
from hsae.files import read_tensors, write_json
from hsae.hierarchical import validate
from hsae.losses import Coefficients
from hsae.processes import leads, start, together
from hsae.training import Phase
from stages.files import read_store, write_trained
from stages.training_split import read_train


def main() -> None:
    """Run the stage."""
    with run.stage("phase3") as stage:
        device = stage.device()
        phase = stage.params(Phase, "phase3")
        c = stage.params(Coefficients)
        stream = stage.params(DictionaryConfig).stream("phase3")
        dead_tokens = stage.params(LatentConfig).dead_tokens_later
        start(stage, device)
        model = hierarchical.load(*read_tensors(stage.input("models/phase2.safetensors"))).to(device)
        train, val = read_train(stage, device), read_store(stage, "val", device)

        with together(stage, device) as folder:
            curve = phase3(model, train, c, phase, dead_tokens, stream, Checkpoints(folder))
            if leads():
                metrics = validate(model, val.batches())
                write_trained("phase3", model, model.header(), curve, metrics)
                for level, values in metrics.items():
                    # In whole latents: the flat rivals train again only when the HSAE's sparsity really changes.
                    write_json(Path(f"models/l0/{level}.json"), {"l0": max(round(values["l0"]), 1)})


if __name__ == "__main__":
    main()
