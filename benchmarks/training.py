"""Training steps of our autoencoders beside those of SAELens, dictionary_learning and sparsify, in one run.

Every method trains on the same tokens, with k = 32 or an L1 penalty, no auxiliary loss, and the step that its own
library takes. Each library runs in a process of its own, as its users run it, and they take turns, in another order in
every round; a figure is the median over rounds. The limit is what the matrix products cost alone, in the same run and
by the faster of torch's libraries: five for ReLU + L1, the encoder's for the sparse kinds. Arguments: where to write
the result and the plot.
"""

import contextlib
import io
import multiprocessing
import os
import platform
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import seaborn as sns
import torch
from torch import Tensor

from hsae import variants
from hsae.files import write_figure, write_json
from hsae.gradients import CHUNK, level_gradients, level_objective
from hsae.products import gram, product
from hsae.run import keep_memory
from hsae.streams import Stream
from hsae.training import Autograd, Gradients, Phase, Shuffled, Trainable, fit

SIZES = [(128, 1024), (256, 2048), (576, 4608)]
BATCHES = [1024, 4096, 8192]
KINDS = ["relu", "topk", "batchtopk", "matryoshka"]
K, BETA, LR = 32, 0.01, 1e-3
THREADS = 2
ROUND_BUDGET = 30.0  # seconds for the rounds of one size and batch
ROUNDS = (3, 31)  # at least and at most
PREFIXES = [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]

Step = Callable[[Tensor], object]
Method = tuple[str, str, Callable[[], None]]
"""Kind, library, and what takes some steps."""


def n_steps(d: int, d_sae: int, batch: int) -> int:
    """How many steps a method takes at a time: more where they are short, so that none is dominated by its start."""
    return min(max((1 << 34) // (d * d_sae * batch), 2), 16)


class Tokens:
    """Sparse combinations of four times more directions than dimensions, with noise."""

    def __init__(self, n: int, d: int):
        generator = torch.Generator().manual_seed(0)
        codes = torch.rand(n, 4 * d, generator=generator) * (torch.rand(n, 4 * d, generator=generator) < 0.02)
        noise = 0.1 * torch.randn(n, d, generator=generator)
        self.rows = (codes @ torch.randn(4 * d, d, generator=generator) + noise).contiguous()
        self.rows /= self.rows.std()

    def __len__(self) -> int:
        return len(self.rows)

    def x(self, rows: slice) -> Tensor:
        """Inputs at some rows."""
        return self.rows[rows]


def ours(kind: str, tokens: Tokens, d_sae: int, batch: int, by_hand: bool) -> Callable[[], None]:
    """Steps of `fit`."""
    torch.manual_seed(0)
    model = variants.build(kind, tokens.rows.shape[1], d_sae, k=K, beta=BETA)
    gradients = level_gradients(model) if by_hand else Autograd(model, lambda x: level_objective(model, x, 1.0))
    return trained(model, gradients, tokens, batch)


def trained(model: Trainable, gradients: Gradients, tokens: Shuffled, batch: int) -> Callable[[], None]:
    """Steps of `fit` on all tokens, on a model that goes on from call to call."""
    phase = Phase(1.0, batch, LR, 0.0, 0.0)

    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            fit("benchmark", model, tokens, gradients, phase, Stream(0, "benchmark"), dead_tokens=0)

    return run


def stepping(step: Step, tokens: Tokens, batch: int) -> Callable[[], None]:
    """A peer's steps on all tokens."""

    def run() -> None:
        for start in range(0, len(tokens), batch):
            step(tokens.rows[start : start + batch])

    return run


def sae_lens(kind: str, d: int, d_sae: int, batch: int) -> Step:
    """SAELens's trainer."""
    import sae_lens as library
    from sae_lens.training.sae_trainer import SAETrainer, SAETrainerConfig

    topk = {"k": K, "aux_loss_coefficient": 0.0}
    name, settings = {
        "relu": ("Standard", {"l1_coefficient": d * BETA}),
        "topk": ("TopK", topk),
        "batchtopk": ("BatchTopK", topk),
        "matryoshka": ("MatryoshkaBatchTopK", topk | {"matryoshka_widths": [d_sae // n for n in (16, 8, 4, 2, 1)]}),
    }[kind]
    config = getattr(library, f"{name}TrainingSAEConfig")(d_in=d, d_sae=d_sae, dtype="float32", **settings)
    sae = getattr(library, f"{name}TrainingSAE")(config)
    trainer = SAETrainer(SAETrainerConfig(10**9, batch, lr=LR, lr_end=LR), sae, iter([]))
    return trainer.step


def dictionary_learning(kind: str, d: int, d_sae: int, batch: int) -> Step:  # noqa: ARG001 (the peers' common signature)
    """dictionary_learning's trainer."""
    from importlib import import_module

    topk = {"k": K, "auxk_alpha": 0.0, "threshold_start_step": 0}
    module, name, settings = {
        "relu": ("standard", "StandardTrainer", {"l1_penalty": d * BETA, "sparsity_warmup_steps": None}),
        "topk": ("top_k", "TopKTrainer", topk),
        "batchtopk": ("batch_top_k", "BatchTopKTrainer", topk),
        "matryoshka": (
            "matryoshka_batch_top_k",
            "MatryoshkaBatchTopKTrainer",
            topk | {"group_fractions": PREFIXES, "group_weights": [1.0] * len(PREFIXES)},
        ),
    }[kind]
    trainer = getattr(import_module(f"dictionary_learning.trainers.{module}"), name)(
        layer=0, lm_name="", device="cpu", lr=LR, warmup_steps=0, steps=10**9, activation_dim=d, dict_size=d_sae,
        **settings,
    )  # fmt: skip
    return lambda x: trainer.update(1, x)


def sparsify(kind: str, d: int, d_sae: int, batch: int) -> Step | None:  # noqa: ARG001
    """A step as sparsify's trainer takes it, with Adam."""
    if kind != "topk":
        return None
    from sparsify import SparseCoder, SparseCoderConfig

    sae = SparseCoder(d, SparseCoderConfig(num_latents=d_sae, k=K))
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR, fused=True)

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        sae(x).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        sae.set_decoder_norm_to_unit_norm()

    return step


def products(d: int, d_sae: int, n: int, onednn: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    """The five matrix products of a dense step, and the encoder's alone, for n tokens, in chunks."""
    x, acts = torch.randn(CHUNK, d), torch.randn(CHUNK, d_sae)
    W_enc, W_dec = torch.randn(d, d_sae), torch.randn(d_sae, d)
    mm, transposed_mm = (product, gram) if onednn else (torch.mm, lambda a, b: torch.mm(a.T, b))

    def encoder() -> None:
        for _ in range(n // CHUNK):
            mm(x, W_enc)

    def dense() -> None:
        for _ in range(n // CHUNK):
            mm(x, W_enc)
            mm(acts, W_dec)
            mm(x, W_dec.T)
            transposed_mm(x, acts)
            transposed_mm(x, acts)

    return dense, encoder


def peer(make: Callable[[str, int, int, int], Step | None], d: int, d_sae: int, batch: int) -> Iterator[Method]:
    """A library's kinds; none, if it is not installed."""
    tokens = Tokens(n_steps(d, d_sae, batch) * batch, d)
    for kind in KINDS:
        with contextlib.suppress(ImportError):
            step = make(kind, d, d_sae, batch)
            if step is not None:
                yield kind, make.__name__, stepping(step, tokens, batch)


def hsae(d: int, d_sae: int, batch: int) -> Iterator[Method]:
    """Our kinds, by hand and by autograd, and the limits."""
    keep_memory()  # as in every stage
    tokens = Tokens(n_steps(d, d_sae, batch) * batch, d)
    for kind in KINDS:
        for name, by_hand in (("hsae", True), ("hsae, autograd", False)):
            yield kind, name, ours(kind, tokens, d_sae, batch, by_hand)
    for name, onednn in (("matrix products, MKL", False), ("matrix products, oneDNN", True)):
        dense, encoder = products(d, d_sae, len(tokens), onednn)
        yield "relu", name, dense
        yield "topk", name, encoder


LIBRARIES: dict[str, Callable[[int, int, int], Iterator[Method]]] = {
    "hsae": hsae,
    "sae_lens": partial(peer, sae_lens),
    "dictionary_learning": partial(peer, dictionary_learning),
    "sparsify": partial(peer, sparsify),
}


def serve(connection: Connection, library: str, size: tuple[int, int, int]) -> None:
    """What a library's process does: say what can be timed, then run what is asked for, and answer with seconds."""
    warnings.simplefilter("ignore")  # the peers' own
    torch.set_num_threads(THREADS)
    methods = list(LIBRARIES[library](*size))
    connection.send([(kind, method) for kind, method, _ in methods])
    while (index := connection.recv()) is not None:
        connection.send(seconds(methods[index][2]))


def seconds(run: Callable[[], None]) -> float:
    """Seconds that a run takes."""
    time.sleep(0.05)  # until the threads of the library before, which wait for more work, have gone to sleep
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(d: int, d_sae: int, batch: int) -> list[dict[str, Any]]:
    """All methods of all libraries at one size."""
    context, timed, served = multiprocessing.get_context("spawn"), [], []
    for library in LIBRARIES:
        here, there = context.Pipe()
        context.Process(target=serve, args=(there, library, (d, d_sae, batch)), daemon=True).start()
        served.append(here)

        def ask(index: int, connection: Connection = here) -> float:
            connection.send(index)
            return connection.recv()

        timed += [(*method, partial(ask, index)) for index, method in enumerate(here.recv())]
    found = measure(timed, batch, n_steps(d, d_sae, batch))
    for connection in served:
        connection.send(None)
    return found


def measure(timed: list[tuple[str, str, Callable[[], float]]], batch: int, steps: int) -> list[dict[str, Any]]:
    """Median milliseconds per step and tokens per second of what takes so many steps at a time, in turns."""
    for _, _, run in timed:
        run()
    found: list[list[float]] = [[] for _ in timed]
    start, rounds, order = time.perf_counter(), 0, random.Random(0)
    while rounds < ROUNDS[0] or (rounds < ROUNDS[1] and time.perf_counter() - start < ROUND_BUDGET):
        for index in order.sample(range(len(timed)), len(timed)):
            found[index].append(timed[index][2]() / steps)
        rounds += 1
    return [
        {"kind": kind, "method": method, "ms": 1e3 * median(own), "tokens_per_s": batch / median(own), "rounds": rounds}
        for (kind, method, _), own in zip(timed, found, strict=True)
    ]


def machine() -> dict[str, Any]:
    """What it is that is measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"processor": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Tokens per second of every library, a panel for each size, at batches of 4096."""
    shown = rows[(rows.batch == 4096) & ~rows.method.str.startswith("matrix")]
    shown = shown.assign(
        thousands=shown.tokens_per_s / 1000,
        size="d " + shown.d.astype(str) + ", " + shown.d_sae.astype(str) + " latents",
    )
    grid = sns.catplot(
        shown, x="thousands", y="kind", hue="method", col="size", kind="bar", palette="colorblind", sharex=False,
        height=4, aspect=0.8,
    )  # fmt: skip
    grid.set_titles("{col_name}")
    grid.set_axis_labels("thousand tokens per second", "")
    write_figure(path, grid.figure)


def main(result: str, plot: str) -> None:
    """Measure everything and write it."""
    os.environ["WANDB_MODE"] = "disabled"
    torch.set_num_threads(THREADS)
    rows = []
    for d, d_sae in SIZES:
        for batch in BATCHES:
            found = compare(d, d_sae, batch)
            rows += [{"d": d, "d_sae": d_sae, "batch": batch, **row} for row in found]
            print(pd.DataFrame(found).to_string(index=False), d, d_sae, batch, flush=True)
    write_json(Path(result), {"machine": machine(), "rows": rows})
    draw(pd.DataFrame(rows), Path(plot))


if __name__ == "__main__":
    main(*sys.argv[1:])
