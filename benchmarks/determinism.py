"""What torch's deterministic algorithms cost: steps of the default run's trainings with them and without, in turns.

`filled` is as torch has them by default, with every new tensor filled, which hsae turns off. Run `dvc repro` first.
Argument: where to write the result.
"""

import contextlib
import copy
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from benchmarks.levels import Some
from benchmarks.training import THREADS, machine, measure, seconds, trained
from hsae import config, gpt, hierarchical, language_model, two_level
from hsae.data import context_starts, windows
from hsae.files import read_json, read_tensors, write_json
from hsae.language_model import TransformerConfig
from hsae.losses import Coefficients
from hsae.run import Stage, keep_memory
from hsae.streams import Stream
from hsae.training import Autograd
from stages.training_split import read_train

BATCH = 2048
STEPS = 8  # of each at a time
WAYS = {"without": ("default", False), "with": ("error", False), "filled": ("error", True)}


def transformer_steps() -> Callable[[], None]:
    """Steps of the transformer's training, each time from the same weights; 16 windows of 128 characters a step."""
    model = gpt.load(*read_tensors(Path("models/transformer.safetensors"))).requires_grad_(True)
    tokens = read_tensors(Path("data/tokens.safetensors"))[0]["tokens"]
    splits = read_json(Path("data/corpus.json"))["splits"]
    train, val = (torch.tensor(splits[name]) for name in ("train", "val"))
    c = replace(
        config.load(TransformerConfig, "train_transformer"),
        steps=STEPS, eval_interval=STEPS, eval_windows=1, warmup_steps=0, lr=1e-5,
    )  # fmt: skip

    choosing = windows(tokens, context_starts(val, c.context)[: c.eval_windows], c.context)

    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            language_model.train(model, tokens, train, choosing, c, Stream(0, "determinism/transformer"))

    return run


def trainings() -> Iterator[tuple[str, Callable[[], None]]]:
    """The default run's trainings: by hand, and phase 3 by autograd too."""
    c = config.load(Coefficients)
    tokens = Some(read_train(Stage("determinism"), torch.device("cpu")).first(STEPS * BATCH), STEPS * BATCH)
    yield "transformer", transformer_steps()
    model = hierarchical.load(*read_tensors(Path("models/phase3.safetensors")))
    for name in ("phase 2", "phase 3", "phase 3 by autograd"):
        both = copy.deepcopy(model)
        both.level1.requires_grad_(name != "phase 2")
        oracle = Autograd(both, lambda x, m=both: hierarchical.objective(m, x, c))
        yield name, trained(both, oracle if name.endswith("autograd") else two_level.gradients(both, c), tokens, BATCH)


def set_and_run(way: str, run: Callable[[], None]) -> None:
    """Take the steps in one of the `WAYS`."""
    mode, fill = WAYS[way]
    torch.set_deterministic_debug_mode(mode)
    torch.utils.deterministic.fill_uninitialized_memory = fill  # pyright: ignore[reportAttributeAccessIssue]
    run()


def main(result: str) -> None:
    """Measure and write."""
    torch.set_num_threads(THREADS)
    keep_memory()
    rows = []
    for name, run in trainings():
        timed = [(name, way, partial(seconds, partial(set_and_run, way, run))) for way in WAYS]
        found = measure(timed, BATCH, STEPS)
        rows += found
        print(pd.DataFrame(found).to_string(index=False), flush=True)
    write_json(Path(result), {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main(*sys.argv[1:])
