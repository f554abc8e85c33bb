"""Gradients by hand are autograd's, for every kind of autoencoder and for both levels, whatever the batch."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from hsae import kernels, two_level
from hsae.gradients import SPARSE, Level, ReLUGradients, SparseGradients, level_gradients, level_objective
from hsae.hierarchical import HierarchicalSAE, objective
from hsae.losses import Coefficients
from hsae.sae import SAE
from hsae.streams import Stream
from hsae.training import Autograd, Gradients, Phase, Terms, fit
from hsae.two_level import TwoLevelGradients
from hsae.variants import VARIANTS, BatchTopKSAE, JumpReLUSAE, build
from tests.rows import Rows

LEVELS = ["relu", "topk", "batchtopk", "threshold", "jumprelu"]
C = Coefficients(
    beta1=0.05, beta2=0.1, lambda_cos=0.5, gamma_group=0.01, weight_coverage=1.5,
    weight_x_from_h1=1.0, weight_h1_from_h2=8.0, weight_x_from_h2=4.0, level1_grad_scale=0.3,
)  # fmt: skip

needs_compiler = pytest.mark.skipif(kernels.library() is None, reason="kernels.cpp could not be compiled here")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def tokens(n: int, d: int, seed: int = 0) -> Tensor:
    """Sparse combinations of more directions than dimensions, with some noise."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.rand(n, 3 * d, generator=generator) * (torch.rand(n, 3 * d, generator=generator) < 0.05)
    directions = torch.randn(3 * d, d, generator=torch.Generator().manual_seed(99))
    return 2 * codes @ directions + 0.1 * torch.randn(n, d, generator=generator)


@torch.no_grad()
def autoencoder(kind: str, d: int, d_sae: int, k: int = 5) -> SAE:
    """An autoencoder with weights as training leaves them."""
    torch.manual_seed(0)
    model = build(kind, d, d_sae, k=k, beta=0.01 if kind == "relu" else 0.1)
    model.init_from_data(tokens(d_sae + 20, d, seed=1))
    model.b_dec.normal_(0, 0.1)
    model.b_enc.add_(0.05 * torch.randn(d_sae))
    if isinstance(model, JumpReLUSAE):
        model.log_threshold.normal_(0, 0.1)
    return model.train()


@torch.no_grad()
def hsae(kind: str, frozen: bool, d: int = 20, widths: tuple[int, int] = (70, 35)) -> HierarchicalSAE:
    """Both levels, one level-1 latent without any parent; level 1 possibly frozen, as in phase 2."""
    level1, level2 = autoencoder(kind, d, widths[0]), build(kind, *widths, k=6, beta=0.12, nonnegative=True)
    model = HierarchicalSAE(level1, level2)
    model.level2.init_from_data(model.level1.encode(tokens(widths[1] + 200, d, seed=2)))
    level2.b_dec.add_(0.01 * torch.rand(widths[0]))
    level2.W_dec.add_(0.02 * torch.rand(widths[1], widths[0]))
    level2.W_dec[:, 3] = 0
    level2.constrain()
    if isinstance(level2, JumpReLUSAE):
        level2.log_threshold.normal_(0, 0.1)
    if isinstance(level1, BatchTopKSAE):
        level1.threshold.fill_(0.3)
    model.level1.requires_grad_(not frozen)
    return model.train()


def check_same(model: nn.Module, by_hand: Gradients, oracle_model: nn.Module, oracle: Gradients, x: Tensor) -> Terms:
    """One call of each: the same terms, gradients and buffers."""
    terms, expected = by_hand(x), oracle(x)
    assert list(terms) == list(expected)
    for name, term in expected.items():
        assert terms[name].item() == pytest.approx(term.item(), rel=1e-5, abs=1e-7), name
    theirs = dict(oracle_model.named_parameters())
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None
            continue
        gradient, expected_gradient = parameter.grad, theirs[name].grad
        assert gradient is not None and expected_gradient is not None  # noqa: PT018
        assert (gradient - expected_gradient).norm() <= 1e-5 * expected_gradient.norm(), name
    for (name, buffer), other in zip(model.named_buffers(), oracle_model.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, msg=name)
    return terms


class Loss(nn.Module):
    """The sum of a model's terms as a function of its parameters."""

    def __init__(self, terms: Callable[[Tensor], Terms], model: nn.Module):
        super().__init__()
        self.terms, self.model = terms, model

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(list(self.terms(x).values())).sum()


@pytest.mark.parametrize("kind", ["relu", "topk", "batchtopk", "matryoshka", "gated", "phase 2"])
def test_the_oracles_gradients_are_finite_differences_where_nothing_is_estimated_or_detached(kind: str):
    if kind == "phase 2":
        model, x = hsae("relu", frozen=True, d=12, widths=(40, 10)).double(), tokens(30, 12).double()
        loss = Loss(lambda x: objective(model, x, C), model)
        model.level2.b_enc.data.add_(1)
        assert float((model(x).level2.acts > 0).double().mean()) > 0.1
    else:
        level, x = autoencoder(kind, 6, 12, k=3).double(), tokens(9, 6).double()
        loss = Loss(lambda x: level_objective(level, x, 3.0), level)
    parameters = {name: p.detach().requires_grad_() for name, p in loss.named_parameters() if p.requires_grad}

    def of_parameters(*values: Tensor) -> Tensor:
        return torch.func.functional_call(loss, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(of_parameters, tuple(parameters.values()))


# One level


@needs_compiler
@pytest.mark.parametrize("sizes", [(20, 70, 333), (64, 256, 1100), (7, 9, 1)], ids=str)
@pytest.mark.parametrize("kind", VARIANTS)
def test_gradients_of_a_level_by_hand_are_those_of_autograd(kind: str, sizes: tuple[int, int, int]):
    d, d_sae, batch = sizes
    model = autoencoder(kind, d, d_sae, k=3)
    other = copy.deepcopy(model)
    by_hand, oracle = level_gradients(model, 3.0), Autograd(other, lambda x: level_objective(other, x, 3.0))
    assert type(by_hand) is (ReLUGradients if kind == "relu" else SparseGradients)
    # A smaller batch in between: nothing of the one before may be left in the buffers.
    for n, seed in ((batch, 3), (max(batch // 3, 1), 4), (batch, 5)):
        check_same(model, by_hand, other, oracle, tokens(n, d, seed))
        assert model.l0.item() == pytest.approx(other.l0.item())


@needs_compiler
def test_relu_goes_from_dense_products_to_entries_and_back_with_the_latents_that_are_active():
    model = autoencoder("relu", 20, 70)
    other = copy.deepcopy(model)
    by_hand, oracle = ReLUGradients(model, 1.0), Autograd(other, lambda x: level_objective(other, x, 1.0))
    x = tokens(300, 20, seed=3)
    for shift, dense in ((3.0, True), (-3.0, True), (0.0, False), (3.0, False), (0.0, True)):
        assert bool(by_hand.active >= SPARSE) is dense
        model.b_enc.data.add_(shift)
        other.b_enc.data.add_(shift)
        check_same(model, by_hand, other, oracle, x)
        assert by_hand.active.item() == pytest.approx(float((other.encode(x) > 0).float().mean()))


@needs_compiler
def test_gradients_in_double_precision_and_of_a_level_that_learns_nothing_are_autograds():
    assert isinstance(level_gradients(autoencoder("topk", 8, 16).double()), Autograd)
    assert isinstance(level_gradients(autoencoder("topk", 8, 16), 0.0), Autograd)


class Doubled(SAE):
    """A user's own kind, which derives from one whose gradients are known."""

    def activate(self, pre_acts: Tensor) -> Tensor:
        return 2 * pre_acts.relu()


class OwnHierarchicalSAE(HierarchicalSAE):
    pass


@needs_compiler
def test_gradients_of_kinds_that_are_not_known_are_autograds():
    own = Doubled(8, 16)
    assert isinstance(level_gradients(own), Autograd)
    level2 = build("topk", 16, 8, k=2, beta=0.0, nonnegative=True)
    assert isinstance(two_level.gradients(HierarchicalSAE(own, level2), C), Autograd)
    level1 = autoencoder("topk", 8, 16)
    assert isinstance(two_level.gradients(OwnHierarchicalSAE(level1, level2), C), Autograd)
    assert isinstance(two_level.gradients(HierarchicalSAE(level1, level2), C), TwoLevelGradients)


@needs_compiler
def test_a_batch_with_fewer_positive_latents_than_k_keeps_them_all():
    for kind in ("topk", "batchtopk", "matryoshka"):
        model = autoencoder(kind, 8, 32, k=30)
        model.b_enc.data.sub_(0.4)
        other = copy.deepcopy(model)
        x = tokens(50, 8, seed=3)
        by_hand = level_gradients(model)
        for _ in range(2):
            check_same(model, by_hand, other, Autograd(other, lambda x, m=other: level_objective(m, x, 1.0)), x)


@needs_compiler
def test_a_batch_far_sparser_than_the_one_before_is_selected_exactly():
    """The search starts from the last batch's cutoff, which may be far too high."""
    for kind in ("topk", "batchtopk"):
        model = autoencoder(kind, 20, 70)
        other = copy.deepcopy(model)
        by_hand, oracle = level_gradients(model), Autograd(other, lambda x, m=other: level_objective(m, x, 1.0))
        for scale in (30.0, 0.1, 3.0):
            check_same(model, by_hand, other, oracle, scale * tokens(100, 20, seed=3))


# Selection


def entries(level: Level, n: int) -> Tensor:
    """The entries as a dense matrix."""
    dense = torch.zeros(n, level.model.d_sae)
    for row in range(n):
        own = slice(int(level.start[row]), int(level.start[row] + level.count[row]))
        latents = level.latents[own].long()
        assert latents.tolist() == sorted(latents.tolist()) or level.model.kind == "gated"
        dense[row, latents] = level.values[own]
    return dense


@needs_compiler
@pytest.mark.parametrize("k", [1, 5, 16, 17])
def test_of_equal_activations_the_first_are_kept(k: int):
    model = build("topk", 3, 17, k=k, beta=0.0)
    level = Level(model.train(), 3)
    pre_acts = torch.randint(-2, 4, (200, 17), generator=torch.Generator().manual_seed(0)).float()
    level.read(pre_acts)
    expected = torch.zeros_like(pre_acts)
    for row, values in enumerate(pre_acts.tolist()):
        best = sorted((j for j in range(17) if values[j] > 0), key=lambda j, v=values: (-v[j], j))[:k]
        expected[row, best] = pre_acts[row, best]
    assert torch.equal(entries(level, 200), expected)


@needs_compiler
def test_entries_are_sorted_by_latent_and_then_by_token():
    level = Level(autoencoder("topk", 20, 70).train(), 20)
    with torch.no_grad():
        level.encode(tokens(300, 20))
    where = level.where.tolist()
    assert where[0] == 0
    assert where[-1] == int(level.count.sum())
    owner = torch.repeat_interleave(torch.arange(300), level.count.long())
    for latent in range(70):
        own = level.entries[where[latent] : where[latent + 1]]
        assert (level.latents[own] == latent).all()
        rows = level.row[where[latent] : where[latent + 1]].long()
        assert rows.tolist() == sorted(rows.tolist())
        assert ((level.start[rows] <= own) & (own < level.start[rows] + level.count[rows])).all()
    assert owner.numel() == where[-1]


# Both levels


@needs_compiler
@pytest.mark.parametrize("frozen", [True, False], ids=["phase2", "phase3"])
@pytest.mark.parametrize("kind", LEVELS)
def test_gradients_of_the_hsae_by_hand_are_those_of_autograd(kind: str, frozen: bool):
    model = hsae(kind, frozen)
    other = copy.deepcopy(model)
    by_hand, oracle = two_level.gradients(model, C), Autograd(other, lambda x: objective(other, x, C))
    assert isinstance(by_hand, TwoLevelGradients)
    for n, seed in ((333, 3), (100, 4), (333, 5)):
        terms = check_same(model, by_hand, other, oracle, tokens(n, 20, seed))
    hidden = {"x_from_h1", "sparsity_h1"} if frozen else set()
    assert all(terms[name] > 0 for name in ("x_from_h2", "h1_from_h2", "coverage", "group_sparsity"))
    assert all(terms[name] == 0 for name in hidden)


@needs_compiler
@pytest.mark.parametrize(
    "removed", ["lambda_cos", "gamma_group", "weight_coverage", "weight_h1_from_h2", "weight_x_from_h2"]
)
def test_a_removed_term_is_removed_by_hand_too(removed: str):
    model, c = hsae("jumprelu", frozen=False), Coefficients(**{**vars(C), removed: 0.0})
    other = copy.deepcopy(model)
    check_same(
        model, two_level.gradients(model, c), other, Autograd(other, lambda x: objective(other, x, c)), tokens(200, 20)
    )


@needs_compiler
def test_where_hardly_any_latents_share_a_group_the_grouping_term_is_that_of_the_oracle():
    # The term is then a difference of nearly equal sums, so these had better be free of rounding.
    model = hsae("jumprelu", frozen=True, widths=(35, 35))
    model.level1.W_dec.data.copy_(torch.eye(20).repeat(2, 1)[:35])
    model.level2.W_dec.data.copy_(torch.eye(35)).add_(1e-3)
    model.level2.constrain()
    other = copy.deepcopy(model)
    check_same(
        model, two_level.gradients(model, C), other, Autograd(other, lambda x: objective(other, x, C)), tokens(200, 20)
    )


@needs_compiler
def test_without_reconstruction_from_level_2_autograd_says_that_there_is_nothing_to_learn():
    model = hsae("jumprelu", frozen=True)
    c = Coefficients(**dict.fromkeys(vars(C), 0.0) | {"beta1": 0.05, "beta2": 0.1})
    assert isinstance(two_level.gradients(model, c), Autograd)


# Training


def trajectories(model: nn.Module, make, phase: Phase, x: Tensor, dead_tokens: int) -> dict[str, Tensor]:
    """Loss curves by hand, and by autograd in single and double precision."""
    found = {}
    for name, own in (("hand", model), ("single", copy.deepcopy(model)), ("double", copy.deepcopy(model).double())):
        gradients = make(own, name == "hand")
        data = Rows(x.double() if name == "double" else x)
        curve = fit("phase", own, data, gradients, phase, Stream(0, "test"), dead_tokens=dead_tokens)  # pyright: ignore[reportArgumentType]
        found[name] = torch.tensor([row["loss"] for row in curve], dtype=torch.float64)
        found[f"revived {name}"] = torch.tensor([row["revived"] for row in curve]).sum()
    return found


def check_drift(curves: dict[str, Tensor]) -> None:
    """By hand the loss is as near to that in double precision as autograd in single precision is."""
    drift = (curves["single"] / curves["double"] - 1).abs().max()
    assert (curves["hand"] / curves["double"] - 1).abs().max() <= 3 * drift + 1e-6
    assert curves["hand"][-1] < 0.9 * curves["hand"][0]


@needs_compiler
@pytest.mark.parametrize("kind", VARIANTS)
def test_200_steps_stay_as_near_to_double_precision_as_autograds(kind: str):
    x, model = tokens(3200, 20), autoencoder(kind, 20, 70)
    model.idle_tokens[:7] = 10**6  # dead from the start, to be revived

    def make(own: SAE, by_hand: bool) -> Gradients:
        return level_gradients(own) if by_hand else Autograd(own, lambda x: level_objective(own, x, 1.0))

    model.b_enc.data[:7] = -10
    curves = trajectories(model, make, Phase(4, 64, 1e-3, 0.2, 0.1), x, dead_tokens=3000)
    check_drift(curves)
    assert curves["revived hand"] >= 7


@needs_compiler
@pytest.mark.parametrize("frozen", [True, False], ids=["phase2", "phase3"])
def test_200_steps_of_both_levels_stay_as_near_to_double_precision_as_autograds(frozen: bool):
    x, model = tokens(3200, 20), hsae("jumprelu", frozen)

    def make(own: HierarchicalSAE, by_hand: bool) -> Gradients:
        return two_level.gradients(own, C) if by_hand else Autograd(own, lambda x: objective(own, x, C))

    check_drift(trajectories(model, make, Phase(4, 64, 1e-3, 0.2, 0.1), x, dead_tokens=3000))


@needs_compiler
@pytest.mark.parametrize("kind", LEVELS)
def test_gradients_repeat_to_the_bit(kind: str):
    x = tokens(700, 20)
    found = []
    for _ in range(2):
        model = hsae(kind, frozen=False)
        terms = two_level.gradients(model, C)(x)
        found.append([*terms.values(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@needs_compiler
@pytest.mark.parametrize("kind", ["topk", "jumprelu", "relu"])
def test_nan_in_the_data_reaches_the_loss(kind: str):
    x = tokens(50, 20)
    x[13, 7] = torch.nan
    assert not torch.stack(list(level_gradients(autoencoder(kind, 20, 70))(x).values())).sum().isfinite()
