"""Our kinds of autoencoder against those of the field's libraries, SAELens and dictionary_learning.

From the same weights, on the same batches, `fit` and the peer's own trainer must give the same losses at all of 50
steps, and the same weights after them, in float64. Needs the extra `peers`; a peer that is not installed is skipped.

The peers are set up as we are: no warm-up, no gradient clipping, no auxiliary loss for dead latents, our learning rate
and Adam's betas, b_dec subtracted from the input. What no setting of theirs can say is said where they are built. Their
error is a sum over coordinates, ours a mean, and so their loss is a multiple of ours; Adam takes the same steps on both
if its epsilon is the same multiple.

Data whose features are known, and the scores that both define on them, are compared with sae_lens.synthetic.
"""

import dataclasses
from types import ModuleType
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from hsae import recovery, synthetic
from hsae.sae import SAE
from hsae.streams import Stream
from hsae.synthetic import Forest, SyntheticConfig, SyntheticData
from hsae.training import Autograd, Phase, fit
from hsae.variants import BatchTopKSAE, JumpReLUSAE, ThresholdSAE, build
from tests.rows import Rows

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' own

D_IN, D_SAE, K, BETA = 16, 64, 4, 0.05
N_STEPS, BATCH_SIZE, LR, ADAM_EPS = 50, 64, 0.003, 1e-8
THRESHOLD = (2 * BETA) ** 0.5
WIDTHS = [4, 8, 16, 32, 64]
WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")

Losses = dict[str, float]


@pytest.fixture(autouse=True)
def without_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both peers clip the gradient's norm to 1, whatever their settings."""
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens() -> Tensor:
    """Sparse combinations of more directions than dimensions, off the origin."""
    codes = normal(N_STEPS * BATCH_SIZE, 40, seed=0).sub(1).relu()
    return codes @ normal(40, D_IN, seed=1) + 0.3 * normal(D_IN, seed=2)


@torch.no_grad()
def ours(kind: str) -> SAE:
    """An autoencoder with weights as training leaves them: no tie, no zero bias."""
    model = build(kind, D_IN, D_SAE, k=K, beta=BETA).double()
    model.beta.fill_(BETA)
    for seed, parameter in enumerate(model.parameters()):
        parameter.copy_(normal(*parameter.shape, seed=10 + seed) / 10)
    model.W_dec.copy_(normal(D_SAE, D_IN, seed=3))
    model.constrain()
    model.W_enc.add_(model.W_dec.T)
    return model


class Peer(Protocol):
    """A peer's autoencoder in training, in our terms."""

    tolerance: float

    def step(self, x: Tensor) -> Losses:
        """Take a step of the optimizer; the terms of the loss before it."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Its parameters under our names and in our shapes."""
        ...


def train(model: SAE, peer: Peer) -> tuple[list[Losses], list[Losses], list[Tensor]]:
    """The terms of our loss and of the peer's at every step, and the batches."""
    batches = []

    def objective(x: Tensor) -> dict[str, Tensor]:
        batches.append(x)
        out = model(x)
        return {"error": model.error(x, out), "sparsity": model.sparsity(out, D_IN)}

    phase = Phase(epochs=1, batch_size=BATCH_SIZE, lr=LR, decay_fraction=0.0, anneal_fraction=0.0)
    curve = fit("peers", model, Rows(tokens()), Autograd(model, objective), phase, Stream(0, "test"), dead_tokens=0)
    assert len(curve) == len(batches) == N_STEPS
    return curve, [peer.step(x) for x in batches], batches


def check_same(model: SAE, peer: Peer) -> None:
    """Train both and compare; the peer has been built from the model."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    curve, peers_curve, _ = train(model, peer)
    for row, expected in zip(curve, peers_curve, strict=True):
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=peer.tolerance)
    expected_weights = peer.weights()
    assert set(expected_weights) == set(before)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.data, expected_weights[name], rtol=peer.tolerance, atol=peer.tolerance)
        assert not parameter.requires_grad or (parameter.data - before[name]).abs().max() > 0.01
    assert curve[-1]["error"] < 0.8 * curve[0]["error"]


class Exp(nn.Module):
    """Parametrisation of a tensor by its logarithm."""

    def forward(self, log: Tensor) -> Tensor:
        return log.exp()

    def right_inverse(self, value: Tensor) -> Tensor:
        return value.log()


TOPK = {"k": K, "aux_loss_coefficient": 0.0}
SAE_LENS = {
    "relu": ("Standard", {"l1_coefficient": D_IN * BETA}),
    "topk": ("TopK", TOPK),
    "batchtopk": ("BatchTopK", TOPK),
    "matryoshka": ("MatryoshkaBatchTopK", TOPK | {"matryoshka_widths": WIDTHS}),
    "threshold": ("JumpReLU", {"l0_coefficient": 0.0}),
    "jumprelu": ("JumpReLU", {"l0_coefficient": 2 * BETA}),
}


class SAELens:
    """SAELens's model and trainer, from our weights.

    Its decoder has no constraint: the gradient's part along the rows is dropped by a hook, and the rows are normalised
    after each step. Its thresholds are parameters themselves, in float32: they are made exponentials of parameters. Its
    kernel has one width, and forever: before each step it is given ours, relative to each latent's threshold.
    """

    tolerance = 1e-8

    def __init__(self, model: SAE):
        library = pytest.importorskip("sae_lens")
        name, settings = SAE_LENS[model.kind]
        config = getattr(library, f"{name}TrainingSAEConfig")(d_in=D_IN, d_sae=D_SAE, dtype="float64", **settings)
        self.sae = getattr(library, f"{name}TrainingSAE")(config)
        for own in WEIGHTS:
            getattr(self.sae, own).data.copy_(model.get_parameter(own).data)
        self.sae.W_dec.register_post_accumulate_grad_hook(drop_gradient_along_rows)
        self.log_threshold = self.take_thresholds(model) if isinstance(model, ThresholdSAE) else None
        # Its loss of a Matryoshka autoencoder is the sum over the prefixes, ours the mean.
        self.scale = D_IN * (len(WIDTHS) if model.kind == "matryoshka" else 1)
        self.trainer = self.make_trainer()

    def take_thresholds(self, model: ThresholdSAE) -> Tensor:
        parametrize.register_parametrization(self.sae, "threshold", Exp())
        log_threshold = self.sae.parametrizations.threshold.original
        log_threshold.data = model.threshold().detach().log().expand(D_SAE).clone()
        return log_threshold.requires_grad_(isinstance(model, JumpReLUSAE))

    def make_trainer(self) -> Any:
        training = pytest.importorskip("sae_lens.training.sae_trainer")
        config = training.SAETrainerConfig(N_STEPS * BATCH_SIZE, BATCH_SIZE, lr=LR, lr_end=LR)
        trainer = training.SAETrainer(config, self.sae, iter([]))
        trainer.optimizer.param_groups[0]["eps"] = self.scale * ADAM_EPS
        return trainer

    def step(self, x: Tensor) -> Losses:
        if self.log_threshold is not None:
            self.sae.bandwidth = JumpReLUSAE.BANDWIDTH * self.log_threshold.detach().exp()
        terms = self.trainer.step(x).losses
        self.sae.W_dec.data = F.normalize(self.sae.W_dec.data, dim=1)
        error = sum(value.item() for name, value in terms.items() if "mse_loss" in name)
        sparsity = sum(value.item() for name, value in terms.items() if name in ("l1_loss", "l0_loss"))
        return {"error": error / self.scale, "sparsity": sparsity / self.scale}

    def weights(self) -> dict[str, Tensor]:
        weights = {name: getattr(self.sae, name).data for name in WEIGHTS}
        if self.log_threshold is not None and self.log_threshold.requires_grad:
            weights["log_threshold"] = (self.log_threshold.data.exp() / THRESHOLD).log()
        return weights


def drop_gradient_along_rows(W_dec: Tensor) -> None:
    assert W_dec.grad is not None
    W_dec.grad.sub_((W_dec.grad * W_dec.data).sum(1, keepdim=True) * W_dec.data)


TOPK_WITH_THRESHOLD = {"k": K, "auxk_alpha": 0.0, "threshold_beta": 0.99, "threshold_start_step": 0}
GROUPS = {"group_fractions": [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2], "group_weights": [1.0] * len(WIDTHS)}
JUMPRELU = {"sparsity_penalty": 0.0, "sparsity_warmup_steps": None, "bandwidth": JumpReLUSAE.BANDWIDTH * THRESHOLD}
DICTIONARY_LEARNING = {
    "relu": ("standard", "StandardTrainer", {"l1_penalty": D_IN * BETA, "sparsity_warmup_steps": None}),
    "topk": ("top_k", "TopKTrainer", TOPK_WITH_THRESHOLD),
    "batchtopk": ("batch_top_k", "BatchTopKTrainer", TOPK_WITH_THRESHOLD),
    "matryoshka": ("matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer", TOPK_WITH_THRESHOLD | GROUPS),
    "threshold": ("jumprelu", "JumpReluTrainer", JUMPRELU),
    "jumprelu": ("jumprelu", "JumpReluTrainer", JUMPRELU),
}


class DictionaryLearning:
    """dictionary_learning's model and trainer, from our weights.

    Its trainers start from step 1: at step 0 they would move b_dec to the median of the batch. All but the standard one
    leave a millionth of the gradient along the decoder's rows, for fear of a division by zero.

    Its JumpReLU trainer does not subtract b_dec, which therefore stays 0; its kernel has one width for all latents, and
    its penalty is the squared distance of L0 from a target. So it can train with our fixed thresholds; for learned ones
    its functions are compared.
    """

    def __init__(self, model: SAE):
        module, name, settings = DICTIONARY_LEARNING[model.kind]
        sizes = {"steps": N_STEPS + 1, "activation_dim": D_IN, "dict_size": D_SAE}
        self.module = dictionary_learning_trainers(module)
        self.trainer = getattr(self.module, name)(
            layer=0, lm_name="", device="cpu", lr=LR, warmup_steps=0, **sizes, **settings
        )
        self.trainer.optimizer.param_groups[0].update(eps=D_IN * ADAM_EPS, betas=(0.9, 0.999))
        self.ae = self.trainer.ae.double()
        for own, weight in self.weights().items():
            weight.copy_(model.get_parameter(own).data)
        if isinstance(model, ThresholdSAE):
            self.ae.threshold.requires_grad_(isinstance(model, JumpReLUSAE)).data.fill_(THRESHOLD)
            self.ae.b_dec.requires_grad_(model.b_dec.requires_grad)
        self.standard = model.kind == "relu"
        self.tolerance = 1e-8 if self.standard else 1e-6
        self.n_steps = 0

    def step(self, x: Tensor) -> Losses:
        self.n_steps += 1
        if not self.standard:
            return {"error": self.trainer.update(self.n_steps, x) / D_IN}
        terms = self.trainer.loss(x, self.n_steps, logging=True).losses
        self.trainer.update(self.n_steps, x)
        return {"error": terms["mse_loss"] / D_IN, "sparsity": BETA * terms["sparsity_loss"]}

    def weights(self) -> dict[str, Tensor]:
        if hasattr(self.ae, "W_enc"):
            return {name: getattr(self.ae, name).data for name in WEIGHTS}
        encoder, decoder = self.ae.encoder, self.ae.decoder
        b_dec = self.ae.bias if hasattr(self.ae, "bias") else self.ae.b_dec
        weights = (encoder.weight.data.T, encoder.bias.data, decoder.weight.data.T, b_dec.data)
        return dict(zip(WEIGHTS, weights, strict=True))


def dictionary_learning_trainers(module: str) -> ModuleType:
    return pytest.importorskip(f"dictionary_learning.trainers.{module}")


@pytest.mark.parametrize("kind", SAE_LENS)
def test_sae_lens_has_our_losses_at_every_step(kind: str):
    model = ours(kind)
    check_same(model, SAELens(model))


@pytest.mark.parametrize("kind", [kind for kind in DICTIONARY_LEARNING if kind != "jumprelu"])
def test_dictionary_learning_has_our_losses_at_every_step(kind: str):
    model = ours(kind)
    if kind == "threshold":
        model.b_dec.requires_grad_(False).zero_()
    check_same(model, DictionaryLearning(model))


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])
def test_dictionary_learning_has_our_threshold_for_evaluation(kind: str):
    model = ours(kind)
    assert isinstance(model, BatchTopKSAE)
    peer = DictionaryLearning(model)
    train(model, peer)
    assert model.threshold.item() == pytest.approx(peer.ae.threshold.item(), rel=peer.tolerance)
    x = tokens()[:BATCH_SIZE]
    torch.testing.assert_close(model.encode(x), peer.ae.encode(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])
def test_sae_lens_has_our_threshold_for_evaluation_but_for_a_start_from_zero(kind: str):
    model = ours(kind)
    assert isinstance(model, BatchTopKSAE)
    peer = SAELens(model)
    _, _, batches = train(model, peer)
    untrained = ours(kind)
    assert isinstance(untrained, BatchTopKSAE)
    untrained(batches[0])
    start = 0.99**N_STEPS * untrained.threshold.item()
    assert model.threshold.item() - start == pytest.approx(peer.sae.topk_threshold.item(), rel=peer.tolerance)


def test_the_gradients_of_dictionary_learnings_jumprelu_are_ours():
    model = ours("jumprelu")
    assert isinstance(model, JumpReLUSAE)
    with torch.no_grad():
        model.log_threshold.zero_()
        model.b_dec.zero_()
    peer, x = DictionaryLearning(model), tokens()[:BATCH_SIZE]
    error = model.error(x, model(x))
    error.backward()
    peers_error = peer.trainer.loss(x, step=1)
    peers_error.backward()
    assert D_IN * error.item() == pytest.approx(peers_error.item(), rel=1e-12)
    expected = {name: getattr(peer.ae, name).grad for name in ("W_enc", "b_enc", "W_dec")}
    expected["b_dec"] = peer.ae.b_dec.grad - peer.ae.W_enc.data @ expected["b_enc"]
    expected["log_threshold"] = THRESHOLD * peer.ae.threshold.grad
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        # Its bandwidth is in float32.
        torch.testing.assert_close(D_IN * parameter.grad, expected[name], rtol=1e-6, atol=1e-10)
        assert expected[name].abs().max() > 0.1


def test_the_gradient_of_dictionary_learnings_l0_is_ours():
    model = ours("jumprelu")
    assert isinstance(model, JumpReLUSAE)
    with torch.no_grad():
        model.log_threshold.zero_()
    peer, out = DictionaryLearning(model), model(tokens()[:BATCH_SIZE])
    model.sparsity(out, D_IN).backward()
    # Its loss applies this function to the activations, where all is cut off that lies below the threshold.
    active = peer.module.StepFunction.apply(out.pre_acts.detach(), peer.ae.threshold, peer.trainer.bandwidth)
    (2 * BETA * active.sum(1).mean()).backward()
    assert model.log_threshold.grad is not None
    expected = THRESHOLD * peer.ae.threshold.grad
    # Its bandwidth and its L0 are in float32.
    torch.testing.assert_close(D_IN * model.log_threshold.grad, expected, rtol=1e-6, atol=1e-10)
    assert (expected != 0).sum() > D_SAE / 2


# Data whose features are known


@pytest.mark.parametrize("n_latents", [10, 24, 64])
def test_the_scores_of_sae_lens_synthetic_are_ours(n_latents: int):
    evals = pytest.importorskip("sae_lens.synthetic.evals")
    features, directions = normal(24, D_IN, seed=4), normal(n_latents, D_IN, seed=5)
    truth, acts = normal(2000, 24, seed=6).sub(1).relu(), normal(2000, n_latents, seed=7).sub(0.5).relu()
    # Detectors of some use, one that is dead, and a feature that never fires.
    nearest = F.cosine_similarity(directions[:, None], features, dim=2).abs().argmax(1)
    acts[:, ::2] = truth[:, nearest[::2]] * (normal(2000, len(nearest[::2]), seed=8) > -1)
    acts[:, 3], truth[:, 3] = 0, 0
    assert recovery.mcc(directions, features) == pytest.approx(evals.mean_correlation_coefficient(directions, features))
    assert recovery.uniqueness(directions, features) == evals.feature_uniqueness(directions, features)
    expected = evals.compute_classification_metrics(acts, truth, directions, features)
    f1 = recovery.activation_f1(acts, truth, directions, features)
    assert f1 == pytest.approx(expected.f1_score)
    assert 0.3 < f1 < 0.9
    # Of precision and recall we keep F1 only; the counts behind them are the same.
    both = recovery.coactivation(acts, truth)[torch.arange(n_latents), nearest]
    precision, recall = both / (acts != 0).sum(0).clamp(min=1), both / (truth != 0).sum(0)[nearest].clamp(min=1)
    assert precision.mean().item() == pytest.approx(expected.precision)
    assert recall.mean().item() == pytest.approx(expected.recall)
    l0 = evals.L0Calculator()
    l0.add_batch(truth)
    assert SyntheticData(truth, truth).l0() == pytest.approx(l0.compute())


N_SAMPLES = 50_000
FOREST = SyntheticConfig(
    d_in=D_IN, parents=4, children=3, singles=4, p_parent=0.3, p_child=0.6, p_single=0.2, zipf=0.0,
    correlation=0.5, magnitude_std=0.0, noise_std=0.0, bias_norm=2.0, orthogonal=False,
)  # fmt: skip


def peers_sample(forest: Forest) -> Tensor:
    """Samples of sae_lens.synthetic's generator with our settings.

    Of siblings that fire independently, with probability q, it draws one; we draw one at once. If siblings are alike,
    the two are the same for 1 - (1 - q)^children = p_child. Its magnitudes are normal around 1, ours lie above: all are
    1 here. Its Zipf's law is shifted and stretched between two rates, ours is the plain power: it is given our rates.
    """
    generators = pytest.importorskip("sae_lens.synthetic.activation_generator")
    hierarchy = pytest.importorskip("sae_lens.synthetic.hierarchy")
    config, parent_of = forest.config, forest.parent_of
    roots = parent_of < 0
    rates = torch.full((config.features,), 1 - (1 - config.p_child) ** (1 / config.children))
    rates[roots] = config.p_roots.float()
    factor = torch.zeros(config.features, forest.loadings.shape[1])
    factor[roots] = config.correlation**0.5 * forest.loadings
    nodes = [
        hierarchy.HierarchyNode(
            parent,
            [hierarchy.HierarchyNode(child) for child in (parent_of == parent).nonzero().flatten().tolist()],
            mutually_exclusive_children=config.children > 1,
        )
        for parent in range(config.parents)
    ]
    generator = generators.ActivationGenerator(
        config.features,
        rates,
        modify_activations=hierarchy.hierarchy_modifier(nodes),
        correlation_matrix=(factor, 1 - factor.square().sum(1)),
    )
    return generator.sample(N_SAMPLES)


@pytest.mark.parametrize(("children", "zipf"), [(3, 0.0), (1, 1.0)])
def test_features_of_sae_lens_synthetic_fire_alone_and_together_as_often_as_ours(children: int, zipf: float):
    config = dataclasses.replace(FOREST, children=children, zipf=zipf)
    seeded = torch.Generator().manual_seed(0)
    forest = synthetic.ground_truth(config, seeded)
    data, peers = synthetic.sample(forest, N_SAMPLES, seeded), peers_sample(forest)
    assert set(data.acts.unique().tolist()) == set(peers.unique().tolist()) == {0, 1}
    found, expected = (recovery.coactivation(acts, acts) / N_SAMPLES for acts in (data.acts, peers))
    mean = (found + expected) / 2
    # Five standard errors of a difference of proportions.
    assert ((found - expected).abs() <= 5 * (2 * mean * (1 - mean) / N_SAMPLES).sqrt()).all()
    assert data.l0() == pytest.approx((peers != 0).sum().item() / N_SAMPLES, rel=0.02)


def test_inputs_of_sae_lens_synthetic_are_ours():
    dictionaries = pytest.importorskip("sae_lens.synthetic.feature_dictionary")
    forest = synthetic.ground_truth(FOREST, torch.Generator().manual_seed(0))
    data = synthetic.sample(forest, 100, torch.Generator().manual_seed(1))
    peer = dictionaries.FeatureDictionary(FOREST.features, D_IN, bias=FOREST.bias_norm, initializer=None)
    assert peer.bias.norm().item() == pytest.approx(forest.bias.norm().item()) == pytest.approx(2)
    peer.feature_vectors.data, peer.bias.data = forest.features, forest.bias
    torch.testing.assert_close(peer(data.acts).detach(), data.inputs)
