import json
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hsae.activations import Store
from hsae.gpt import GPT, Block
from hsae.interchange.saebench import SAEBenchSAE
from hsae.interchange.site import Site
from hsae.interchange.weights import fold
from hsae.variants import VARIANTS
from tests.test_interchange import D_IN, D_SAE, SITE, N, assert_same, hsae, normalizer, raw, trained

CORE_METRICS = (
    "compute_kl",
    "compute_ce_loss",
    "compute_l2_norms",
    "compute_sparsity_metrics",
    "compute_variance_metrics",
    "compute_featurewise_density_statistics",
    "compute_featurewise_weight_based_metrics",
)


def wrapped(kind: str) -> SAEBenchSAE:
    return SAEBenchSAE(fold(trained(kind), normalizer()), SITE)


def contexts() -> Tensor:
    return raw().reshape(4, N // 4, D_IN)


@torch.no_grad()
@pytest.mark.parametrize("kind", VARIANTS)
def test_rows_have_unit_norm_and_the_reconstruction_is_ours(kind: str):
    sae = wrapped(kind)
    acts, x_hat = trained(kind).reconstruct(normalizer()(raw()))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert_same(sae.encode(raw()), acts * normalizer().scale)
    assert_same(sae(raw()), normalizer().inverse(x_hat))
    torch.testing.assert_close(sae(contexts()), sae(raw()).reshape(contexts().shape))
    torch.testing.assert_close(sae.decode(sae.encode(contexts())), sae(contexts()))


@torch.no_grad()
def test_the_encoders_weights_are_those_of_its_latents():
    sae = wrapped("relu")
    assert sae.W_enc.shape == (D_IN, D_SAE)
    assert_same(sae.encode(raw()), ((raw() - sae.b_dec) @ sae.W_enc + sae.b_enc).relu())


@torch.no_grad()
def test_level_2_can_be_wrapped_too():
    model = hsae("jumprelu")
    h1 = model.level1.encode(normalizer()(raw()))
    sae = SAEBenchSAE(model.level2, SITE.latents)
    assert_same(sae(h1), model.level2(h1).x_hat)
    assert sae.cfg.hook_name == "blocks.1.hook_resid_post.hook_sae_acts_post"


@torch.no_grad()
def test_a_latent_without_a_direction_is_silent():
    model = trained("topk")
    model.W_dec[3] = 0
    sae = SAEBenchSAE(model, SITE)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert (sae.encode(raw())[:, 3] == 0).all()
    assert_same(sae(raw()), model(raw()).x_hat)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_type_and_device_are_the_weights(dtype: torch.dtype):
    sae = wrapped("jumprelu")
    assert (sae.dtype, sae.device) == (torch.float32, torch.device("cpu"))
    assert sae.to(device="cpu", dtype=dtype) is sae
    assert sae.dtype == sae.W_enc.dtype == sae(contexts().to(dtype)).dtype == dtype
    assert sae.cfg.dtype == str(dtype).removeprefix("torch.")


def test_the_config_has_what_saebench_reads_and_json_can_hold_it():
    config = wrapped("topk").cfg.to_dict()
    assert json.loads(json.dumps(config)) == config
    assert config == {
        "model_name": "a-model",
        "d_in": D_IN,
        "d_sae": D_SAE,
        "hook_name": "blocks.1.hook_resid_post",
        "hook_layer": 1,
        "context_size": 32,
        "architecture": "topk",
        "dtype": "float32",
        "hook_head_index": None,
        "prepend_bos": False,
    }


# SAEBench itself


def hooked(gpt: GPT, library: ModuleType) -> Any:
    """The transformer as TransformerLens's."""
    c, n_vocab = gpt.config, len(gpt.token_embedding.weight)
    config = library.HookedTransformerConfig(
        n_layers=c.n_layer, d_model=c.d_model, n_ctx=c.context, n_heads=c.n_head, d_head=c.d_model // c.n_head,
        d_mlp=4 * c.d_model, d_vocab=n_vocab, act_fn="gelu", normalization_type="LN", device="cpu",
    )  # fmt: skip
    model = library.HookedTransformer(config)
    weights: dict[str, Tensor] = {
        "embed.W_E": gpt.token_embedding.weight,
        "pos_embed.W_pos": gpt.position_embedding.weight,
        "unembed.W_U": gpt.token_embedding.weight.T,
        "ln_final.w": gpt.ln_final.weight,
    }
    for i, block in enumerate(gpt.blocks):
        assert isinstance(block, Block)
        own: dict[str, Tensor] = {"ln1.w": block.ln_attn.weight, "ln2.w": block.ln_mlp.weight}
        for name, weight in zip("QKV", block.attn.qkv.weight.chunk(3), strict=True):
            own[f"attn.W_{name}"] = weight.unflatten(0, (c.n_head, -1)).transpose(1, 2)
        own["attn.W_O"] = block.attn.proj.weight.T.unflatten(0, (c.n_head, -1))
        own |= {"mlp.W_in": block.up.weight.T, "mlp.W_out": block.down.weight.T}
        weights |= {f"blocks.{i}.{name}": weight for name, weight in own.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # biases, of which ours has none
    model.load_state_dict(weights, strict=False)
    return model


class Windows:
    """Tokens as SAEBench asks for them."""

    def __init__(self, tokens: Tensor):
        self.tokens, self.context_size, self.at = tokens, tokens.shape[1], 0

    def get_batch_tokens(self, size: int) -> Tensor:
        self.at += size
        return self.tokens[self.at - size : self.at]

    def reset_input_dataset(self) -> None:
        self.at = 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", VARIANTS)
@torch.no_grad()
def test_saebenchs_core_metrics_are_what_we_compute(kind: str, gpt: GPT, store: Store, corpus_tokens: Tensor):
    core = pytest.importorskip("sae_bench.evals.core.main")
    model = hooked(gpt, pytest.importorskip("transformer_lens"))
    tokens, site = (
        store.windows(corpus_tokens)[:, :-1],
        Site("a-model", "blocks.1.hook_resid_post", store.layer, store.context, False),
    )
    ours = trained(kind)
    config = core.CoreEvalConfig(
        batch_size_prompts=20,
        n_eval_reconstruction_batches=2,
        n_eval_sparsity_variance_batches=2,
        **dict.fromkeys(CORE_METRICS, True),
    )
    found, latents = core.run_evals(SAEBenchSAE(fold(ours, store.normalizer), site), Windows(tokens), model, config)
    acts, x_hat = ours.reconstruct(store.x(slice(None)))
    residual = store.normalizer.inverse(x_hat).unflatten(0, tokens.shape)
    log_probs = gpt.logits(residual, store.layer).log_softmax(-1)
    clean = gpt(tokens).log_softmax(-1)
    nll = F.nll_loss(log_probs[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    kl = (clean.exp() * (clean - log_probs)).sum(-1).mean()
    expected = {
        "sparsity": {"l0": (acts > 0).sum(1).float().mean(), "l1": store.normalizer.scale * acts.sum(1).mean()},
        "model_performance_preservation": {"ce_loss_with_sae": nll},
        "model_behavior_preservation": {"kl_div_with_sae": kl},
        "shrinkage": {"l2_norm_out": residual.norm(dim=-1).mean()},
    }
    for group, values in expected.items():
        assert {name: found[group][name] for name in values} == pytest.approx(
            {name: value.item() for name, value in values.items()}, rel=1e-3
        )
    assert latents["feature_density"] == pytest.approx((acts > 0).float().mean(0).tolist(), rel=1e-3)
    assert len(latents["encoder_decoder_cosine_sim"]) == D_SAE
