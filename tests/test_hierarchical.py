from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hsae import hierarchical, losses, variants
from hsae.files import read_tensors, write_tensors
from hsae.gradients import level_objective
from hsae.hierarchical import HierarchicalSAE, objective, scale_gradient, validate
from hsae.losses import Coefficients
from hsae.sae import SAE
from hsae.streams import Stream
from hsae.training import Autograd, Phase, fit
from hsae.variants import VARIANTS, ThresholdSAE
from tests.rows import Rows

D_IN, D_SAE1, D_SAE2 = 6, 12, 5

ALL = Coefficients(
    beta1=0.01, beta2=0.1, lambda_cos=0.2, gamma_group=0.05, weight_coverage=0.3,
    weight_x_from_h1=1.5, weight_h1_from_h2=0.7, weight_x_from_h2=0.4,
    level1_grad_scale=1.0,
)  # fmt: skip
NONE = Coefficients(**{**dict.fromkeys(vars(ALL), 0.0), "level1_grad_scale": 1.0})

COEFFICIENT = {
    "x_from_h1": "weight_x_from_h1", "h1_from_h2": "weight_h1_from_h2", "x_from_h2": "weight_x_from_h2",
    "sparsity_h1": "beta1", "sparsity_h2": "beta2", "cosine_grouping": "lambda_cos", "coverage": "weight_coverage",
    "group_sparsity": "gamma_group",
}  # fmt: skip


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(64, D_IN, generator=torch.Generator().manual_seed(1))


def new(kind: str, c: Coefficients = ALL) -> HierarchicalSAE:
    torch.manual_seed(0)
    level1 = variants.build(kind, D_IN, D_SAE1, k=4, beta=c.beta1)
    return HierarchicalSAE(level1, variants.build(kind, D_SAE1, D_SAE2, k=2, beta=c.beta2, nonnegative=True))


def started(kind: str, x: torch.Tensor) -> HierarchicalSAE:
    """As after phase 1 and the initialisation of phase 2, and a little off it, so that nothing is tied."""
    model = new(kind)
    model.level2.init_from_data(model.level1.encode(x))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.constrain()
    return model


@pytest.fixture
def model(x: torch.Tensor) -> HierarchicalSAE:
    return started("relu", x)


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


# The forward pass


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_three_reconstructions_come_from_the_levels_own_parts(kind: str, x: torch.Tensor):
    model = started(kind, x).eval()
    out = model(x)
    h1 = model.level1.encode(x)
    h2 = model.level2.encode(h1)
    assert torch.equal(out.level1.acts, h1)
    assert torch.equal(out.level2.acts, h2)
    torch.testing.assert_close(out.level2.x_hat, h2 @ model.level2.W_dec + model.level2.b_dec)
    torch.testing.assert_close(out.level1.x_hat, h1 @ model.level1.W_dec + model.level1.b_dec)
    torch.testing.assert_close(out.x_hat_from_h2, out.level2.x_hat @ model.level1.W_dec + model.level1.b_dec)
    assert (h1 > 0).any()
    assert (h2 > 0).any()


def test_each_level_as_a_dictionary_of_its_own_is_the_forward_passs_path(model: HierarchicalSAE, x: torch.Tensor):
    out = model(x)
    for found, expected in zip(model.reconstruct_from_h1(x), (out.level1.acts, out.level1.x_hat), strict=True):
        assert torch.equal(found, expected)
    for found, expected in zip(model.reconstruct_from_h2(x), (out.level2.acts, out.x_hat_from_h2), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0])
def test_a_scaled_gradient_belongs_to_the_same_values(scale: float):
    x = torch.tensor([[0.1, -2.5, 1e9]], requires_grad=True)
    scaled = scale_gradient(x, scale)
    scaled.square().sum().backward()
    assert torch.equal(scaled, x)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, scale * 2 * x.detach())


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_saved_hsae_comes_back_with_its_buffers_and_gives_equal_outputs(kind: str, x: torch.Tensor, tmp_path: Path):
    model = started(kind, x)
    model.anneal(0.2)
    model(x)
    model.eval()
    write_tensors(tmp_path / "hsae.safetensors", model.state_dict(), model.header())
    loaded = hierarchical.load(*read_tensors(tmp_path / "hsae.safetensors"))
    assert not any(module.training for module in loaded.modules())
    assert loaded.header() == model.header()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    expected, found = model(x), loaded(x)
    for level in (0, 1):
        assert all(torch.equal(*pair) for pair in zip(found[level], expected[level], strict=True))
    assert torch.equal(found.x_hat_from_h2, expected.x_hat_from_h2)
    loaded.level2.W_dec.data[0, 0] = -1
    loaded.constrain()
    assert (loaded.level2.W_dec >= 0).all()


def test_levels_of_different_kinds_come_back_as_such(tmp_path: Path):
    level2 = variants.build("topk", D_SAE1, D_SAE2, k=2, beta=0.0, nonnegative=True)
    model = HierarchicalSAE(variants.build("jumprelu", D_IN, D_SAE1, k=1, beta=0.2), level2)
    write_tensors(tmp_path / "hsae.safetensors", model.state_dict(), model.header())
    loaded = hierarchical.load(*read_tensors(tmp_path / "hsae.safetensors"))
    assert (loaded.level1.kind, loaded.level2.kind) == ("jumprelu", "topk")
    assert loaded.level1.beta == model.level1.beta


def test_level_2_must_be_nonnegative_and_read_level_1():
    level1 = SAE(D_IN, D_SAE1)
    for level2 in (SAE(D_SAE1, D_SAE2), SAE(D_SAE1 + 1, D_SAE2, nonnegative=True)):
        with pytest.raises(AssertionError):
            HierarchicalSAE(level1, level2)


# Level 2 starts from data


def test_level_2_starts_from_the_level_1_activations_of_the_first_tokens(x: torch.Tensor):
    model = new("relu")
    level1 = state(model.level1)
    model.level2.init_from_data(model.level1.encode(x))
    h1 = model.level1.encode(x).detach()
    torch.testing.assert_close(model.level2.b_dec.data, h1.mean(0))
    for row, activations in zip(model.level2.W_dec.data, h1, strict=False):
        positive = (activations - h1.mean(0)).clamp(min=0)
        torch.testing.assert_close(row, positive / positive.norm())
    encoder, decoder = model.level2.W_enc, model.level2.W_dec.T
    torch.testing.assert_close(encoder / encoder.norm(), decoder / decoder.norm())
    for name, tensor in model.level1.state_dict().items():
        assert torch.equal(tensor, level1[name])


def test_level_2_cannot_start_from_fewer_tokens_than_it_has_latents(x: torch.Tensor):
    with pytest.raises(ValueError, match="initialising 5 latents from data needs as many tokens; there are 4"):
        new("relu").level2.init_from_data(new("relu").level1.encode(x[:4]))


# The objective


def penalty(level: SAE, acts: torch.Tensor, beta: float) -> float:
    """Sparsity term, by its definition."""
    if level.kind == "relu":
        return beta * acts.sum().item() / len(acts)
    return 2 / D_IN * beta * (acts > 0).sum().item() / len(acts) if level.kind == "jumprelu" else 0.0


def expected_terms(model: HierarchicalSAE, x: torch.Tensor, c: Coefficients) -> dict[str, float]:
    """Every term with its weight; each from the tensors that it is about."""
    h1 = model.level1.encode(x)
    pre_acts = model.level2.pre_acts(h1)
    h2 = model.level2.activate(pre_acts)
    x_hat, h1_hat = model.level1.decode(h1), model.level2.decode(h2)
    assignment = losses.soft_assignment(model.level2.W_dec)
    nearness = (h2 > 0).float()
    if isinstance(model.level2, ThresholdSAE):
        nearness = (pre_acts / model.level2.threshold()).clamp(0, 1)
    terms = {
        "x_from_h1": c.weight_x_from_h1 * losses.mse(x_hat, x),
        "h1_from_h2": c.weight_h1_from_h2 * losses.mse(h1_hat, h1),
        "x_from_h2": c.weight_x_from_h2 * losses.mse(model.level1.decode(h1_hat), x),
        "cosine_grouping": c.lambda_cos * losses.cosine_grouping(model.level1.W_dec, assignment),
        "coverage": c.weight_coverage * losses.coverage(h1 > 0, nearness, assignment),
        "group_sparsity": c.gamma_group * losses.group_sparsity(h1, assignment),
    }
    sparsity = {
        "sparsity_h1": penalty(model.level1, h1, c.beta1),
        "sparsity_h2": penalty(model.level2, h2, c.beta2),
    }
    return {**{name: term.item() for name, term in terms.items()}, **sparsity}


@pytest.mark.parametrize("kind", ["relu", "topk", "threshold", "jumprelu"])
def test_every_term_is_what_it_says_weighed_by_its_own_coefficient(kind: str, x: torch.Tensor):
    model = started(kind, x)
    found = {name: term.item() for name, term in objective(model, x, ALL).items()}
    expected = expected_terms(model, x, ALL)
    assert found == pytest.approx(expected)
    assert found.keys() == COEFFICIENT.keys()
    silent = {"relu": 0, "jumprelu": 0}.get(kind, 2)
    assert sum(value == 0 for value in expected.values()) == silent


@pytest.mark.parametrize("removed", COEFFICIENT)
def test_a_removed_term_is_zero_and_leaves_the_others_as_they_are(
    model: HierarchicalSAE, x: torch.Tensor, removed: str
):
    full = objective(model, x, ALL)
    # beta2 may not fall below beta1, so removing the penalty of level 2 removes that of level 1 too.
    changes = {COEFFICIENT[removed]: 0.0} | ({"beta1": 0.0} if removed == "sparsity_h2" else {})
    terms = objective(model, x, replace(ALL, **changes))
    gone = {name for name, coefficient in COEFFICIENT.items() if coefficient in changes}
    assert terms.keys() == full.keys()
    for name, term in terms.items():
        assert term.item() == (0 if name in gone else full[name].item())
    remaining = sum(full[name].item() for name in full if name not in gone)
    assert torch.stack(list(terms.values())).sum().item() == pytest.approx(remaining)


@pytest.mark.parametrize("kind", ["relu", "matryoshka", "jumprelu"])
def test_the_objective_of_phase_1_is_the_level_1_part_of_the_whole_one(kind: str, x: torch.Tensor):
    model = started(kind, x)
    whole = objective(model, x, ALL)
    part = level_objective(model.level1, x, ALL.weight_x_from_h1)
    assert {name: term.item() for name, term in part.items()} == {
        name: whole[name].item() for name in ("x_from_h1", "sparsity_h1")
    }


def test_where_level_1_is_frozen_its_own_terms_are_left_out(model: HierarchicalSAE, x: torch.Tensor):
    whole = objective(model, x, ALL)
    model.level1.requires_grad_(False)
    for name, term in objective(model, x, ALL).items():
        assert term.item() == (0 if name in ("x_from_h1", "sparsity_h1") else whole[name].item())


# Gradients


def gradients(model: HierarchicalSAE, x: torch.Tensor, c: Coefficients) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    torch.stack(list(objective(model, x, c).values())).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def reached(found: dict[str, torch.Tensor | None]) -> set[str]:
    """Names of the parameters whose gradient is not zero."""
    assert all(gradient is None or gradient.isfinite().all() for gradient in found.values())
    return {name for name, gradient in found.items() if gradient is not None and gradient.abs().max() > 1e-6}


@pytest.mark.parametrize("kind", VARIANTS)
def test_in_phase_3_every_parameter_learns(kind: str, x: torch.Tensor):
    model = started(kind, x)
    assert reached(gradients(model, x, ALL)) == {name for name, _ in model.named_parameters()}


ENCODER1 = {"level1.W_enc", "level1.b_enc", "level1.b_dec"}
ENCODER2 = {"level2.W_enc", "level2.b_enc", "level2.b_dec"}


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("x_from_h1", ENCODER1 | {"level1.W_dec"}),
        ("sparsity_h1", ENCODER1),
        ("h1_from_h2", ENCODER1 | ENCODER2 | {"level2.W_dec"}),
        ("x_from_h2", ENCODER1 | ENCODER2 | {"level2.W_dec"}),
        ("sparsity_h2", ENCODER1 | ENCODER2),
        ("cosine_grouping", {"level2.W_dec"}),
        ("coverage", {"level2.W_dec"}),
        ("group_sparsity", ENCODER1 | {"level2.W_dec"}),
    ],
)
def test_each_term_alone_reaches_these_parameters(
    model: HierarchicalSAE, x: torch.Tensor, term: str, expected: set[str]
):
    changes = {COEFFICIENT[term]: 1.0} | ({"beta2": 1.0} if term == "sparsity_h1" else {})
    terms = objective(model, x, replace(NONE, **changes))
    model.zero_grad()
    terms[term].backward()
    assert reached({name: parameter.grad for name, parameter in model.named_parameters()}) == expected


def test_with_thresholds_coverage_reaches_the_encoders_too(x: torch.Tensor):
    found = gradients(started("threshold", x), x, replace(NONE, weight_coverage=1.0))
    assert reached(found) == ENCODER1 | ENCODER2 | {"level2.W_dec"}


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_level_1_decoder_learns_from_its_own_reconstruction_alone(kind: str, x: torch.Tensor):
    found = gradients(started(kind, x), x, replace(ALL, weight_x_from_h1=0.0))
    assert "level1.W_dec" not in reached(found)
    assert "level1.W_enc" in reached(found)


def test_the_target_of_h1_from_h2_sends_no_gradient(model: HierarchicalSAE, x: torch.Tensor):
    found = gradients(model, x, replace(NONE, weight_h1_from_h2=1.0))["level1.b_enc"]
    assert found is not None
    # The same with the target a constant of its own: only what flows through the level-2 encoder is left.
    target = model.level1.encode(x).detach()
    expected = torch.autograd.grad(losses.mse(model(x).level2.x_hat, target), model.level1.b_enc)[0]
    torch.testing.assert_close(found, expected)
    dragged = torch.autograd.grad(losses.mse(model(x).level2.x_hat, model.level1.encode(x)), model.level1.b_enc)[0]
    assert not torch.allclose(found, dragged)


@pytest.mark.parametrize("kind", ["relu", "threshold"])
@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0])
def test_the_level_2_terms_reach_the_level_1_encoder_scaled_and_level_2_in_full(
    kind: str, scale: float, x: torch.Tensor
):
    model = started(kind, x)
    c = replace(NONE, weight_x_from_h2=1.0, weight_h1_from_h2=1.0, beta2=0.1, weight_coverage=0.2)
    full, found = (
        {name: gradient.clone() for name, gradient in gradients(model, x, part).items() if gradient is not None}
        for part in (c, replace(c, level1_grad_scale=scale))
    )
    assert full["level1.W_enc"].abs().sum() > 0
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, (scale if name.startswith("level1") else 1) * full[name])


# Which level is trained


def test_a_frozen_level_stays_in_evaluation_mode(model: HierarchicalSAE):
    model.level1.requires_grad_(False)
    assert model.train() is model
    assert (model.training, model.level1.training, model.level2.training) == (True, False, True)
    model.level1.requires_grad_(True)
    model.train()
    assert (model.level1.training, model.level2.training) == (True, True)
    model.eval()
    assert (model.training, model.level1.training, model.level2.training) == (False, False, False)


@pytest.mark.parametrize("frozen", [True, False])
def test_annealing_and_revival_concern_the_levels_that_are_trained(frozen: bool, x: torch.Tensor):
    model = started("threshold", x)
    model.level1.requires_grad_(not frozen)
    model.train().anneal(0.5)
    for level, scale in ((model.level1, 1.0 if frozen else 10**0.5), (model.level2, 10**0.5)):
        assert isinstance(level, ThresholdSAE)
        assert level.scale.item() == pytest.approx(scale)
    model.anneal(0.0)
    model.level1.idle_tokens[[1, 2]] = 100
    model.level2.idle_tokens[3] = 100
    assert model.revive(x, 100, torch.Generator().manual_seed(0)) == (1 if frozen else 3)
    assert model.level1.idle_tokens.max() == (100 if frozen else 0)
    assert model.level2.idle_tokens.max() == 0


def test_level_2_is_revived_as_an_autoencoder_of_h1_is(model: HierarchicalSAE, x: torch.Tensor):
    model.level2.idle_tokens[3] = 100
    expected = variants.load(state(model.level2), model.level2.header())
    expected.revive(model.level1.encode(x).detach(), 100, torch.Generator().manual_seed(0))
    model.revive(x, 100, torch.Generator().manual_seed(0))
    for name, tensor in model.level2.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name
    assert (model.level1.training, model.level2.training) == (True, True)


def trained(model: HierarchicalSAE, x: torch.Tensor, epochs: int = 6) -> list[dict[str, float]]:
    phase = Phase(epochs, 8, 1e-2, 0.2, 0.5)
    gradients = Autograd(model, lambda batch: objective(model, batch, ALL))
    return fit("hsae", model, Rows(x), gradients, phase, Stream(0, "test"), dead_tokens=20)


@pytest.mark.parametrize("kind", VARIANTS)
def test_phase_2_leaves_every_level_1_tensor_as_it_was_to_the_bit_while_level_2_learns(kind: str, x: torch.Tensor):
    model = started(kind, x)
    model.level1(x)
    model.level1.idle_tokens[4] = 1000
    model.level2.b_enc.data[2] = -100
    before = state(model)
    model.level1.requires_grad_(False)
    curve = trained(model, x)
    assert sum(row["revived"] for row in curve) > 0
    for name, tensor in model.level1.state_dict().items():
        assert torch.equal(tensor, before[f"level1.{name}"]), name
    for name, parameter in model.level2.named_parameters():
        assert not torch.equal(parameter, before[f"level2.{name}"]), name
    assert not model.level2.training


@pytest.mark.parametrize("kind", VARIANTS)
def test_phase_3_changes_every_parameter_of_both_levels(kind: str, x: torch.Tensor):
    model = started(kind, x)
    before = state(model)
    trained(model, x)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_decoders_stay_valid_throughout_training(model: HierarchicalSAE, x: torch.Tensor):
    def checked(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        for level, width in ((model.level1, D_SAE1), (model.level2, D_SAE2)):
            torch.testing.assert_close(level.W_dec.norm(dim=1), torch.ones(width))
        assert (model.level2.W_dec >= 0).all()
        return objective(model, batch, ALL)

    fit(
        "phase3",
        model,
        Rows(x),
        Autograd(model, checked),
        Phase(10, 16, 3e-2, 0.0, 0.0),
        Stream(0, "test"),
        dead_tokens=50,
    )
    checked(x)
    # The constraint was at work: the optimizer did push entries below zero.
    assert (model.level2.W_dec == 0).any()
    assert (model.level1.W_dec < 0).any()


@pytest.mark.parametrize("kind", VARIANTS)
def test_training_lowers_the_loss(kind: str, x: torch.Tensor):
    model = started(kind, x)
    phase = Phase(30, 32, 1e-2, 0.2, 0.0)
    gradients = Autograd(model, lambda batch: objective(model, batch, ALL))
    curve = fit("phase3", model, Rows(x), gradients, phase, Stream(0, "test"), dead_tokens=0)
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]


# Validation


@pytest.mark.parametrize("kind", ["relu", "batchtopk"])
def test_validation_by_hand(kind: str, x: torch.Tensor):
    model = started(kind, x)
    model(x)
    model.eval()
    found = validate(model, x.split(20))
    out = model(x)

    def fvu(x_hat: torch.Tensor, x: torch.Tensor) -> float:
        x, x_hat = x.double(), x_hat.double()
        return ((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()).item()

    assert found["level1"]["fvu"] == pytest.approx(fvu(out.level1.x_hat, x), rel=1e-6)
    assert found["level2"]["fvu"] == pytest.approx(fvu(out.x_hat_from_h2, x), rel=1e-6)
    assert found["level2"]["fvu_h1"] == pytest.approx(fvu(out.level2.x_hat, out.level1.acts), rel=1e-6)
    for level, h in (("level1", out.level1.acts), ("level2", out.level2.acts)):
        assert found[level]["l0"] == pytest.approx((h > 0).sum().item() / len(x))
        assert found[level]["dead_fraction"] == pytest.approx((~(h > 0).any(0)).double().mean().item())
        assert found[level]["explained_variance"] == pytest.approx(1 - found[level]["fvu"])
