"""The same training on a GPU: the same to the bit when it is repeated, and as good as the CPU's."""

import copy
from collections.abc import Iterator

import pytest
import torch

from hsae import two_level
from hsae.gradients import level_gradients
from hsae.hierarchical import HierarchicalSAE
from hsae.sae import SAE
from hsae.streams import Stream
from hsae.training import Phase, fit
from hsae.variants import VARIANTS
from tests.rows import Rows
from tests.test_gradients import C, autoencoder, hsae, tokens
from tests.test_language_model import REPETITIVE, train_on

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_deterministic_debug_mode("default")


def losses(model: SAE | HierarchicalSAE, device: str) -> list[float]:
    """The loss over 200 steps of a copy on a device."""
    own = copy.deepcopy(model).to(device)
    gradients = level_gradients(own) if isinstance(own, SAE) else two_level.gradients(own, C)
    x = tokens(4096, 20).to(device)
    curve = fit("test", own, Rows(x), gradients, Phase(12.5, 256, 1e-3, 0.2, 0.1), Stream(0, "test"), dead_tokens=2000)
    return [row["loss"] for row in curve]


@pytest.mark.parametrize("kind", [*VARIANTS, "hsae"])
def test_training_repeats_to_the_bit_and_is_as_good_as_on_the_cpu(kind: str):
    model = hsae("jumprelu", frozen=False) if kind == "hsae" else autoencoder(kind, 20, 70)
    on_gpu = losses(model, "cuda")
    assert losses(model, "cuda") == on_gpu
    assert on_gpu == pytest.approx(losses(model, "cpu"), rel=0.05)


def test_the_transformer_learns_in_bfloat16():
    on_gpu = train_on(REPETITIVE, REPETITIVE, "cuda")
    assert train_on(REPETITIVE, REPETITIVE, "cuda").curve == on_gpu.curve
    on_cpu = train_on(REPETITIVE, REPETITIVE)
    assert on_gpu.best["val_loss"] == pytest.approx(on_cpu.best["val_loss"], rel=0.1, abs=0.02)
