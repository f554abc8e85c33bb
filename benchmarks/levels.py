"""A flat step and steps of phases 2 and 3, by hand and by autograd, on the pipeline's activations and trained HSAE.

Run `dvc repro` first. Argument: where to write the result.
"""

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from benchmarks.training import THREADS, Method, machine, measure, seconds, trained
from hsae import config, hierarchical, two_level, variants
from hsae.files import read_tensors, write_json
from hsae.gradients import level_gradients, level_objective
from hsae.losses import Coefficients
from hsae.run import Stage, keep_memory
from hsae.training import Autograd, Shuffled
from stages.training_split import read_train

BATCHES = [2048, 4096]
STEPS = 16  # of each at a time


class Some:
    """The first rows of a store that is in memory."""

    def __init__(self, store: Shuffled, n: int):
        self.store, self.n = store, n

    def __len__(self) -> int:
        return self.n

    def x(self, rows: slice) -> Tensor:
        """Inputs at some rows."""
        return self.store.x(rows)


def methods(batch: int, tokens: Shuffled) -> Iterator[Method]:
    """What is trained, how its gradients are computed, and what is timed."""
    c = config.load(Coefficients)
    plain = replace(c, lambda_cos=0.0, gamma_group=0.0)
    model = hierarchical.load(*read_tensors(Path("models/phase3.safetensors")))
    relu = variants.build("relu", model.level1.d_in, model.level1.d_sae, k=1, beta=c.beta1)
    for method in ("by hand", "autograd"):
        by_hand = method == "by hand"
        for name, flat in (("flat JumpReLU", model.level1), ("flat ReLU + L1", relu)):
            own = copy.deepcopy(flat)
            oracle = Autograd(own, lambda x, m=own: level_objective(m, x, 1.0))
            yield name, method, trained(own, level_gradients(own) if by_hand else oracle, tokens, batch)
        for name, k in (("phase 2", c), ("phase 3", c), ("phase 3 without structure terms", plain)):
            both = copy.deepcopy(model)
            both.level1.requires_grad_(name != "phase 2")
            oracle = Autograd(both, lambda x, m=both, k=k: hierarchical.objective(m, x, k))
            yield name, method, trained(both, two_level.gradients(both, k) if by_hand else oracle, tokens, batch)


def main(result: str) -> None:
    """Measure and write."""
    torch.set_num_threads(THREADS)
    keep_memory()
    tokens = read_train(Stage("levels"), torch.device("cpu")).first(STEPS * max(BATCHES))
    rows = []
    for batch in BATCHES:
        timed = [(kind, name, partial(seconds, run)) for kind, name, run in methods(batch, Some(tokens, STEPS * batch))]
        found = measure(timed, batch, STEPS)
        rows += [{"batch": batch, **row} for row in found]
        print(pd.DataFrame(found).to_string(index=False), batch, flush=True)
    write_json(Path(result), {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main(*sys.argv[1:])
