import dataclasses

import pytest
import torch

from hsae import curriculum, variants
from hsae.dictionary import Activation, LatentConfig, Start
from hsae.gradients import level_gradients
from hsae.losses import Coefficients
from hsae.sae import SAE
from hsae.sharpening import Sharpening, phase1, sharpen
from hsae.streams import Stream
from hsae.training import Gradients, Phase

PHASE = Phase(epochs=1, batch_size=64, lr=1e-2, decay_fraction=0.2, anneal_fraction=0.2)
SHARPENING = Sharpening(epochs=1, batch_size=64, lr=1e-2, decay_fraction=0.2, anneal_fraction=0.0, price=5.0)
LATENTS = LatentConfig(Activation.jumprelu, k1=4, k2=2, dead_tokens=0, init_level2=Start.data, init_tokens=128)
C = Coefficients(
    beta1=0.01, beta2=0.02, lambda_cos=0.01, gamma_group=0.001, weight_coverage=0.1, weight_x_from_h1=1.0,
    weight_h1_from_h2=1.0, weight_x_from_h2=1.0, level1_grad_scale=0.1,
)  # fmt: skip


class Rows:
    def __init__(self) -> None:
        self.rows = torch.randn(512, 6, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.rows)

    def x(self, rows: slice) -> torch.Tensor:
        return self.rows[rows]


def level1(kind: str = "jumprelu") -> SAE:
    torch.manual_seed(0)
    return variants.build(kind, 6, 12, k=4, beta=C.beta1)


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def never(sharpening: Sharpening) -> Sharpening:
    return dataclasses.replace(sharpening, epochs=0)


@pytest.mark.parametrize("kind", [kind.value for kind in Activation])
def test_sharpening_goes_on_from_phase_1_with_the_decoder_as_it_is_to_the_bit(kind: str):
    plain, sharpened = level1(kind), level1(kind)
    curve = phase1(plain, Rows(), C, PHASE, never(SHARPENING), 0, Stream(3, "test"))
    longer = phase1(sharpened, Rows(), C, PHASE, SHARPENING, 0, Stream(3, "test"))
    assert [row["step"] for row in longer] == [*range(1, 9), *range(9, 17)]
    assert longer[: len(curve)] == curve
    assert torch.equal(sharpened.W_dec, plain.W_dec)
    assert not torch.equal(sharpened.W_enc, plain.W_enc)
    assert sharpened.beta == pytest.approx(5 * C.beta1)
    assert plain.beta == pytest.approx(C.beta1)
    assert sharpened.W_dec.requires_grad


def test_gradients_of_sharpening_are_made_when_the_decoder_is_frozen():
    model, frozen = level1(), []

    def gradients() -> Gradients:
        frozen.append(not model.W_dec.requires_grad)
        return level_gradients(model)

    before = model.W_dec.clone()
    assert len(sharpen(model, Rows(), gradients, PHASE, Stream(3, "test"))) == 8
    assert frozen == [True]
    assert torch.equal(model.W_dec, before)
    assert model.W_dec.requires_grad


def test_a_higher_price_leaves_fewer_latents_active():
    l0s = []
    for price in (1.0, 30.0):
        model = level1()
        phase1(model, Rows(), C, PHASE, dataclasses.replace(SHARPENING, price=price, epochs=4), 0, Stream(3, "test"))
        l0s.append((model.encode(Rows().rows) > 0).sum().item())
    assert l0s[1] < l0s[0]


@pytest.mark.parametrize("start", list(Start))
def test_phase_2_leaves_level_1_as_it_is_and_phase_3_trains_both(start: Start):
    lower = level1()
    before = state(lower)
    latents = dataclasses.replace(LATENTS, init_level2=start)
    model, curve = curriculum.phase2(lower, 5, Rows(), C, PHASE, latents, Stream(3, "test"))
    assert [row["step"] for row in curve] == list(range(1, 9))
    assert all(torch.equal(value, before[name]) for name, value in model.level1.state_dict().items())
    second = state(model)
    curriculum.phase3(model, Rows(), C, PHASE, 0, Stream(3, "test"))
    assert not torch.equal(model.level1.W_dec, before["W_dec"])
    assert not torch.equal(model.level2.W_dec, second["level2.W_dec"])


def test_level_2_starts_where_it_is_told_to():
    untrained = dataclasses.replace(PHASE, epochs=0)
    decoders = []
    for start in Start:
        latents = dataclasses.replace(LATENTS, init_level2=start)
        model, curve = curriculum.phase2(level1(), 5, Rows(), C, untrained, latents, Stream(3, "test"))
        assert curve == []
        decoders.append(model.level2.W_dec)
    assert not any(torch.equal(a, b) for i, a in enumerate(decoders) for b in decoders[:i])
    torch.testing.assert_close(torch.stack([d.norm(dim=1) for d in decoders]), torch.ones(3, 5))


@pytest.mark.parametrize(("key", "value"), [("price", 0.0), ("price", -1.0), ("epochs", -1.0)])
def test_settings_out_of_range_are_refused_by_name(key: str, value: float):
    with pytest.raises(ValueError, match=f"`{key}` must be .*; not {value}"):
        dataclasses.replace(SHARPENING, **{key: value})
