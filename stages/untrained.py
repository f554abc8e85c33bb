"""Autoencoders at their start, as sparse as the trained ones: what every evaluation scores by chance.

There are two HSAEs, whose weights have nothing in common: which latents of the one does the other seem to find again?
Arguments: the kinds of the flat ones, which are as wide as level 1.
"""

import sys
from pathlib import Path

from hsae import run, untrained
from hsae.dictionary import DictionaryConfig, LatentConfig
from hsae.files import read_json, write_tensors
from hsae.losses import Coefficients
from stages.training_split import read_train

FOLDER = Path("models/untrained")


def main(kinds: list[str]) -> None:
    """Run the stage."""
    with run.stage("untrained") as stage:
        device = stage.device()
        beta2 = stage.params(Coefficients).beta2
        dictionary, latents = stage.params(DictionaryConfig), stage.params(LatentConfig)
        train, stream = read_train(stage, device), dictionary.stream("untrained")
        widths = dictionary.widths(train.d_in)
        l0s = tuple(read_json(stage.input(f"models/l0/level{level}.json"))["l0"] for level in (1, 2))
        x = train.x(slice(0, latents.init_tokens))
        models = {
            "hsae": untrained.hierarchical(widths, l0s, train, beta2, latents, stream),
            "other_hsae": untrained.hierarchical(widths, l0s, train, beta2, latents, stream.of("other")),
        }
        models |= {kind: untrained.flat(kind, widths[0], l0s[0], x, stream.of(f"weights of {kind}")) for kind in kinds}
        for name, model in models.items():
            write_tensors(FOLDER / f"{name}.safetensors", model.state_dict(), model.header())


if __name__ == "__main__":
    main(sys.argv[1:])
