import math
from pathlib import Path

import pytest
import torch

from hsae import losses, variants
from hsae.files import read_tensors, write_tensors
from hsae.sae import SAE, SAEOutput
from hsae.streams import Stream
from hsae.training import Autograd, Phase, fit
from hsae.variants import (
    VARIANTS,
    BatchTopKSAE,
    JumpReLU,
    JumpReLUSAE,
    Step,
    ThresholdSAE,
    TopKSAE,
)
from tests.rows import Rows
from tests.test_sae import randomised, state

D_IN, D_SAE = 5, 9


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(20, D_IN, generator=torch.Generator().manual_seed(1))


def built(kind: str, k: int = 3, beta: float = 0.1, d_in: int = D_IN, d_sae: int = D_SAE) -> SAE:
    return randomised(variants.build(kind, d_in, d_sae, k=k, beta=beta))


# Every kind


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("kind", VARIANTS)
def test_every_kind_comes_back_from_its_file_as_it_was(kind: str, nonnegative: bool, x: torch.Tensor, tmp_path: Path):
    model = randomised(variants.build(kind, D_IN, D_SAE, k=3, beta=0.02, nonnegative=nonnegative))
    model.anneal(0.3)
    model(x)
    model(x - 1)
    model.eval()
    write_tensors(tmp_path / "model.safetensors", model.state_dict(), model.header())
    loaded = variants.load(*read_tensors(tmp_path / "model.safetensors"))
    assert type(loaded) is VARIANTS[kind]
    assert loaded.header() == model.header()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    for expected, found in zip(model(x), loaded(x), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", VARIANTS)
def test_every_kind_is_built_as_asked_for(kind: str):
    model = variants.build(kind, D_IN, D_SAE, k=3, beta=0.25, nonnegative=True)
    assert type(model) is VARIANTS[kind]
    assert model.kind == kind
    assert (model.d_in, model.d_sae, model.nonnegative, model.beta.item()) == (D_IN, D_SAE, True, 0.25)
    assert (model.k == 3) if isinstance(model, TopKSAE) else not hasattr(model, "k")
    assert (model.W_dec >= 0).all()


def test_an_unknown_kind_is_refused_with_the_list_of_those_there_are():
    with pytest.raises(ValueError, match=f"^`kind` must be one of {', '.join(VARIANTS)}; not 'sparsemax'.$"):
        variants.build("sparsemax", D_IN, D_SAE, k=3, beta=0.1)


@pytest.mark.parametrize("k", [0, -1, D_SAE + 1])
@pytest.mark.parametrize("kind", VARIANTS)
def test_a_k_out_of_range_is_refused_where_the_kind_needs_one(kind: str, k: int):
    if issubclass(VARIANTS[kind], TopKSAE):
        with pytest.raises(ValueError, match=rf"^`k` must be in 1..d_sae \(=9\); not {k}.$"):
            variants.build(kind, D_IN, D_SAE, k=k, beta=0.1)
    else:
        assert "k" not in variants.build(kind, D_IN, D_SAE, k=k, beta=0.1).header()


@pytest.mark.parametrize("kind", VARIANTS)
def test_every_kind_counts_idle_tokens_in_training_and_changes_no_buffer_in_evaluation(kind: str, x: torch.Tensor):
    model = built(kind, k=1)
    first, second = model(x[:3]).acts, model(x[3:5]).acts
    expected = []
    for latent in range(D_SAE):
        idle = 0
        for acts in (first, second):
            idle = 0 if any(value > 0 for value in acts[:, latent].tolist()) else idle + len(acts)
        expected.append(idle)
    assert model.idle_tokens.tolist() == expected
    assert len(set(expected)) > 1
    before = state(model)
    model.eval()(x)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("kind", VARIANTS)
def test_every_kinds_activations_are_positive_pre_activations_or_zero(kind: str, x: torch.Tensor):
    for model in (built(kind), built(kind).eval()):
        out = model(x)
        assert torch.equal(out.pre_acts, model.pre_acts(x))
        assert torch.equal(out.acts, out.pre_acts * (out.acts > 0))
        assert (out.acts > 0).any()
        assert torch.equal(out.x_hat, model.decode(out.acts))


class Objective(torch.nn.Module):
    """What phase 1 minimises, as a module whose parameters can be replaced."""

    def __init__(self, model: SAE):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.model(x)
        return self.model.error(x, out) + self.model.sparsity(out, x.shape[1])


@pytest.mark.parametrize("kind", VARIANTS)
def test_gradients_of_every_kinds_objective_are_right_where_none_is_estimated(kind: str, x: torch.Tensor):
    # The threshold of a JumpReLU has no true gradient: the loss jumps there.
    names = ["W_enc", "W_dec", "b_enc", "b_dec"]
    module = Objective(built(kind).double())

    def objective(*tensors: torch.Tensor) -> torch.Tensor:
        replaced = {f"model.{name}": tensor for name, tensor in zip(names, tensors, strict=True)}
        return torch.func.functional_call(module, replaced, (x.double(),))

    inputs = [getattr(module.model, name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(objective, inputs)


def own(model: SAE, latents: list[int]) -> dict[str, torch.Tensor]:
    """Copies of all that belongs to some latents, and of all parameters that belong to none."""
    tensors = state(model)
    tensors["W_enc"] = tensors["W_enc"].T
    rows = {name: tensor[latents] for name, tensor in tensors.items() if tensor.shape[:1] == (model.d_sae,)}
    return {**rows, "b_dec": tensors["b_dec"]}


@pytest.mark.parametrize("kind", VARIANTS)
def test_revival_leaves_the_other_latents_as_they_are_to_the_bit(kind: str):
    model, x = built(kind, d_in=16, d_sae=32), torch.randn(300, 16, generator=torch.Generator().manual_seed(1))
    model.idle_tokens[[3, 30]] = 100
    others = [latent for latent in range(32) if latent not in (3, 30)]
    before = own(model, others)
    assert model.revive(x, 100, torch.Generator().manual_seed(0)) == 2
    for name, tensor in own(model, others).items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("kind", VARIANTS)
def test_dead_latents_that_a_small_batch_has_no_token_for_wait_as_they_are(kind: str):
    model = built(kind)
    model.idle_tokens[[1, 4, 7]] = 100
    before = own(model, [7])
    assert model.revive(torch.eye(2, D_IN), 100, torch.Generator().manual_seed(0)) == 2
    for name, tensor in own(model, [7]).items():
        torch.testing.assert_close(tensor, before[name], msg=name)


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])
def test_revival_is_no_training_batch_of_the_running_threshold(kind: str, x: torch.Tensor):
    model = built(kind)
    assert isinstance(model, BatchTopKSAE)
    model(x)
    before = model.threshold.clone()
    model.idle_tokens[3] = 100
    model.revive(2 * x, 100, torch.Generator().manual_seed(0))
    assert torch.equal(model.threshold, before)


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_start_from_data_suits_every_kinds_least_activation_and_changes_no_buffer(kind: str):
    model, x = built(kind), torch.randn(1000, D_IN, generator=torch.Generator().manual_seed(1))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.init_from_data(x)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    reaching = (model.pre_acts(x) > torch.as_tensor(model.least())).sum(0)
    assert reaching.tolist() == pytest.approx([1000 * SAE.INITIAL_DENSITY] * D_SAE, abs=1)


def test_the_start_from_data_scales_what_exceeds_a_threshold_to_the_best_reconstruction():
    model, x = variants.build("threshold", D_IN, D_SAE, k=1, beta=0.1), torch.randn(1000, D_IN)
    model.init_from_data(x)
    best, least = losses.mse(model(x).x_hat, x), torch.as_tensor(model.least())
    for factor in (0.9, 1.1):
        other = variants.load(state(model), model.header())
        with torch.no_grad():
            other.W_enc.mul_(factor)
            other.b_enc.copy_(least + factor * (other.b_enc - least))
        assert losses.mse(other(x).x_hat, x) > best


@pytest.mark.parametrize("left", [0.0, 0.5])
@pytest.mark.parametrize("kind", VARIANTS)
def test_a_revived_latent_exceeds_its_kinds_least_activation_on_a_hundredth_of_the_batch(kind: str, left: float):
    model, x = built(kind), torch.randn(2000, D_IN, generator=torch.Generator().manual_seed(1))
    model.anneal(left)
    model.b_enc.data[4] = -100.0
    model.idle_tokens[4] = 100
    model.revive(x, 100, torch.Generator().manual_seed(0))
    reaching = model.pre_acts(x)[:, 4] > torch.as_tensor(model.least())
    assert reaching.sum().item() == pytest.approx(20, abs=1)
    if not isinstance(model, TopKSAE):
        assert torch.equal(model.encode(x)[:, 4] > 0, reaching)


def sparse_data(n: int) -> torch.Tensor:
    """Sums of a few of 24 random directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(24, 16, generator=generator)
    x = (torch.rand(n, 24, generator=generator) * (torch.rand(n, 24, generator=generator) < 0.15)) @ directions
    return x / x.std()


def trained(kind: str, dead_tokens: int, epochs: int) -> tuple[SAE, torch.Tensor, list[dict[str, float]]]:
    """A model a third of whose latents were killed before it was trained."""
    torch.manual_seed(0)
    model, x = variants.build(kind, 16, 32, k=4, beta=0.05), sparse_data(4096)
    model.b_enc.data[:10] = -100.0

    def objective(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        out = model(batch)
        return {"error": model.error(batch, out), "sparsity": model.sparsity(out, 16)}

    phase = Phase(epochs, 256, 3e-3, 0.3, 0.0)
    curve = fit("phase1", model, Rows(x), Autograd(model, objective), phase, Stream(2, "test"), dead_tokens)
    return model, x, curve


def test_killed_latents_stay_dead_where_nothing_is_revived_and_live_where_they_are():
    model, x, curve = trained("topk", dead_tokens=0, epochs=12)
    assert (model.b_enc[:10] == -100).all()
    assert not (model.encode(x)[:, :10] > 0).any()
    assert sum(row["revived"] for row in curve) == 0
    revived, x, curve = trained("topk", dead_tokens=2048, epochs=12)
    assert (revived.encode(x)[:, :10] > 0).any(0).all()
    assert sum(row["revived"] for row in curve) >= 10


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_long_run_that_revives_at_every_occasion_does_not_diverge(kind: str):
    _, _, curve = trained(kind, dead_tokens=256, epochs=40)
    assert sum(row["revived"] for row in curve) > 20
    assert max(row["error"] for row in curve) == curve[0]["error"]
    assert curve[-1]["error"] < 0.7 * curve[0]["error"]


# TopK


@pytest.mark.parametrize("k", [1, 3, D_SAE])
def test_topk_keeps_exactly_the_k_largest_positive_pre_activations(x: torch.Tensor, k: int):
    acts, _, pre_acts = built("topk", k)(x)
    for row, values in zip(acts.tolist(), pre_acts.tolist(), strict=True):
        kept = sorted(range(D_SAE), key=values.__getitem__, reverse=True)[:k]
        assert row == [max(value, 0.0) if j in kept else 0.0 for j, value in enumerate(values)]


def test_topk_with_all_latents_is_the_relu_autoencoder(x: torch.Tensor):
    topk, relu = built("topk", k=D_SAE), built("relu")
    for found, expected in zip(topk(x), relu(x), strict=True):
        assert torch.equal(found, expected)


def test_topk_sends_gradients_to_the_latents_that_it_kept_and_to_no_other(x: torch.Tensor):
    model = built("topk", k=1)
    acts = model.encode(x[:1])
    acts.sum().backward()
    assert model.b_enc.grad is not None
    assert torch.equal(model.b_enc.grad != 0, acts[0] > 0)


# BatchTopK


def batch_topk(pre_acts: torch.Tensor, k: int) -> tuple[list[list[float]], float]:
    """Activations by sorting everything, and the smallest of them."""
    positive = sorted((value for row in pre_acts.tolist() for value in row if value > 0), reverse=True)
    kept = positive[: k * len(pre_acts)]
    return [[value if value in kept else 0.0 for value in row] for row in pre_acts.tolist()], kept[-1]


def test_batchtopk_keeps_the_largest_of_the_whole_batch(x: torch.Tensor):
    model = built("batchtopk", k=2)
    acts, _, pre_acts = model(x)
    assert acts.tolist() == batch_topk(pre_acts, 2)[0]
    n_active = (acts > 0).sum(1)
    assert n_active.sum() == 2 * len(x)
    assert n_active.min() < 2 < n_active.max()


def test_batchtopks_threshold_is_the_running_mean_of_the_smallest_that_was_kept(x: torch.Tensor):
    model = built("batchtopk", k=2)
    assert isinstance(model, BatchTopKSAE)
    expected = [batch_topk(model.pre_acts(batch), 2)[1] for batch in (x, 2 * x, x - 1)]
    model(x)
    assert model.threshold.item() == pytest.approx(expected[0])
    model(2 * x)
    model(x - 1)
    running = 0.99 * (0.99 * expected[0] + 0.01 * expected[1]) + 0.01 * expected[2]
    assert model.threshold.item() == pytest.approx(running)
    assert running != pytest.approx(expected[0])


def test_in_evaluation_batchtopk_judges_every_token_by_the_threshold_alone(x: torch.Tensor):
    model = built("batchtopk", k=2)
    assert isinstance(model, BatchTopKSAE)
    model(x)
    model.eval()
    pre_acts = model.pre_acts(x)
    acts = model.activate(pre_acts)
    threshold = model.threshold.item()
    assert acts.tolist() == [[value if value > threshold else 0.0 for value in row] for row in pre_acts.tolist()]
    for row in range(len(x)):
        assert torch.equal(model.activate(pre_acts[[row]])[0], acts[row])
    model.train()
    alone = torch.cat([model.activate(pre_acts[[row]]) for row in range(len(x))])
    assert not torch.equal(alone, acts)


def test_batchtopk_with_too_few_positive_activations_keeps_them_all(x: torch.Tensor):
    model = built("batchtopk", k=5)
    model.b_enc.data.sub_(3.0)
    expected = model.pre_acts(x).relu()
    assert 0 < (expected > 0).sum().item() < 5 * len(x)
    assert torch.equal(model(x).acts, expected)
    assert torch.equal(model(x).acts, expected)
    assert torch.equal(model.eval()(x).acts, expected)


def test_batchtopk_of_a_batch_without_positive_activations_is_silent(x: torch.Tensor):
    model = built("batchtopk", k=5)
    model.b_enc.data.fill_(-100.0)
    assert not model(x).acts.any()
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_before_any_training_batchtopk_keeps_all_positive_activations(x: torch.Tensor):
    model = built("batchtopk", k=1).eval()
    acts, _, pre_acts = model(x)
    assert torch.equal(acts, pre_acts.relu())


# Matryoshka


@pytest.mark.parametrize(("d_sae", "ends"), [(32, [2, 4, 8, 16, 32]), (21, [1, 2, 5, 10, 21]), (3, [1, 1, 1, 1, 3])])
def test_matryoshkas_error_is_the_mean_over_its_prefixes(x: torch.Tensor, d_sae: int, ends: list[int]):
    model = built("matryoshka", d_sae=d_sae)
    out = model(x)
    errors = []
    for end in ends:
        x_hat = [
            [model.b_dec[i].item() + sum(row[j] * model.W_dec[j, i].item() for j in range(end)) for i in range(D_IN)]
            for row in out.acts.tolist()
        ]
        errors.append((torch.tensor(x_hat) - x).square().mean().item())
    assert model.error(x, out).item() == pytest.approx(sum(errors) / 5, rel=1e-5)
    assert model.sparsity(out, D_IN).item() == 0


# Gated


def gated(values: list[float], k: int) -> list[float]:
    """The largest parents and the largest child of each, one token at a time."""
    n_families = len(values) // 4
    n_parents = len(values) - 3 * n_families
    acts = [0.0] * len(values)
    for parent in sorted(range(n_parents), key=values.__getitem__, reverse=True)[: math.ceil(k / 2)]:
        if values[parent] > 0:
            acts[parent] = values[parent]
            if parent < n_families:
                children = range(n_parents + 3 * parent, n_parents + 3 * parent + 3)
                child = max(children, key=values.__getitem__)
                acts[child] = max(values[child], 0.0)
    return acts


@pytest.mark.parametrize("d_sae", [3, 9, 16, 18])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_gated_keeps_the_largest_parents_and_the_largest_child_of_each(x: torch.Tensor, d_sae: int, k: int):
    acts, _, pre_acts = built("gated", k, d_sae=d_sae)(x)
    assert acts.tolist() == [gated(values, k) for values in pre_acts.tolist()]
    assert (acts > 0).sum(1).max() <= k + k % 2


def test_a_gated_child_is_never_active_without_its_parent():
    on = built("gated", k=4, d_sae=16)(torch.randn(500, D_IN, generator=torch.Generator().manual_seed(1))).acts > 0
    for parent in range(4):
        children = on[:, 4 + 3 * parent : 7 + 3 * parent]
        assert children.any()
        assert not (children & ~on[:, [parent]]).any()
        assert children.sum(1).max() == 1


# Threshold


def single(model: SAE, z: torch.Tensor) -> SAEOutput:
    """The output of a model whose pre-activations are given."""
    acts = model.activate(z)
    return SAEOutput(acts, model.decode(acts), z)


def test_the_threshold_is_the_square_root_of_twice_beta():
    model = variants.build("threshold", 2, 5, k=1, beta=0.5)
    z = torch.tensor([[0.5, 1.0, 1.001, 3.0, -2.0]])
    assert torch.equal(model.activate(z), torch.tensor([[0.0, 0.0, 1.001, 3.0, 0.0]]))
    assert model.sparsity(single(model, z), 2).item() == 0


@pytest.mark.parametrize("beta", [0.02, 0.5, 3.0])
def test_the_hard_threshold_minimises_the_squared_error_plus_beta_times_l0(beta: float):
    model = variants.build("threshold", 2, 401, k=1, beta=beta)
    z = torch.linspace(0, 4, 401)
    for value, act in zip(z.tolist(), model.activate(z[None])[0].tolist(), strict=True):
        costs = {h: (value - h) ** 2 / 2 + beta * (h != 0) for h in (0.0, value)}
        assert costs[act] == min(costs.values())


@pytest.mark.parametrize("kind", ["threshold", "jumprelu"])
@pytest.mark.parametrize(("left", "factor"), [(1.0, 10.0), (0.5, math.sqrt(10)), (0.0, 1.0)])
def test_annealing_scales_the_threshold_geometrically(kind: str, left: float, factor: float):
    model = variants.build(kind, 2, 3, k=1, beta=0.5)
    model.anneal(left)
    assert isinstance(model, ThresholdSAE)
    assert model.threshold().detach().expand(3).tolist() == pytest.approx([factor] * 3)
    assert model.settled() == (left == 0)
    assert torch.as_tensor(model.least()).item() == pytest.approx(factor)
    z = factor * torch.tensor([[0.99, 1.01, 2.0]])
    assert torch.equal(model.activate(z) > 0, torch.tensor([[False, True, True]]))


def test_kinds_without_a_threshold_are_settled_from_the_start():
    for kind in ("relu", "topk", "batchtopk", "matryoshka", "gated"):
        model = built(kind)
        before = state(model)
        model.anneal(1.0)
        assert model.settled()
        assert model.least() == 0
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["threshold", "jumprelu"])
def test_nearness_is_the_share_of_the_threshold_that_is_reached(kind: str):
    model = variants.build(kind, 2, 5, k=1, beta=0.5)
    z = torch.tensor([[-1.0, 0.0, 0.25, 1.0, 7.0]])
    assert model.nearness(single(model, z)).tolist() == [[0.0, 0.0, 0.25, 1.0, 1.0]]


@pytest.mark.parametrize("kind", ["relu", "topk", "batchtopk", "matryoshka", "gated"])
def test_nearness_without_a_threshold_is_activity(kind: str, x: torch.Tensor):
    model = built(kind)
    out = model(x)
    assert torch.equal(model.nearness(out), (out.acts > 0).float())


@pytest.mark.parametrize("kind", ["threshold", "jumprelu"])
def test_with_beta_0_a_threshold_is_a_relu_and_all_gradients_are_finite(kind: str, x: torch.Tensor):
    model = built(kind, beta=0.0)
    out = model(x)
    assert torch.equal(out.acts, out.pre_acts.relu())
    children, assignment = torch.ones(len(x), 4, dtype=torch.bool), torch.full((4, D_SAE), 1 / D_SAE)
    covered = losses.coverage(children, model.nearness(out), assignment)
    (model.error(x, out) + model.sparsity(out, D_IN) + covered).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


# JumpReLU


@pytest.fixture
def jumprelu() -> JumpReLUSAE:
    """Thresholds from a quarter of a unit to three, and more while annealing."""
    model = variants.build("jumprelu", D_IN, D_SAE, k=1, beta=0.5)
    model.anneal(0.25)
    assert isinstance(model, JumpReLUSAE)
    model.log_threshold.data.copy_(torch.linspace(0.25, 3, D_SAE).log())
    return model


def pre_activations(model: JumpReLUSAE, n: int = 40) -> torch.Tensor:
    """Some on either side of every threshold, many near it."""
    noise = torch.randn(n, D_SAE, generator=torch.Generator().manual_seed(3))
    return (model.threshold().detach() * (1 + 0.4 * noise)).requires_grad_()


def test_jumprelu_passes_what_exceeds_its_latents_threshold(jumprelu: JumpReLUSAE):
    expected = [10**0.25 * math.exp(value) for value in jumprelu.log_threshold.tolist()]
    z = pre_activations(jumprelu)
    acts = jumprelu.activate(z)
    for row, values in zip(acts.tolist(), z.tolist(), strict=True):
        assert row == [z if z > threshold else 0.0 for z, threshold in zip(values, expected, strict=True)]
    assert 0 < (acts > 0).sum() < acts.numel()


def kernel(model: JumpReLUSAE, z: torch.Tensor, token: int, latent: int) -> float:
    """Rectangular kernel of unit mass around the threshold, half a threshold wide: its density."""
    threshold = model.threshold()[latent].item()
    return float(abs(z[token, latent].item() - threshold) < 0.25 * threshold) / (0.5 * threshold)


def test_jumprelus_gradients_are_exact_for_z_and_the_kernel_estimate_for_the_threshold(jumprelu: JumpReLUSAE):
    z = pre_activations(jumprelu)
    upstream = torch.randn(z.shape, generator=torch.Generator().manual_seed(4))
    acts = jumprelu.activate(z)
    (upstream * acts).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, upstream * (acts > 0))
    assert jumprelu.log_threshold.grad is not None
    for latent, found in enumerate(jumprelu.log_threshold.grad.tolist()):
        threshold = jumprelu.threshold()[latent].item()
        # d/d threshold of z * step(z - threshold) is -threshold * delta(z - threshold); times threshold for its log.
        estimate = sum(-upstream[b, latent].item() * threshold * kernel(jumprelu, z, b, latent) for b in range(len(z)))
        assert found == pytest.approx(threshold * estimate, rel=1e-4)


def test_jumprelus_penalty_is_beta_times_l0_whose_gradient_moves_the_threshold_alone(jumprelu: JumpReLUSAE):
    z = pre_activations(jumprelu)
    out = single(jumprelu, z)
    penalty = jumprelu.sparsity(out, 10)
    l0 = sum(value > 0 for row in out.acts.tolist() for value in row) / len(z)
    assert penalty.item() == pytest.approx(2 / 10 * 0.5 * l0)
    to_z, found = torch.autograd.grad(penalty, [z, jumprelu.log_threshold], allow_unused=True)
    assert to_z is None or not to_z.any()
    for latent, gradient in enumerate(found.tolist()):
        threshold = jumprelu.threshold()[latent].item()
        density = sum(kernel(jumprelu, z, b, latent) for b in range(len(z))) / len(z)
        assert gradient == pytest.approx(2 / 10 * 0.5 * -density * threshold, rel=1e-4)
        assert gradient < 0


def test_mean_error_and_penalty_are_2_over_d_of_half_the_squared_error_plus_beta_times_l0(x: torch.Tensor):
    model = built("jumprelu", beta=0.3)
    out = model(x)
    l0 = (out.acts > 0).sum(1)
    cost = ((x - out.x_hat).square().sum(1) / 2 + 0.3 * l0).mean()
    assert (model.error(x, out) + model.sparsity(out, D_IN)).item() == pytest.approx(2 / D_IN * cost.item())


def test_the_kernels_are_the_same_in_any_unit():
    z, threshold = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.5, 0.7])

    def gradients(unit: float) -> list[torch.Tensor]:
        leaf = threshold.log().requires_grad_()
        scaled = unit * leaf.exp()
        value: torch.Tensor = JumpReLU.apply(unit * z, scaled, 0.5) / unit + Step.apply(unit * z, scaled, 0.5)  # pyright: ignore
        return [value.detach(), *torch.autograd.grad(value.sum(), leaf)]

    for found, expected in zip(gradients(8.0), gradients(1.0), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_revived_jumprelu_latent_has_the_median_threshold(jumprelu: JumpReLUSAE):
    thresholds = jumprelu.log_threshold.tolist()
    jumprelu.idle_tokens[0] = 100
    x = torch.randn(300, D_IN, generator=torch.Generator().manual_seed(1))
    jumprelu.revive(x, 100, torch.Generator().manual_seed(0))
    assert jumprelu.log_threshold.tolist() == [sorted(thresholds)[D_SAE // 2], *thresholds[1:]]
