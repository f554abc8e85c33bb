"""Processes that train together come to what one comes to alone, and all of them to the same."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, multiprocessing
from torch import distributed as dist

from hsae import curriculum, flat, gradients, parallel, training, two_level, variants
from hsae.dictionary import Activation, LatentConfig, Start
from hsae.files import read_tensors, write_tensors
from hsae.hierarchical import HierarchicalSAE
from hsae.losses import Coefficients
from hsae.sharpening import Sharpening, phase1
from hsae.training import Curve, Phase, fit
from tests.rows import Rows
from tests.test_gradients import tokens

D, WIDTHS, STEPS = 20, (70, 35), 200
PHASE = Phase(epochs=4, batch_size=60, lr=1e-3, decay_fraction=0.2, anneal_fraction=0.1)
SHARPENING = Sharpening(epochs=1, batch_size=60, lr=1e-3, decay_fraction=0.2, anneal_fraction=0.0, price=5.0)
C = Coefficients(
    beta1=0.05, beta2=0.1, lambda_cos=0.5, gamma_group=0.01, weight_coverage=1.5,
    weight_x_from_h1=1.0, weight_h1_from_h2=8.0, weight_x_from_h2=4.0, level1_grad_scale=0.3,
)  # fmt: skip
ROWS = 3000
DEAD_TOKENS = 3000

Result = dict[str, Tensor]


def of(curve: Curve, model: torch.nn.Module) -> Result:
    return {
        "losses": torch.tensor([row["loss"] for row in curve], dtype=torch.float64),
        "revived": torch.tensor([row["revived"] for row in curve]).sum(),
        **model.state_dict(),
    }


def rows(dtype: torch.dtype) -> Rows:
    return Rows(tokens(ROWS, D).to(dtype))


def train_flat(kind: str, dtype: torch.dtype) -> Result:
    torch.manual_seed(0)
    model = flat.build(kind, D, WIDTHS[0], 5.0, 0.02)
    model.init_from_data(tokens(200, D, seed=1))
    model.b_enc.data[:7] = -10.0
    model.idle_tokens[:7] = 10**6
    model = model.to(dtype)
    return of(fit(kind, model, rows(dtype), flat.SteeredGradients(model, 5.0), PHASE, 3, DEAD_TOKENS), model)


def level1(kind: str) -> variants.SAE:
    torch.manual_seed(0)
    model = variants.build(kind, D, WIDTHS[0], k=5, beta=C.beta1)
    model.init_from_data(tokens(200, D, seed=1))
    model.b_enc.data[:7] = -10.0
    model.idle_tokens[:7] = 10**6
    return model


def train_level1(kind: str, dtype: torch.dtype) -> Result:
    model = level1(kind).to(dtype)
    return of(phase1(model, rows(dtype), C, PHASE, SHARPENING, DEAD_TOKENS, 3), model)


def train_both(kind: str, dtype: torch.dtype, learns1: bool) -> Result:
    lower = level1(kind)
    lower.b_enc.data[:7] = 0.0
    latents = LatentConfig(Activation(kind), 5, 6, DEAD_TOKENS, Start.data, 256)
    model = curriculum.stack(lower, WIDTHS[1], rows(torch.float32), C.beta2, latents, 3).to(dtype)
    for level in (model.level1, model.level2):
        level.b_enc.data[:3] = -10.0
        level.idle_tokens[:3] = 10**6
    train = curriculum.phase3 if learns1 else curriculum.train_level2
    return of(train(model, rows(dtype), C, PHASE, DEAD_TOKENS, 3), model)


CASES: dict[str, Callable[[torch.dtype], Result]] = {
    **{f"flat {kind}": partial(train_flat, kind) for kind in variants.VARIANTS},
    **{f"phase 1 {kind}": partial(train_level1, kind) for kind in ("jumprelu", "batchtopk")},
    **{f"phase 2 {kind}": partial(train_both, kind, learns1=False) for kind in Activation},
    **{f"phase 3 {kind}": partial(train_both, kind, learns1=True) for kind in Activation},
}
WAYS = {"by hand": (True, torch.float32), "autograd": (False, torch.float32), "double": (False, torch.float64)}


def train(case: str, way: str) -> Result:
    by_hand, dtype = WAYS[way]
    with mock.patch.object(training, "LOG_POINTS", STEPS):
        if by_hand:
            return CASES[case](dtype)
        with mock.patch.object(gradients, "by_hand", lambda _: False), mock.patch.object(two_level, "by_hand", lambda _: False):
            return CASES[case](dtype)


def join(rank: int, n: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=n)


def run_rank(rank: int, n: int, folder: str) -> None:
    join(rank, n, folder)
    for case in CASES:
        for way in WAYS:
            write_tensors(Path(folder) / f"{case} {way} {rank}.safetensors", train(case, way))
    dist.destroy_process_group()


if __name__ == "__main__":
    import tempfile, time
    t = time.time()
    folder = tempfile.mkdtemp()
    multiprocessing.spawn(run_rank, (2, folder), nprocs=2)
    print("ranks", time.time() - t); t = time.time()
    torch.set_num_threads(1)
    for case in CASES:
        for way in WAYS:
            alone = train(case, way)
            a, b = (read_tensors(Path(folder) / f"{case} {way} {r}.safetensors")[0] for r in (0, 1))
            same = all(torch.equal(a[k], b[k]) for k in a)
            d = (a["losses"] / alone["losses"] - 1).abs()
            print(f"{case:20} {way:10} {len(d)} {same} drift {d.max():.1e} first {d[0]:.1e} loss {alone['losses'][0]:.3f}->{alone['losses'][-1]:.3f} revived {int(alone['revived'])} {int(a['revived'])}", flush=True)
    print("alone", time.time() - t)
