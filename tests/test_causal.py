from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

from hsae import causal, variants
from hsae.activations import Normalizer
from hsae.causal import (
    Basis,
    Runs,
    Tracer,
    attribution,
    exact,
    groups,
    hsae_bases,
    middles,
    part,
    paths,
    restoration_map,
)
from hsae.causal_tasks import Task
from hsae.gpt import GPT, GPTConfig
from hsae.hierarchical import HierarchicalSAE
from tests.conftest import CONTEXT, LAYER, N_VOCAB

N = 7
CHANGED = 2


def task(n: int = N, context: int = CONTEXT, n_vocab: int = N_VOCAB, changed: int = CHANGED) -> Task:
    """Random prompts; the first class against the second, the others aside."""
    generator = torch.Generator().manual_seed(3)
    clean = torch.randint(n_vocab, (n, context), generator=generator)
    corrupt = clean.clone()
    corrupt[:, changed] = (clean[:, changed] + 1) % n_vocab
    targets, foils = torch.arange(n_vocab) < 2, torch.arange(n_vocab) == 3
    return Task(targets, foils, clean, corrupt, torch.full((n,), changed), 600 * torch.arange(n))


@pytest.fixture
def tracer(gpt: GPT) -> Tracer:
    return Tracer(gpt, LAYER, Normalizer(torch.randn(8, generator=torch.Generator().manual_seed(5)), torch.tensor(0.7)))


@pytest.fixture
def runs(tracer: Tracer) -> Runs:
    return Runs.of(tracer, task())


def test_masked_positions_make_no_part_of_the_difference(tracer: Tracer, runs: Runs, hsae: HierarchicalSAE):
    masked = Runs.of(replace(tracer, masked=[CHANGED, 99]), task())
    codes, other = (own.codes(hsae_bases(hsae)["level1"]) for own in (masked, runs))
    assert other[:, CHANGED].any()
    assert not codes[:, CHANGED].any()
    assert not masked.difference()[:, CHANGED].any()
    left = [position for position in range(CONTEXT) if position != CHANGED]
    assert torch.equal(codes[:, left], other[:, left])
    assert torch.equal(masked.difference()[:, left], runs.difference()[:, left])


@pytest.fixture
def hsae() -> HierarchicalSAE:
    torch.manual_seed(4)
    level1 = variants.build("jumprelu", 8, 24, k=4, beta=0.1)
    level2 = variants.build("relu", 24, 6, k=2, beta=0.1, nonnegative=True)
    for level in (level1, level2):
        torch.nn.init.normal_(level.b_enc, std=0.3)
        torch.nn.init.normal_(level.b_dec, std=0.3)
    return HierarchicalSAE(level1, level2).eval().requires_grad_(False)


@pytest.mark.parametrize("layer", [-1, 0, 1, 2])
def test_logits_after_the_last_character_are_the_models(tracer: Tracer, layer: int):
    tokens = task().clean
    expected = tracer.model(tokens)[:, -1]
    torch.testing.assert_close(tracer.last_logits(tracer.stream(tokens, layer), layer), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tracer.answer(tokens), expected, atol=1e-5, rtol=1e-5)


def test_runs_have_the_log_odds_of_both_prompts(runs: Runs):
    for prompts, odds in ((runs.task.clean, runs.m_clean), (runs.task.corrupt, runs.m_corrupt)):
        p = runs.tracer.model(prompts)[:, -1].softmax(-1)
        torch.testing.assert_close(odds, (p[:, :2].sum(1) / p[:, 3]).log(), atol=1e-4, rtol=1e-4)


def test_patching_with_the_run_itself_changes_nothing(runs: Runs):
    same = Runs(runs.tracer, runs.task, runs.clean, runs.clean, runs.m_clean, runs.m_clean)
    assert (same.difference() == 0).all()
    torch.testing.assert_close(same.restore(same.difference()), same.m_clean, atol=1e-5, rtol=0)
    torch.testing.assert_close(same.knock_out(same.difference()), same.m_clean, atol=1e-5, rtol=0)


def test_all_latents_and_errors_of_one_run_make_up_that_run(runs: Runs, hsae: HierarchicalSAE):
    parts = groups(runs, hsae_bases(hsae))
    assert {*parts} == {"h2", "e1", "e0", "h1"}
    whole = parts["h2"] + parts["e1"] + parts["e0"]
    torch.testing.assert_close(runs.restore(whole), runs.m_clean, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(runs.restore(parts["h1"] + parts["e0"]), runs.m_clean, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(runs.knock_out(whole), runs.m_corrupt, atol=1e-4, rtol=1e-5)
    assert (runs.restore(parts["h2"]) - runs.m_clean).abs().max() > 1e-3, "no part is all of it here"


def test_the_parts_are_the_differences_of_what_the_hsae_computes(runs: Runs, hsae: HierarchicalSAE):
    parts = groups(runs, hsae_bases(hsae))
    x, y = (runs.tracer.normalizer(stream.flatten(0, 1)) for stream in (runs.clean, runs.corrupt))
    torch.testing.assert_close(
        parts["h2"].flatten(0, 1), hsae(x).x_hat_from_h2 - hsae(y).x_hat_from_h2, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        parts["h1"].flatten(0, 1), hsae(x).level1.x_hat - hsae(y).level1.x_hat, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(runs.difference().flatten(0, 1), x - y, atol=1e-5, rtol=1e-4)


def test_nodes_in_batches_have_the_effects_that_they_have_one_by_one(
    runs: Runs, hsae: HierarchicalSAE, monkeypatch: pytest.MonkeyPatch
):
    basis = hsae_bases(hsae)["level1"]
    codes, nodes = runs.codes(basis), torch.tensor([3, 0, 17, 5, 9])
    scale, mean = runs.tracer.normalizer.scale, runs.tracer.normalizer.mean
    expected = []
    for node in nodes:
        # The oracle goes by whole reconstructions: the corrupt run's code, but for one latent.
        x, y = ((stream - mean) / scale for stream in (runs.clean, runs.corrupt))
        h = basis.encode(y)
        h[..., node] = basis.encode(x)[..., node]
        error = y - hsae.level1.decode(basis.encode(y).flatten(0, 1)).view_as(y)
        patched = (hsae.level1.decode(h.flatten(0, 1)).view_as(y) + error) * scale + mean
        logits = runs.tracer.model.logits(patched, LAYER)[:, -1]
        expected.append(runs.task.metric(logits) - runs.m_corrupt)
    for batch in (512, 8, 1):
        monkeypatch.setattr(causal, "BATCH", batch)
        torch.testing.assert_close(exact(runs, codes, basis, nodes), torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_a_node_that_is_taken_out_whole_is_ablated(runs: Runs, hsae: HierarchicalSAE):
    basis = hsae_bases(hsae)["level1"]
    x = runs.tracer.normalizer(runs.clean.flatten(0, 1))
    h = basis.encode(x)
    node = int((h != 0).sum(0).argmax())
    whole = (h[:, [node]] * basis.directions[node]).view_as(runs.clean)
    silent = h.clone()
    silent[:, node] = 0
    patched = x - hsae.level1.decode(h) + hsae.level1.decode(silent)
    stream = runs.tracer.normalizer.inverse(patched).view_as(runs.clean)
    expected = runs.task.metric(runs.tracer.model.logits(stream, LAYER)[:, -1])
    torch.testing.assert_close(runs.knock_out(whole), expected, atol=1e-4, rtol=1e-4)


def test_integrated_gradients_add_up_to_the_total_effect(runs: Runs):
    basis = Basis(lambda x: x, torch.eye(8))
    found = attribution(runs.codes(basis), basis, runs.gradient(middles(200)))
    torch.testing.assert_close(found.sum(1), runs.m_clean - runs.m_corrupt, atol=0.05, rtol=0.02)
    assert middles(2) == [0.25, 0.75]


def test_attribution_ranks_the_top_50_as_exact_patching_does():
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=3, n_head=4, d_model=32, context=16, dropout=0.0), 20).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    runs = Runs.of(
        Tracer(model.requires_grad_(False), 1, Normalizer(torch.zeros(32), torch.tensor(1.0))), task(64, 16, 20, 13)
    )
    basis = causal.dictionary_basis(variants.build("relu", 32, 128, k=8, beta=0.1).encode, torch.randn(128, 32) / 5)
    codes = runs.codes(basis).detach()
    attributed = attribution(codes, basis, runs.gradient([0.0])).mean(0)
    nodes = attributed.abs().argsort(descending=True)[:50]
    effects = exact(runs, codes, basis, nodes).mean(1)
    found: Any = spearmanr(attributed[nodes], effects)
    assert found.statistic >= 0.9
    # Means over pairs of single effects are small beside the total one, but they are effects.
    assert effects.abs().max() > 1e-3


def test_paths_of_all_children_are_the_parents_part(runs: Runs, hsae: HierarchicalSAE):
    bases = hsae_bases(hsae)
    codes = runs.codes(bases["level2"])
    one = paths(runs, hsae, codes, 2, torch.tensor([5, 11]))
    weights = hsae.level2.W_dec[2]
    by_hand = codes[..., 2, None] * (weights[11] * hsae.level1.W_dec[11])
    torch.testing.assert_close(one[1], runs.restore(by_hand) - runs.m_corrupt, atol=1e-5, rtol=1e-4)
    together = (codes[..., 2, None] * weights) @ hsae.level1.W_dec
    torch.testing.assert_close(together, part(codes, bases["level2"], torch.tensor([2])), atol=1e-5, rtol=1e-4)


def test_the_map_restores_all_at_the_end_and_nothing_before_the_change(runs: Runs):
    found = restoration_map(runs, CONTEXT)
    assert found.shape == (4, CONTEXT, N)
    total = runs.m_clean - runs.m_corrupt
    torch.testing.assert_close(found[-1, 0], total, atol=1e-4, rtol=1e-4)  # the last block, the last position
    torch.testing.assert_close(found[0, CONTEXT - 1 - CHANGED], total, atol=1e-4, rtol=1e-4)  # the replaced embedding
    before = found[:, CONTEXT - CHANGED :]
    torch.testing.assert_close(before, torch.zeros_like(before), atol=1e-5, rtol=0)
    assert found[0, 0].abs().max() < 1e-5


def known_circuit() -> Runs:
    """A transformer of one block that hands the mean of coordinate 0 over positions to coordinate 1 of the last one.

    Streams are given, so that LayerNorm sees what it is told: every row has mean 0 and variance 1, as it is.
    """
    model = GPT(GPTConfig(n_layer=1, n_head=1, d_model=4, context=4, dropout=0.0), 2).eval().requires_grad_(False)
    block: Any = model.blocks[0]
    for parameter in model.parameters():
        parameter.zero_()
    for norm in (block.ln_attn, block.ln_mlp, model.ln_final):
        norm.weight.fill_(1)
    block.attn.qkv.weight[8, 0] = 1  # value: coordinate 0; queries and keys are 0, so all positions count alike
    block.attn.proj.weight[1, 0] = 0.5
    model.token_embedding.weight[0, 1] = 3  # the first class is 3 times coordinate 1 of the last stream, normalised
    row = torch.tensor([1.0, -1.0, 1.0, -1.0])
    clean, corrupt = row.expand(1, 4, 4).clone(), row.expand(1, 4, 4).clone()
    corrupt[0, 1] = -row
    masks = torch.tensor([True, False]), torch.tensor([False, True])
    prompts = torch.zeros(1, 4, dtype=torch.long)
    it = Task(*masks, prompts, prompts, torch.tensor([1]), torch.tensor([0]))
    tracer = Tracer(model, -1, Normalizer(torch.zeros(4), torch.tensor(1.0)))
    odds = [it.metric(tracer.last_logits(stream)) for stream in (clean, corrupt)]
    return Runs(tracer, it, clean, corrupt, *odds)


def by_hand(mean_of_0: float) -> float:
    """Three times the normalised coordinate 1 of the last stream, to which half of the mean has been added."""
    last = torch.tensor([1.0, -1.0 + 0.5 * mean_of_0, 1.0, -1.0])
    return float(3 * torch.nn.functional.layer_norm(last, (4,))[1])


def test_effects_in_a_known_circuit_have_their_known_values():
    runs = known_circuit()
    # Coordinate 0, normalised, is 1 at all positions of the clean run, and -1 at one of four in the corrupt one.
    torch.testing.assert_close(runs.m_clean, torch.tensor([by_hand(1.0)]), atol=1e-4, rtol=0)
    torch.testing.assert_close(runs.m_corrupt, torch.tensor([by_hand(0.5)]), atol=1e-4, rtol=0)
    basis = Basis(lambda x: x, torch.eye(4))
    codes = runs.codes(basis)
    assert codes[0, 1].tolist() == [2, -2, 2, -2]
    found = exact(runs, codes, basis, torch.arange(4))[:, 0]
    # Row 1 with one coordinate restored: coordinate 0 is normalised by the row's new mean and spread.
    rows = -torch.tensor([1.0, -1.0, 1.0, -1.0]).expand(4, 4) + torch.diag(torch.tensor([2.0, -2.0, 2.0, -2.0]))
    normalised = torch.nn.functional.layer_norm(rows, (4,))[:, 0]
    expected = [by_hand((3 + float(value)) / 4) - by_hand(0.5) for value in normalised]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)
    assert found.argmax() == 0, "the coordinate that the circuit reads"
    assert (found[[1, 3]] < found[0] / 2).all()
