import math
from dataclasses import replace

import pytest
import torch

from hsae.activations import Normalizer, Store
from hsae.evaluation import evaluate
from hsae.gpt import GPT
from hsae.language_model import cross_entropy
from hsae.metrics import summarize
from tests.conftest import CONTEXT, LAYER, N_VOCAB


def identity(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.relu(), x


def mean(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(len(x), 3), torch.zeros_like(x)


def half(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.relu(), 0.5 * x


def measure(gpt: GPT, store: Store, tokens: torch.Tensor, method) -> tuple[dict[str, float], dict[str, float]]:
    measured = evaluate(gpt, store, tokens, {"it": method})
    return measured.language_model, measured.methods["it"]


def test_the_clean_loss_is_the_cross_entropy_of_the_same_windows(gpt: GPT, store: Store, corpus_tokens):
    language_model, _ = measure(gpt, store, corpus_tokens, identity)
    assert language_model["n_tokens"] == 40 * CONTEXT
    assert language_model["ce_clean"] == pytest.approx(cross_entropy(gpt, store.windows(corpus_tokens)), rel=1e-6)


def test_a_perfect_reconstruction_recovers_everything(gpt: GPT, store: Store, corpus_tokens):
    language_model, found = measure(gpt, store, corpus_tokens, identity)
    assert found["ce"] == pytest.approx(language_model["ce_clean"], abs=1e-5)
    assert found["ce_recovered_zero"] == pytest.approx(1, abs=1e-4)
    assert found["ce_recovered_mean"] == pytest.approx(1, abs=1e-4)
    assert found["kl"] == pytest.approx(0, abs=1e-5)
    assert found["kl_recovered_mean"] == pytest.approx(1, abs=1e-4)
    assert found["fvu"] == 0


def test_the_training_mean_recovers_nothing(gpt: GPT, store: Store, corpus_tokens):
    language_model, found = measure(gpt, store, corpus_tokens, mean)
    assert found["ce"] == pytest.approx(language_model["ce_mean_ablated"], abs=1e-5)
    assert found["ce_recovered_mean"] == pytest.approx(0, abs=1e-4)
    assert found["kl_recovered_mean"] == pytest.approx(0, abs=1e-4)
    assert found["kl"] > 0.01
    assert found["fvu"] == pytest.approx(1, abs=1e-6)
    assert (found["latents"], found["l0"], found["dead_fraction"]) == (3, 0, 1)


def test_a_stream_of_zeros_is_zero_ablation(gpt: GPT, store: Store, corpus_tokens):
    def zero(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, store.normalizer(torch.zeros_like(x))

    language_model, found = measure(gpt, store, corpus_tokens, zero)
    # Without biases a stream of zeros stays one, and all characters are equally likely.
    assert language_model["ce_zero_ablated"] == pytest.approx(math.log(N_VOCAB), abs=1e-6)
    # Normalising and back leaves rounding errors, which the LayerNorms blow up.
    assert found["ce"] == pytest.approx(math.log(N_VOCAB), abs=2e-3)
    assert found["ce_recovered_zero"] == pytest.approx(0, abs=0.01)


def test_the_losses_of_a_reconstruction_equal_a_naive_loop(gpt: GPT, store: Store, corpus_tokens):
    """Every context by itself, in model space: half the distance from the mean."""
    language_model, found = measure(gpt, store, corpus_tokens, half)
    ce = kl = kl_mean = 0.0
    for window in store.windows(corpus_tokens):
        stream = gpt.residual(window[None, :-1], LAYER)
        centre = store.normalizer.mean
        clean, replaced, ablated = (
            gpt.logits(part, LAYER)[0].softmax(-1).double()
            for part in (stream, centre + (stream - centre) / 2, centre.expand_as(stream))
        )
        for position, target in enumerate(window[1:]):
            ce -= math.log(replaced[position, target].item())
            for p, q, r in zip(clean[position].tolist(), replaced[position].tolist(), ablated[position], strict=True):
                kl += p * math.log(p / q)
                kl_mean += p * math.log(p / r.item())
    n = 40 * CONTEXT
    assert found["ce"] == pytest.approx(ce / n, rel=1e-4)
    assert found["kl"] == pytest.approx(kl / n, rel=1e-3)
    assert language_model["kl_mean_ablated"] == pytest.approx(kl_mean / n, rel=1e-3)
    assert found["kl_recovered_mean"] == pytest.approx(1 - kl / kl_mean, rel=1e-3)


def test_the_dictionarys_own_metrics_are_those_of_metrics_py(gpt: GPT, store: Store, corpus_tokens):
    _, found = measure(gpt, store, corpus_tokens, half)
    expected = summarize(half, store.batches())
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def masked(store: Store, kept: torch.Tensor) -> Store:
    return replace(store, activations=replace(store.activations, kept=kept))


def test_masked_positions_keep_their_stream_and_do_not_count_in_a_naive_loop(gpt: GPT, store: Store, corpus_tokens):
    kept = torch.rand(len(store), generator=torch.Generator().manual_seed(2)) < 0.6
    measured = evaluate(gpt, masked(store, kept), corpus_tokens, {"it": half})
    found, ce, kl, ce_mean = measured.methods["it"], 0.0, 0.0, 0.0
    for context, window in enumerate(store.windows(corpus_tokens)):
        stream = gpt.residual(window[None, :-1], LAYER)
        centre, own = store.normalizer.mean, kept[context * CONTEXT : (context + 1) * CONTEXT]
        patched, ablated = stream.clone(), stream.clone()
        for position in range(CONTEXT):
            if own[position]:
                patched[0, position] = (stream[0, position] + centre) / 2
                ablated[0, position] = centre
        clean, replaced, mean_ = (
            gpt.logits(part, LAYER)[0].softmax(-1).double() for part in (stream, patched, ablated)
        )
        for position, target in enumerate(window[1:]):
            if own[position]:
                ce -= math.log(replaced[position, target].item())
                ce_mean -= math.log(mean_[position, target].item())
                kl += (clean[position] * (clean[position] / replaced[position]).log()).sum().item()
    n = int(kept.sum())
    assert measured.language_model["n_tokens"] == n
    assert found["ce"] == pytest.approx(ce / n, rel=1e-4)
    assert found["kl"] == pytest.approx(kl / n, rel=1e-3)
    assert measured.language_model["ce_mean_ablated"] == pytest.approx(ce_mean / n, rel=1e-4)
    expected = summarize(half, [store.x(slice(0, len(store)))[kept]])
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    totals = {name: sums.sum().item() for name, sums in (measured.contexts | measured.by_context["it"]).items()}
    assert totals["n_tokens"] == n
    assert totals["squared_error"] / totals["sum_squares"] == pytest.approx(found["fvu"], rel=1e-6)
    assert totals["ce"] / n == pytest.approx(found["ce"])


def test_what_stands_at_masked_positions_changes_no_score_of_a_dictionary(gpt: GPT, store: Store, corpus_tokens):
    kept = torch.arange(len(store)) % CONTEXT != CONTEXT - 1  # the last ones, on which no other position looks
    acts = torch.where(kept[:, None], store.activations.acts, 1e4)
    sinks = replace(masked(store, kept), activations=replace(store.activations, acts=acts, kept=kept))
    first, second = (measure(gpt, one, corpus_tokens, half) for one in (masked(store, kept), sinks))
    assert first[1] == pytest.approx(second[1], rel=1e-5)
    assert first[0] == pytest.approx(second[0], rel=1e-5)


def test_methods_are_measured_independently_of_each_other(gpt: GPT, store: Store, corpus_tokens):
    together = evaluate(gpt, store, corpus_tokens, {"a": half, "b": mean}).methods
    assert together["a"] == measure(gpt, store, corpus_tokens, half)[1]
    assert together["b"] == measure(gpt, store, corpus_tokens, mean)[1]


def test_the_normalisation_is_that_of_the_store_not_of_the_data_at_hand(gpt: GPT, store: Store, corpus_tokens):
    shifted = Normalizer(store.normalizer.mean + 1, store.normalizer.scale * 2)
    other = Store(store.activations, shifted, LAYER, CONTEXT)
    language_model, found = measure(gpt, other, corpus_tokens, mean)
    assert found["ce"] == pytest.approx(language_model["ce_mean_ablated"], abs=1e-5)
    assert found["fvu"] > 1.01
    perfect = measure(gpt, other, corpus_tokens, identity)[1]
    assert perfect["ce_recovered_mean"] == pytest.approx(1, abs=1e-4)


def test_sums_over_contexts_add_up_to_the_metrics(gpt: GPT, store: Store, corpus_tokens):
    measured = evaluate(gpt, store, corpus_tokens, {"flat/half": half, "flat/mean": mean})
    shared, own, found = measured.contexts, measured.by_context["flat/half"], measured.methods["flat/half"]
    assert all(len(sums) == 40 for sums in (*shared.values(), *own.values()))
    totals = {name: sums.sum().item() for name, sums in (shared | own).items()}
    n = totals["n_tokens"]
    assert n == len(store)
    assert totals["active"] / n == found["l0"]
    assert totals["ce"] / n == pytest.approx(found["ce"])
    assert totals["squared_error"] / totals["sum_squares"] == pytest.approx(found["fvu"], rel=1e-6)
    assert totals["ce_clean"] / n == pytest.approx(measured.language_model["ce_clean"])
    assert totals["ce_mean_ablated"] / n == pytest.approx(measured.language_model["ce_mean_ablated"])
    tensors = measured.tensors()
    assert len(tensors) == 4 + 2 * 3
    assert tensors["flat/half/ce"] is own["ce"]
    assert tensors["contexts/ce_clean"] is shared["ce_clean"]


def test_a_context_has_the_sums_that_it_has_alone(gpt: GPT, store: Store, corpus_tokens):
    together = evaluate(gpt, store, corpus_tokens, {"it": half}).by_context["it"]
    x = store.x(slice(3 * CONTEXT, 4 * CONTEXT))
    assert together["active"][3] == (x > 0).sum()
    assert together["squared_error"][3] == pytest.approx((0.25 * x.square()).sum().item(), rel=1e-6)
