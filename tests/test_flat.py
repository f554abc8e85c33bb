import math

import pytest
import torch

from hsae import flat, losses
from hsae.flat import FlatConfig
from hsae.sae import SAE, VARIANTS, TopKSAE


@pytest.mark.parametrize(("target", "k"), [(3.4, 3), (3.6, 4), (0.2, 1), (99.0, 8)])
def test_topk_gets_the_rounded_target_within_its_range(target: float, k: int):
    model = flat.build("topk", 4, 8, target)
    assert isinstance(model, TopKSAE)
    assert model.k == k


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_built_in_the_size_asked_for(variant: str):
    model = flat.build(variant, 4, 8, 2.0)
    assert type(model) is VARIANTS[variant]
    assert (model.d_in, model.d_sae) == (4, 8)


def test_an_unknown_variant_is_refused_with_the_list_of_those_there_are():
    with pytest.raises(ValueError, match="`variant` must be one of relu_l1, topk") as refusal:
        flat.build("gated", 4, 8, 2.0)
    assert all(variant in str(refusal.value) for variant in VARIANTS)
    assert "'gated'" in str(refusal.value)


def sparse_data(n: int) -> torch.Tensor:
    """Sums of a few of 24 random directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(24, 16, generator=generator)
    codes = torch.rand(n, 24, generator=generator) * (torch.rand(n, 24, generator=generator) < 0.15)
    x = codes @ directions
    return x / x.std()


@pytest.mark.parametrize("target", [2.0, 6.0])
@pytest.mark.parametrize("initial_beta", [0.01, 0.1])
def test_the_penalty_is_steered_until_as_many_latents_are_active_as_the_target_says(target: float, initial_beta: float):
    torch.manual_seed(0)
    x = sparse_data(256)
    model = SAE(16, 32)
    terms = flat.objective(model, target, initial_beta)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    l0 = []
    for _ in range(500):
        loss = torch.stack(list(terms(x).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.constrain()
        l0.append((model.encode(x) > 0).sum(1).float().mean().item())
    assert abs(l0[0] - target) > 0.5 * target
    assert sum(l0[-50:]) / 50 == pytest.approx(target, rel=0.2)


def test_the_first_batch_is_penalised_by_the_initial_coefficient_and_the_next_by_the_steered_one():
    torch.manual_seed(0)
    x, model = sparse_data(32), SAE(16, 32)
    acts, x_hat = model(x)
    l0, penalty = (acts > 0).sum().item() / 32, losses.l1(acts).item()
    terms = flat.objective(model, 5.0, 0.01)
    first, second = terms(x), terms(x)
    assert first["x_from_h1"].item() == pytest.approx(losses.mse(x_hat, x).item())
    assert first["l1_h1"].item() == pytest.approx(0.01 * penalty)
    assert second["l1_h1"].item() == pytest.approx(0.01 * (l0 / 5) ** 0.01 * penalty)
    assert l0 > 5


def test_a_silent_autoencoder_leaves_the_penalty_finite_and_falling():
    model = SAE(16, 32)
    model.b_enc.data.fill_(-100.0)
    terms = flat.objective(model, 5.0, 1.0)
    terms(torch.ones(4, 16))
    model.b_enc.data.fill_(100.0)
    acts = model.encode(torch.ones(4, 16))
    beta = terms(torch.ones(4, 16))["l1_h1"].item() / losses.l1(acts).item()
    assert 0.5 < beta < 1


def test_topk_is_trained_on_the_reconstruction_alone():
    torch.manual_seed(0)
    x, model = sparse_data(32), flat.build("topk", 16, 32, 4.0)
    terms = flat.objective(model, 4.0, 0.01)(x)
    assert list(terms) == ["x_from_h1"]
    assert terms["x_from_h1"].item() == pytest.approx(losses.mse(model(x).x_hat, x).item())


@pytest.mark.parametrize("value", [0.0, -0.1, math.nan])
def test_an_initial_coefficient_out_of_range_is_refused_by_name(value: float):
    with pytest.raises(ValueError, match=f"`initial_beta` must be above 0; not {value}"):
        FlatConfig(value)
