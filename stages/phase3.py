"""The whole HSAE, fine-tuned: level 1 now learns from level 2 as well."""

from hsae import hierarchical, run
from hsae.dictionary import DictionaryConfig
from hsae.files import read_tensors
from hsae.hierarchical import objective, validate
from hsae.losses import Coefficients
from hsae.training import Phase, fit
from stages.files import read_store, write_trained


def main() -> None:
    """Run the stage."""
    with run.stage("phase3") as stage:
        device = stage.device()
        phase = stage.params(Phase, "phase3")
        c = stage.params(Coefficients)
        seed = stage.params(DictionaryConfig).seed
        model = hierarchical.load(*read_tensors(stage.input("models/phase2.safetensors"))).to(device)
        train, val = (read_store(stage, split, device) for split in ("train", "val"))
        with stage.checkpoints():
            curve = fit("phase3", model, train, lambda x: objective(model, x, c), phase, seed)
        write_trained("phase3", model, model.header(), curve, validate(model, val.batches()))


if __name__ == "__main__":
    main()
