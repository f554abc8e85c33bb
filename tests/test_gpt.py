import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from hsae import files
from hsae.causal_lm import CausalLM
from hsae.gpt import GPT, Attention, GPTConfig, load
from tests.conftest import CONTEXT, N_VOCAB


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(N_VOCAB, (3, CONTEXT), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_residual_stream_resumed_at_any_layer_gives_the_forward_pass(gpt: GPT, tokens: torch.Tensor, layer: int):
    assert torch.equal(gpt.logits(gpt.residual(tokens, layer), layer), gpt(tokens))


def test_residual_streams_differ_from_layer_to_layer(gpt: GPT, tokens: torch.Tensor):
    streams = [gpt.residual(tokens, layer) for layer in range(3)]
    assert not torch.allclose(streams[0], streams[1])
    assert not torch.allclose(streams[1], streams[2])


@pytest.mark.parametrize("changed", range(CONTEXT))
def test_a_changed_token_changes_its_own_and_later_logits_and_none_before(gpt: GPT, tokens: torch.Tensor, changed: int):
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 1) % N_VOCAB
    difference = (gpt(tokens) - gpt(other)).abs().amax((0, 2))
    assert torch.equal(difference[:changed], torch.zeros(changed))
    assert (difference[changed:] > 1e-4).all()


def test_the_output_reads_the_same_embeddings_as_the_input(gpt: GPT, tokens: torch.Tensor):
    stream = gpt.residual(tokens, 2)
    before = gpt.logits(stream, 2)
    gpt.token_embedding.weight[3] *= 2
    after = gpt.logits(stream, 2)
    assert torch.equal(after[..., 3], 2 * before[..., 3])
    assert torch.equal(after[..., :3], before[..., :3])


@pytest.mark.parametrize(("n_layer", "n_head", "d", "context", "n_vocab"), [(1, 1, 4, 3, 7), (3, 2, 8, 16, 65)])
def test_the_number_of_parameters_is_the_formulas(n_layer: int, n_head: int, d: int, context: int, n_vocab: int):
    model = GPT(GPTConfig(n_layer, n_head, d, context, 0.0), n_vocab)
    embeddings = (n_vocab + context) * d
    # Attention: 3 d^2 + d^2; MLP: 4 d^2 + 4 d^2; two LayerNorm gains per block and a final one.
    blocks = n_layer * (12 * d * d + 2 * d)
    assert sum(parameter.numel() for parameter in model.parameters()) == embeddings + blocks + d


def test_attention_equals_a_naive_loop():
    torch.manual_seed(0)
    attention = Attention(GPTConfig(1, 2, 4, 5, 0.0)).eval()
    x = torch.randn(1, 5, 4)
    query, key, value = (attention.qkv.weight @ x[0].T).T.split(4, dim=1)
    mixed = torch.zeros(5, 4)
    for head in range(2):
        part = slice(2 * head, 2 * head + 2)
        for now in range(5):
            scores = [query[now, part] @ key[past, part] / math.sqrt(2) for past in range(now + 1)]
            weights = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
            mixed[now, part] = sum(weights[past] * value[past, part] for past in range(now + 1))
    torch.testing.assert_close(attention(x)[0], mixed @ attention.proj.weight.T)


def test_dropout_acts_in_training_only(tokens: torch.Tensor):
    torch.manual_seed(0)
    model = GPT(GPTConfig(2, 2, 8, CONTEXT, 0.5), N_VOCAB)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_the_first_loss_is_that_of_a_uniform_guess(tokens: torch.Tensor):
    torch.manual_seed(0)
    logits = GPT(GPTConfig(4, 2, 16, CONTEXT, 0.0), N_VOCAB)(tokens)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(N_VOCAB), abs=0.1)


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_logits_at_some_positions_are_those_of_all_positions_there(gpt: GPT, tokens: torch.Tensor, layer: int):
    at = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    residual = gpt.residual(tokens, layer)
    assert 0 < at.sum() < at.numel()
    torch.testing.assert_close(gpt.logits_at(residual, layer, at), gpt.logits(residual, layer)[at])
    torch.testing.assert_close(CausalLM.logits_at(gpt, residual, layer, at), gpt.logits(residual, layer)[at])
    assert gpt.logits_at(residual, layer, torch.zeros_like(at)).shape == (0, N_VOCAB)


def test_generation_continues_the_prompt_and_repeats_for_a_seed(gpt: GPT):
    prompt = torch.tensor([1, 2])
    samples = [gpt.generate(prompt, 30, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])
    for sample in samples:
        assert sample.shape == (32,)
        assert torch.equal(sample[:2], prompt)
        assert set(sample.tolist()) <= set(range(N_VOCAB))


def test_generation_sees_the_last_context_of_a_long_prompt_and_nothing_before(gpt: GPT):
    tail = torch.tensor([0, 3, 1, 4, 2, 2])
    prompts = [torch.cat([torch.full((8,), token), tail]) for token in (1, 2)]
    first, second = (gpt.generate(prompt, 20, torch.Generator().manual_seed(0))[14:] for prompt in prompts)
    assert torch.equal(first, second)
    other = gpt.generate(torch.cat([prompts[0], tail.flip(0)]), 20, torch.Generator().manual_seed(0))[20:]
    assert not torch.equal(first, other)


def test_generation_follows_the_models_distribution(gpt: GPT):
    prompt = torch.tensor([1, 2])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([gpt.generate(prompt, 1, generator)[2] for _ in range(500)])
    shares = torch.bincount(drawn, minlength=N_VOCAB) / 500
    torch.testing.assert_close(shares, gpt(prompt[None])[0, -1].softmax(-1), atol=0.06, rtol=0)


def test_a_loaded_transformer_gives_the_same_logits_and_needs_no_gradient(
    tmp_path: Path, gpt: GPT, tokens: torch.Tensor
):
    path = tmp_path / "transformer.safetensors"
    files.write_tensors(path, gpt.state_dict(), {"config": vars(gpt.config), "n_vocab": N_VOCAB})
    loaded = load(*files.read_tensors(path))
    assert torch.equal(loaded(tokens), gpt(tokens))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
