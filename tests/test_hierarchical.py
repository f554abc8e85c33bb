from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hsae import hierarchical, losses
from hsae.files import read_tensors, write_tensors
from hsae.hierarchical import HierarchicalSAE, level1_objective, objective, validate
from hsae.losses import Coefficients
from hsae.sae import SAE
from hsae.training import Phase, fit
from tests.rows import Rows

D_IN, D_SAE1, D_SAE2 = 6, 12, 5

ALL = Coefficients(
    beta1=0.01, beta2=0.1, lambda_cos=0.2, gamma_group=0.05,
    weight_x_from_h1=1.5, weight_h1_from_h2=0.7, weight_x_from_h2=0.4,
    level1_grad_scale=1.0,
)  # fmt: skip
NONE = Coefficients(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, level1_grad_scale=1.0)

COEFFICIENT = {
    "x_from_h1": "weight_x_from_h1", "h1_from_h2": "weight_h1_from_h2", "x_from_h2": "weight_x_from_h2",
    "l1_h1": "beta1", "l1_h2": "beta2", "cosine_grouping": "lambda_cos", "group_sparsity": "gamma_group",
}  # fmt: skip


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(64, D_IN, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model(x: torch.Tensor) -> HierarchicalSAE:
    """As after phase 1 and the initialisation of phase 2, and a little off it, so that nothing is tied."""
    torch.manual_seed(0)
    model = HierarchicalSAE(SAE(D_IN, D_SAE1), D_SAE2)
    model.init_level2(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.constrain()
    return model


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


# The forward pass


def test_the_three_reconstructions_come_from_the_levels_own_parts(model: HierarchicalSAE, x: torch.Tensor):
    out = model(x)
    h1 = model.level1.encode(x)
    h2 = model.level2.encode(h1)
    assert torch.equal(out.h1, h1)
    assert torch.equal(out.h2, h2)
    torch.testing.assert_close(out.h1_hat, h2 @ model.level2.W_dec + model.level2.b_dec)
    torch.testing.assert_close(out.x_hat_from_h1, h1 @ model.level1.W_dec + model.level1.b_dec)
    torch.testing.assert_close(out.x_hat_from_h2, out.h1_hat @ model.level1.W_dec + model.level1.b_dec)


def test_each_level_as_a_dictionary_of_its_own_is_the_forward_passs_path(model: HierarchicalSAE, x: torch.Tensor):
    out = model(x)
    for found, expected in zip(model.reconstruct_from_h1(x), (out.h1, out.x_hat_from_h1), strict=True):
        assert torch.equal(found, expected)
    for found, expected in zip(model.reconstruct_from_h2(x), (out.h2, out.x_hat_from_h2), strict=True):
        assert torch.equal(found, expected)


def test_a_saved_hsae_comes_back_and_gives_equal_outputs(model: HierarchicalSAE, x: torch.Tensor, tmp_path: Path):
    write_tensors(tmp_path / "hsae.safetensors", model.state_dict(), model.header())
    loaded = hierarchical.load(*read_tensors(tmp_path / "hsae.safetensors"))
    for found, expected in zip(loaded(x), model(x), strict=True):
        assert torch.equal(found, expected)
    loaded.level2.W_dec.data[0, 0] = -1
    loaded.constrain()
    assert (loaded.level2.W_dec >= 0).all()


# Level 2 starts from data


def test_level_2_starts_from_the_level_1_activations_of_the_first_tokens(x: torch.Tensor):
    torch.manual_seed(0)
    model = HierarchicalSAE(SAE(D_IN, D_SAE1), D_SAE2)
    level1 = state(model.level1)
    model.init_level2(x)
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
        HierarchicalSAE(SAE(D_IN, D_SAE1), D_SAE2).init_level2(x[:4])


# The objective


def expected_terms(model: HierarchicalSAE, x: torch.Tensor) -> dict[str, float]:
    """Every term without its weight."""
    out = model(x)
    assignment = losses.soft_assignment(model.level2.W_dec)
    terms = {
        "x_from_h1": losses.mse(out.x_hat_from_h1, x),
        "h1_from_h2": losses.mse(out.h1_hat, out.h1),
        "x_from_h2": losses.mse(out.x_hat_from_h2, x),
        "l1_h1": losses.l1(out.h1),
        "l1_h2": losses.l1(out.h2),
        "cosine_grouping": losses.cosine_grouping(model.level1.W_dec, assignment),
        "group_sparsity": losses.group_sparsity(out.h1, assignment),
    }
    return {name: term.item() for name, term in terms.items()}


def test_every_term_is_weighed_by_its_own_coefficient(model: HierarchicalSAE, x: torch.Tensor):
    found = {name: term.item() for name, term in objective(model, x, ALL).items()}
    expected = {name: getattr(ALL, COEFFICIENT[name]) * value for name, value in expected_terms(model, x).items()}
    assert found == pytest.approx(expected)
    assert all(value > 0 for value in expected.values())


@pytest.mark.parametrize("removed", COEFFICIENT)
def test_a_removed_term_is_zero_and_leaves_the_others_as_they_are(
    model: HierarchicalSAE, x: torch.Tensor, removed: str
):
    full = objective(model, x, ALL)
    # beta2 may not fall below beta1, so removing the penalty of level 2 removes that of level 1 too.
    changes = {COEFFICIENT[removed]: 0.0} | ({"beta1": 0.0} if removed == "l1_h2" else {})
    terms = objective(model, x, replace(ALL, **changes))
    gone = {name for name, coefficient in COEFFICIENT.items() if coefficient in changes}
    assert terms.keys() == full.keys()
    for name, term in terms.items():
        assert term.item() == (0 if name in gone else full[name].item())
    remaining = sum(full[name].item() for name in full if name not in gone)
    assert torch.stack(list(terms.values())).sum().item() == pytest.approx(remaining)


def test_the_objective_of_phase_1_is_the_level_1_part_of_the_whole_one(model: HierarchicalSAE, x: torch.Tensor):
    whole = objective(model, x, ALL)
    part = level1_objective(model.level1, x, ALL)
    assert {name: term.item() for name, term in part.items()} == {
        name: whole[name].item() for name in ("x_from_h1", "l1_h1")
    }


# Gradients from level 2 into level 1


def gradients(model: HierarchicalSAE, x: torch.Tensor, c: Coefficients) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    torch.stack(list(objective(model, x, c).values())).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("term", ["h1_from_h2", "x_from_h2", "l1_h2"])
def test_each_level_2_term_alone_reaches_the_level_1_encoder(model: HierarchicalSAE, x: torch.Tensor, term: str):
    found = gradients(model, x, replace(NONE, **{COEFFICIENT[term]: 1.0}))
    for name in ("level1.W_enc", "level1.b_enc"):
        gradient = found[name]
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 1e-4


def test_the_target_of_h1_from_h2_sends_no_gradient(model: HierarchicalSAE, x: torch.Tensor):
    found = gradients(model, x, replace(NONE, weight_h1_from_h2=1.0))["level1.b_enc"]
    assert found is not None
    # The same with the target a constant of its own: only what flows through the level-2 encoder is left.
    target = model.level1.encode(x).detach()
    expected = torch.autograd.grad(losses.mse(model(x).h1_hat, target), model.level1.b_enc)[0]
    torch.testing.assert_close(found, expected)
    dragged = torch.autograd.grad(losses.mse(model(x).h1_hat, model.level1.encode(x)), model.level1.b_enc)[0]
    assert not torch.allclose(found, dragged)


def test_grouping_terms_reach_the_level_2_decoder(model: HierarchicalSAE, x: torch.Tensor):
    for name in ("lambda_cos", "gamma_group"):
        gradient = gradients(model, x, replace(NONE, **{name: 1.0}))["level2.W_dec"]
        assert gradient is not None
        assert gradient.abs().max() > 1e-4


# Training


def test_phase_2_leaves_every_level_1_tensor_as_it_was_to_the_bit_while_level_2_learns(
    model: HierarchicalSAE, x: torch.Tensor
):
    before = state(model)
    model.level1.requires_grad_(False)
    fit("phase2", model, Rows(x), lambda batch: objective(model, batch, ALL), Phase(3, 16, 1e-2, 0.2), seed=0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("level1."), name


def test_phase_3_changes_every_tensor_of_both_levels(model: HierarchicalSAE, x: torch.Tensor):
    before = state(model)
    fit("phase3", model, Rows(x), lambda batch: objective(model, batch, ALL), Phase(1, 16, 1e-2, 0.2), seed=0)
    for name, tensor in model.state_dict().items():
        assert not torch.equal(tensor, before[name]), name


def test_decoders_stay_valid_throughout_training(model: HierarchicalSAE, x: torch.Tensor):
    def checked(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        for level, width in ((model.level1, D_SAE1), (model.level2, D_SAE2)):
            torch.testing.assert_close(level.W_dec.norm(dim=1), torch.ones(width))
        assert (model.level2.W_dec >= 0).all()
        return objective(model, batch, ALL)

    fit("phase3", model, Rows(x), checked, Phase(5, 16, 3e-2, 0.0), seed=0)
    checked(x)
    # The constraint was at work: the optimizer did push entries below zero.
    assert (model.level2.W_dec == 0).any()
    assert (model.level1.W_dec < 0).any()


def test_training_lowers_the_loss(model: HierarchicalSAE, x: torch.Tensor):
    curve = fit("phase3", model, Rows(x), lambda batch: objective(model, batch, ALL), Phase(30, 32, 1e-2, 0.2), seed=0)
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]


# Validation


def test_validation_by_hand(model: HierarchicalSAE, x: torch.Tensor):
    found = validate(model, x.split(20))
    out = model(x)

    def fvu(x_hat: torch.Tensor, x: torch.Tensor) -> float:
        x, x_hat = x.double(), x_hat.double()
        return ((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()).item()

    assert found["level1"]["fvu"] == pytest.approx(fvu(out.x_hat_from_h1, x), rel=1e-6)
    assert found["level2"]["fvu"] == pytest.approx(fvu(out.x_hat_from_h2, x), rel=1e-6)
    assert found["level2"]["fvu_h1"] == pytest.approx(fvu(out.h1_hat, out.h1), rel=1e-6)
    for level, h in (("level1", out.h1), ("level2", out.h2)):
        assert found[level]["l0"] == pytest.approx((h > 0).sum().item() / len(x))
        assert found[level]["dead_fraction"] == pytest.approx((~(h > 0).any(0)).double().mean().item())
        assert found[level]["explained_variance"] == pytest.approx(1 - found[level]["fvu"])


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0])
def test_the_level_2_terms_reach_the_level_1_encoder_scaled(scale: float):
    def gradient(factor: float) -> torch.Tensor:
        torch.manual_seed(0)
        model = HierarchicalSAE(SAE(D_IN, D_SAE1), D_SAE2)
        x = torch.randn(64, D_IN)
        model.init_level2(x)
        c = replace(NONE, weight_x_from_h2=1.0, weight_h1_from_h2=1.0, beta2=0.1, level1_grad_scale=factor)
        torch.stack(list(objective(model, x, c).values())).sum().backward()
        assert model.level1.W_enc.grad is not None
        return model.level1.W_enc.grad

    torch.testing.assert_close(gradient(scale), scale * gradient(1.0))
    assert gradient(1.0).abs().sum() > 0


def test_the_level_1_decoder_learns_from_its_own_reconstruction_alone():
    torch.manual_seed(0)
    model = HierarchicalSAE(SAE(D_IN, D_SAE1), D_SAE2)
    x = torch.randn(64, D_IN)
    c = replace(ALL, weight_x_from_h1=0.0)
    torch.stack(list(objective(model, x, c).values())).sum().backward()
    gradient = model.level1.W_dec.grad
    assert gradient is None or not gradient.any()
