"""A training that was killed, and went on from its checkpoints, gives the same bits as one that was let alone."""

import itertools
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hsae import controls, curriculum, flat, gradients, two_level, variants
from hsae.activations import Store
from hsae.checkpoint import NOWHERE, Checkpoints
from hsae.controls import Training
from hsae.dictionary import Activation, DictionaryConfig, LatentConfig, Start
from hsae.gpt import GPT, GPTConfig
from hsae.language_model import TransformerConfig, train
from hsae.losses import Coefficients
from hsae.sharpening import Sharpening, phase1
from hsae.streams import Stream
from hsae.training import Phase, fit
from tests.project import Project
from tests.rows import Rows
from tests.torture import killed_and_resumed, make_frequent, start, wait_for_a_checkpoint

PHASE = Phase(epochs=3, batch_size=64, lr=1e-2, decay_fraction=0.2, anneal_fraction=0.3)
SHARPENING = Sharpening(epochs=1.5, batch_size=64, lr=1e-2, decay_fraction=0.2, anneal_fraction=0.0, price=5.0)
LATENTS = LatentConfig(Activation.relu, k1=4, k2=2, dead_tokens=100, init_level2=Start.data, init_tokens=128)
C = Coefficients(
    beta1=0.01, beta2=0.02, lambda_cos=0.01, gamma_group=0.001, weight_coverage=0.1, weight_x_from_h1=1.0,
    weight_h1_from_h2=1.0, weight_x_from_h2=1.0, level1_grad_scale=0.1,
)  # fmt: skip
ROWS = Rows(torch.randn(512, 6, generator=torch.Generator().manual_seed(0)))
TRANSFORMER = TransformerConfig(
    seed=0, n_layer=1, n_head=1, d_model=8, context=8, dropout=0.3, batch_size=4, steps=40, lr=1e-2,
    final_lr_fraction=0.1, warmup_steps=10, weight_decay=0.1, adam_beta2=0.99, grad_clip=1.0, eval_interval=7,
    eval_windows=8, sample_chars=4,
)  # fmt: skip

Result = tuple[dict[str, Tensor], list]
"""Tensors of the trained model, and curves."""


class Killed(BaseException):
    """In place of SIGKILL."""


class Killing(Checkpoints):
    """Checkpoints of every third step, whose process is killed after the step `at`."""

    def __init__(self, folder: Path | None, at: int, steps: Iterator[int] | None = None, label: str = ""):
        super().__init__(folder, label)
        self.at, self.steps = at, steps or itertools.count(1)

    def of(self, label: str) -> "Killing":
        return Killing(super().of(label).folder, self.at, self.steps, label)

    def due(self) -> bool:
        step = next(self.steps)
        if step == self.at:
            raise Killed
        return step % 3 == 0


def check_resume(run: Callable[[Checkpoints], Result], folder: Path, seed: str) -> None:
    """Kill a run again and again, until it is done, and compare it with one that is let alone."""
    tensors, curves = run(NOWHERE)
    draw = random.Random(seed)
    kills, result = 0, None
    while not result:
        torch.manual_seed(kills)  # nothing may depend on what this process has drawn before
        try:
            result = run(Killing(folder, at=draw.randint(4, 16)))
        except Killed:
            kills += 1
    assert kills
    again, again_curves = result
    assert again_curves == curves
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(again[name], tensor), name


@pytest.fixture(params=["by hand", "autograd"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How gradients are computed."""
    if request.param == "autograd":
        for module in (gradients, two_level):
            monkeypatch.setattr(module, "by_hand", lambda _: False)
    return request.param


@pytest.mark.parametrize("kind", variants.VARIANTS)
def test_a_flat_autoencoder_with_its_steering_and_its_revivals(kind: str, way: str, tmp_path: Path):
    def run(checkpoints: Checkpoints) -> Result:
        torch.manual_seed(0)
        model = flat.drawn(kind, 6, 12, 2.0, 0.01, Stream(3, "weights"))
        model.b_enc.data[:3] = -100.0
        steered = flat.SteeredGradients(model, 2.0)
        curve = fit(f"flat_baseline/{kind}", model, ROWS, steered, PHASE, Stream(3, "test"), 100, checkpoints)
        assert sum(row["revived"] for row in curve) >= 2
        return model.state_dict(), [curve]

    check_resume(run, tmp_path, f"{kind} {way}")


@pytest.mark.parametrize("kind", list(Activation))
def test_the_phases_of_an_hsae(kind: Activation, way: str, tmp_path: Path):
    latents = replace(LATENTS, activation=kind)

    def run(checkpoints: Checkpoints) -> Result:
        torch.manual_seed(0)
        level1 = variants.build(kind, 6, 12, k=4, beta=C.beta1)
        level1.b_enc.data[:3] = -100.0
        first = phase1(level1, ROWS, C, PHASE, SHARPENING, 100, Stream(3, "test"), checkpoints)
        model, second = curriculum.phase2(level1, 5, ROWS, C, PHASE, latents, Stream(3, "test"), checkpoints)
        third = curriculum.phase3(model, ROWS, C, PHASE, 100, Stream(3, "test"), checkpoints)
        return model.state_dict(), [first, second, third]

    check_resume(run, tmp_path, f"{kind} {way}")


def test_a_relu_autoencoder_that_has_gone_from_dense_products_to_entries(tmp_path: Path):
    def run(checkpoints: Checkpoints) -> Result:
        torch.manual_seed(0)
        model = variants.build("relu", 6, 32, k=1, beta=1.0)
        computed = gradients.level_gradients(model)
        phase = replace(PHASE, epochs=8)
        curve = fit("phase1", model, ROWS, computed, phase, Stream(3, "test"), 0, checkpoints)
        if isinstance(computed, gradients.ReLUGradients):
            assert computed.active < gradients.SPARSE
        return model.state_dict(), [curve]

    check_resume(run, tmp_path, "relu")


def test_a_control_whose_decoders_are_held(store: Store, tmp_path: Path):
    phases = {"phase1": PHASE, "sharpening": SHARPENING, "phase2": PHASE, "phase3": PHASE}
    settings = Training(C, replace(LATENTS, init_tokens=64), DictionaryConfig(1, 2.0, 0.5), **phases)  # pyright: ignore

    def run(checkpoints: Checkpoints) -> Result:
        return controls.train(store, settings, True, Stream(0, "test"), checkpoints).state_dict(), []

    check_resume(run, tmp_path, "control")


def test_the_transformer_with_dropout(tmp_path: Path):
    text = torch.randint(3, (240,), generator=torch.Generator().manual_seed(0))
    ranges, choosing = torch.tensor([[0, 100], [100, 240]]), text[:81].unfold(0, 9, 8)

    def run(checkpoints: Checkpoints) -> Result:
        torch.manual_seed(0)
        model = GPT(GPTConfig(1, 1, 8, 8, TRANSFORMER.dropout), 3)
        trained = train(model, text, ranges, choosing, TRANSFORMER, Stream(0, "test"), checkpoints)
        return trained.model.state_dict(), [trained.curve, trained.best]

    check_resume(run, tmp_path, "transformer")


def test_a_training_that_is_done_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def run(gradients: Callable) -> list:
        torch.manual_seed(0)
        model = variants.build("topk", 6, 12, k=4, beta=0.0)
        return fit("phase1", model, ROWS, gradients(model), PHASE, Stream(3, "test"), 0, Checkpoints(tmp_path))

    def never(_: Tensor) -> dict[str, Tensor]:
        raise AssertionError

    curve = run(gradients.level_gradients)
    assert run(lambda _: never) == curve
    assert "phase1: going on from step 24\n" in capsys.readouterr().out


def test_a_stage_that_is_killed_and_run_again_writes_the_same_bytes(tmp_path: Path):
    project = Project.create(tmp_path / "project", tmp_path / "site")
    project.set_params({"train_transformer": {"steps": 200, "dropout": 0.1}})
    make_frequent(project)
    project.run("dvc", "repro", "train_transformer")
    expected = project.digests("models", "metrics", "plots")
    shutil.rmtree(project.path / "models")
    assert "going on from step" in killed_and_resumed(project, "train_transformer")
    assert project.digests("models", "metrics", "plots") == expected
    assert not list((project.path / ".ckpt/train_transformer").iterdir())


def test_an_extraction_that_is_killed_and_run_again_keeps_the_blocks_that_it_had(tmp_path: Path):
    project = Project.create(tmp_path / "project", tmp_path / "site")
    project.set_params({"extract_activations": {"train_tokens": 45_000, "block_tokens": 32}})
    for module in ("prepare_data", "train_transformer"):
        assert project.stage(module).returncode == 0
    with start(project, ["python", "-m", "stages.extract_activations"]) as process:
        wait_for_a_checkpoint(project, "extract_activations", process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    kept = {path.name: path.stat().st_ino for path in project.path.glob(".ckpt/*/*/train/0*.safetensors")}
    assert 0 < len(kept) < 1406
    assert project.stage("extract_activations").returncode == 0
    train = project.path / "data/activations/train"
    assert {name: (train / name).stat().st_ino for name in kept} == kept
    resumed = project.digests("data/activations")
    assert len(resumed) == 1406 + 4
    assert project.stage("extract_activations").returncode == 0
    assert project.digests("data/activations") == resumed


def test_a_temporary_experiment_that_is_killed_and_run_again_goes_on(tmp_path: Path):
    project = Project.create(tmp_path / "project", tmp_path / "site")
    project.set_params({"train_transformer": {"steps": 200, "dropout": 0.1}})
    make_frequent(project)
    project.commit()
    command = ["dvc", "exp", "run", "--temp", "train_transformer"]
    with start(project, command) as process:
        wait_for_a_checkpoint(project, "train_transformer", process)
        os.killpg(process.pid, signal.SIGKILL)
    assert "train_transformer: going on from step" in project.run(*command)
