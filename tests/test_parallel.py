"""Processes that train together come to what one comes to alone, and all of them to the same.

In double precision that is shown to the last digits. In single precision, in which the kernels compute, an activation
that lies within rounding of its threshold may fall on either side of it; that is rare, so one of two seeds must be free
of it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn

from hsae import curriculum, flat, gradients, kernels, parallel, training, variants
from hsae.dictionary import Activation, LatentConfig, Start
from hsae.files import read_tensors, write_tensors
from hsae.losses import Coefficients
from hsae.sae import SAE
from hsae.sharpening import Sharpening, phase1
from hsae.streams import Stream
from hsae.training import Curve, Phase, fit
from tests.rows import Rows
from tests.test_gradients import tokens

D, WIDTHS, STEPS = 12, (40, 20), 200
PHASE = Phase(epochs=4, batch_size=30, lr=1e-3, decay_fraction=0.2, anneal_fraction=0.1)
SHARPENING = Sharpening(epochs=1, batch_size=30, lr=1e-3, decay_fraction=0.2, anneal_fraction=0.0, price=5.0)
C = Coefficients(
    beta1=0.05, beta2=0.1, lambda_cos=0.5, gamma_group=0.01, weight_coverage=1.5,
    weight_x_from_h1=1.0, weight_h1_from_h2=8.0, weight_x_from_h2=4.0, level1_grad_scale=0.3,
)  # fmt: skip
LATENTS = LatentConfig(Activation.topk, k1=4, k2=3, dead_tokens=1000, init_level2=Start.data, init_tokens=256)
BURIED = 5  # latents that are dead from the start, to be revived

Result = dict[str, Tensor]


def data(dtype: torch.dtype) -> Rows:
    return Rows(tokens(1500, D).to(dtype))


def bury(level: SAE) -> None:
    """Make some latents dead."""
    level.b_enc.data[:BURIED] = -10.0
    level.idle_tokens[:BURIED] = 10**6


def level1(kind: str, seed: int) -> SAE:
    torch.manual_seed(seed)
    model = variants.build(kind, D, WIDTHS[0], k=LATENTS.k1, beta=C.beta1)
    model.init_from_data(tokens(200, D, seed=1))
    return model


def train_flat(kind: str, dtype: torch.dtype, seed: int) -> tuple[Curve, nn.Module]:
    model = level1(kind, seed)
    bury(model.to(dtype))
    steered = flat.SteeredGradients(model, 4.0)
    return fit(kind, model, data(dtype), steered, PHASE, Stream(seed + 1, "test"), LATENTS.dead_tokens), model


def train_level1(kind: str, dtype: torch.dtype, seed: int) -> tuple[Curve, nn.Module]:
    model = level1(kind, seed)
    bury(model.to(dtype))
    return phase1(model, data(dtype), C, PHASE, SHARPENING, LATENTS.dead_tokens, Stream(seed + 1, "test")), model


def train_both(kind: str, learns1: bool, dtype: torch.dtype, seed: int) -> tuple[Curve, nn.Module]:
    latents = LatentConfig(**{**vars(LATENTS), "activation": Activation(kind)})
    model = curriculum.stack(
        level1(kind, seed), WIDTHS[1], data(torch.float32), C.beta2, latents, Stream(seed + 1, "test")
    ).to(dtype)
    bury(model.level2)
    train = curriculum.phase3 if learns1 else curriculum.train_level2
    return train(model, data(dtype), C, PHASE, LATENTS.dead_tokens, Stream(seed + 1, "test")), model


CASES: dict[str, Callable[[torch.dtype, int], tuple[Curve, nn.Module]]] = {
    **{f"flat {kind}": partial(train_flat, kind) for kind in variants.VARIANTS if kind != "threshold"},
    "phase 1 jumprelu": partial(train_level1, "jumprelu"),
    "phase 2 jumprelu": partial(train_both, "jumprelu", False),
    **{f"phase 3 {kind}": partial(train_both, kind, True) for kind in ("jumprelu", "batchtopk")},
}
BY_HAND, AUTOGRAD = torch.float32, torch.float64
RUNS = [(BY_HAND, 0), (BY_HAND, 1), (AUTOGRAD, 0)]


def train(case: str, dtype: torch.dtype, seed: int) -> Result:
    """The loss of every step, and what the model is in the end."""
    with mock.patch.object(training, "LOG_POINTS", STEPS):
        curve, model = CASES[case](dtype, seed)
    losses = torch.tensor([row["loss"] for row in curve], dtype=torch.float64)
    return {"losses": losses, "revived": torch.tensor([row["revived"] for row in curve]).sum(), **model.state_dict()}


def train_briefly(dtype: torch.dtype) -> Result:
    """An epoch of phase 3."""
    with mock.patch.dict(globals(), PHASE=replace(PHASE, epochs=1)):
        return train("phase 3 batchtopk", dtype, 0)


def file(folder: str | Path, rank: int, *run: object) -> Path:
    return Path(folder) / f"{' '.join(map(str, run))} of {rank}.safetensors"


def train_all(rank: int, n: int, folder: str) -> None:
    """What each of two processes does."""
    join(rank, n, folder)
    for case in CASES:
        for dtype, seed in RUNS:
            write_tensors(file(folder, rank, case, dtype, seed), train(case, dtype, seed))
    dist.destroy_process_group()


def train_repeatedly(rank: int, n: int, folder: str) -> None:
    """What each of three processes does."""
    join(rank, n, folder)
    for time in range(2):
        write_tensors(file(folder, rank, time), train_briefly(BY_HAND))
    write_tensors(file(folder, rank, "double"), train_briefly(AUTOGRAD))
    dist.destroy_process_group()


def exchange(rank: int, n: int, folder: str) -> None:
    """What each of two processes does that train nothing."""
    join(rank, n, folder)
    x = torch.arange(12.0).view(6, 2)
    assert parallel.share(x).tolist() == x[3 * rank : 3 * rank + 3].tolist()
    assert parallel.total(torch.tensor([1, 10 * rank])).tolist() == [2, 10]
    assert parallel.first_says(7 + rank) == 7
    parts, computed = torch.arange(10.0).split(4), []
    results = list(parallel.in_turn(lambda part: computed.append(part.tolist()) or part[::2, None] + rank, parts))
    assert [result[:, 0].tolist() for result in results] == [[0, 2], [5, 7], [8]]
    assert computed == [[[0, 1, 2, 3], [8, 9]], [[4, 5, 6, 7], [8, 9]]][rank]
    values = torch.tensor([[3.0, 1.0, 2.0], []][rank])
    assert parallel.gathered(values, 5).tolist() == [3, 1, 2]
    assert sorted(parallel.gathered(values, 2).tolist()) == [2, 3]
    assert parallel.gathered(values[:0], 2).tolist() == []
    with pytest.raises(ValueError, match=r"^`batch_size` must be a multiple of `processes` \(=2\); not 3\.$"):
        parallel.check_batch(3)
    model = nn.Linear(2, 1)
    model.weight.data.fill_(1.0)
    model.bias.data.fill_(0.0)
    parallel.check_alike(model)
    model.weight.data[0, 0] += rank * 2.0**-23
    with pytest.raises(ValueError, match="the processes have come apart: machines must be of one kind"):
        parallel.check_alike(model)
    dist.destroy_process_group()


def join(rank: int, n: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=n)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have trained everything together."""
    path = tmp_path_factory.mktemp("ranks")
    spawn(train_all, (2, str(path)), nprocs=2)
    return path


def of_all(folder: Path, n: int, *run: object) -> Result:
    """What all processes came to; they must agree to the bit."""
    first, *others = (read_tensors(file(folder, rank, *run))[0] for rank in range(n))
    for other in others:
        check_equal(first, other)
    return first


def check_equal(first: Result, second: Result) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def drift(together: Result, alone: Result) -> float:
    """By how much a loss is another one, relatively, at the most."""
    return float((together["losses"] / alone["losses"] - 1).abs().max())


@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_losses_of_one_at_every_step_to_all_digits(case: str, folder: Path):
    together, alone = of_all(folder, 2, case, AUTOGRAD, 0), train(case, AUTOGRAD, 0)
    assert len(alone["losses"]) == (STEPS if "phase 1" not in case else STEPS + 50)
    assert together["revived"] == alone["revived"] >= BURIED
    assert drift(together, alone) < 1e-12
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.skipif(kernels.library() is None, reason="kernels.cpp could not be compiled here")
@pytest.mark.parametrize("case", CASES)
def test_by_hand_too_two_processes_have_the_losses_of_one(case: str, folder: Path):
    assert gradients.by_hand(level1("topk", 0))
    drifts = [drift(of_all(folder, 2, case, BY_HAND, seed), train(case, BY_HAND, seed)) for seed in (0, 1)]
    assert min(drifts) < 1e-5


def test_three_processes_agree_repeat_to_the_bit_and_have_the_losses_of_one(tmp_path: Path):
    spawn(train_repeatedly, (3, str(tmp_path)), nprocs=3)
    check_equal(of_all(tmp_path, 3, 0), of_all(tmp_path, 3, 1))
    assert drift(of_all(tmp_path, 3, "double"), train_briefly(AUTOGRAD)) < 1e-12


def test_what_processes_exchange(tmp_path: Path):
    spawn(exchange, (2, str(tmp_path)), nprocs=2)


def test_one_process_exchanges_nothing():
    x = torch.arange(6.0).view(3, 2)
    assert parallel.size() == 1
    assert parallel.share(x).tolist() == x.tolist()
    assert parallel.total(x) is x
    assert parallel.gathered(x[:, 0], 1).tolist() == [0, 2, 4]
    assert parallel.averaged(nn.Linear(2, 1), {"a": x}) == {"a": x}
