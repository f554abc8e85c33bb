from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from hsae import controls, variants
from hsae.activations import Activations, Normalizer, Store
from hsae.controls import ControlConfig, Training, contexts, hold_decoder, of_transformer, shuffled
from hsae.curriculum import phase2, phase3
from hsae.dictionary import Activation, DictionaryConfig, LatentConfig, Start
from hsae.evaluation import evaluate
from hsae.feature_clustering import FeatureClusteringConfig
from hsae.gpt import GPT, untrained
from hsae.latent_classes import Text
from hsae.losses import Coefficients
from hsae.probes import ProbeConfig
from hsae.sae import SAE
from hsae.samples import shared
from hsae.shared_information import InformationConfig
from hsae.sharpening import Sharpening, phase1
from hsae.streams import Stream
from hsae.training import Phase
from tests.conftest import CONTEXT, N_VOCAB

STREAM = Stream(0, "test")
PHASE = Phase(epochs=4, batch_size=40, lr=3e-3, decay_fraction=0.2, anneal_fraction=0.2)
TRAINING = Training(
    coefficients=Coefficients(0.01, 0.02, 0.02, 0.0001, 1.5, 1.0, 4.0, 8.0, 0.01),
    latents=LatentConfig(Activation.jumprelu, 4, 2, dead_tokens=40, init_level2=Start.data, init_tokens=200),
    dictionary=DictionaryConfig(seed=0, expansion1=4.0, expansion2=1.0),
    phase1=PHASE,
    sharpening=Sharpening(2, 40, 3e-3, 0.2, 0.0, price=2.0),
    phase2=PHASE,
    phase3=PHASE,
)


def random_order(store: Store) -> Store:
    order = torch.randperm(len(store), generator=torch.Generator().manual_seed(2))
    rows = {name: values[order] for name, values in vars(store.activations).items()}
    return replace(store, activations=Activations(**rows))


# A decoder that is held


@pytest.mark.parametrize("activation", [Activation.jumprelu, Activation.relu, Activation.batchtopk])
@pytest.mark.parametrize("start", list(Start))
def test_random_decoders_are_the_same_to_the_bit_whatever_they_are_trained_on(store, activation, start):
    latents = replace(TRAINING.latents, activation=activation, init_level2=start)
    settings = replace(TRAINING, latents=latents)
    model = controls.train(store, settings, True, STREAM)
    other = controls.train(shuffled(store, STREAM), settings, True, STREAM)
    untouched = controls.train(store, settings.shortened(0), True, STREAM)
    for level in controls.LEVELS:
        W_dec, W_enc = (getattr(getattr(model, level), name) for name in ("W_dec", "W_enc"))
        assert torch.equal(W_dec, getattr(other, level).W_dec)
        assert torch.equal(W_dec, getattr(untouched, level).W_dec)
        assert not torch.equal(W_enc, getattr(untouched, level).W_enc), f"the encoder of {level} learns"
        torch.testing.assert_close(W_dec.norm(dim=1), torch.ones(len(W_dec)))
    assert (model.level2.W_dec > 0).all()


def test_trained_decoders_move_and_training_repeats_to_the_bit(store: Store):
    model, again = (controls.train(store, TRAINING, False, STREAM) for _ in range(2))
    untouched = controls.train(store, TRAINING.shortened(0), False, STREAM)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(model.level1.W_dec, untouched.level1.W_dec)
    assert not torch.equal(model.level2.W_dec, untouched.level2.W_dec)


def test_a_held_decoder_survives_a_start_from_data_whose_encoder_reads_its_directions():
    model, x = SAE(4, 6, nonnegative=True), torch.randn(50, 4).abs()
    directions = torch.rand(6, 4) + 0.1
    hold_decoder(model, directions)
    expected = directions / directions.norm(dim=1, keepdim=True)
    model.init_from_data(x)
    assert torch.equal(model.W_dec, expected)
    # The gain of the encoder is one factor for all.
    ratio = model.W_enc.T / expected
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))
    torch.testing.assert_close(model.b_dec, x.mean(0))


def test_a_share_of_the_epochs_is_taken_of_every_phase():
    short = TRAINING.shortened(0.25)
    assert [short.phase1.epochs, short.sharpening.epochs, short.phase2.epochs, short.phase3.epochs] == [1, 0.5, 1, 1]
    assert short.sharpening.price == 2
    assert replace(short, phase1=PHASE, sharpening=TRAINING.sharpening, phase2=PHASE, phase3=PHASE) == TRAINING


# Stores


def test_contexts_are_whole_and_the_first_of_an_ordered_store(store: Store):
    kept = contexts(store, 3 * CONTEXT + 2)
    assert len(kept) == 3 * CONTEXT
    for name, values in vars(kept.activations).items():
        assert torch.equal(values, getattr(store.activations, name)[: 3 * CONTEXT])
    assert len(contexts(store, 1)) == CONTEXT
    assert len(contexts(store, 10**6)) == len(store)


def test_contexts_of_a_shuffled_store_are_whole_and_those_that_it_shows_first(store: Store):
    mixed = random_order(store)
    kept = contexts(mixed, 5 * CONTEXT).activations
    starts = (mixed.activations.offsets - mixed.activations.positions).tolist()
    chosen = list(dict.fromkeys(starts))[:5]
    rows = [row for row, start in enumerate(starts) if start in chosen]
    assert chosen != sorted(chosen)
    assert torch.equal(kept.acts, mixed.activations.acts[rows])
    assert torch.equal(kept.offsets, mixed.activations.offsets[rows])


def test_a_transformer_fills_stores_as_the_one_that_they_are_of(store: Store, gpt: GPT, corpus_tokens: torch.Tensor):
    some = contexts(random_order(store), 20 * CONTEXT)
    train, val, test = of_transformer(gpt, some, [some, store], corpus_tokens)
    torch.testing.assert_close(val.activations.acts, some.activations.acts)
    torch.testing.assert_close(train.activations.acts, some.activations.acts)
    torch.testing.assert_close(test.activations.acts, store.activations.acts)
    assert torch.equal(train.activations.offsets, some.activations.offsets)
    expected = Normalizer.fit(some.activations.acts)
    torch.testing.assert_close(test.normalizer.scale, expected.scale)
    torch.testing.assert_close(test.normalizer.mean, expected.mean)


def test_another_transformers_activations_are_normalised_by_what_is_kept(
    store: Store, masked: Store, gpt: GPT, corpus_tokens: torch.Tensor
):
    (train,) = of_transformer(gpt, masked, [], corpus_tokens)
    assert torch.equal(train.kept, masked.kept)
    expected = Normalizer.fit(store.activations.acts[masked.kept])
    torch.testing.assert_close(train.normalizer.scale, expected.scale)
    torch.testing.assert_close(train.normalizer.mean, expected.mean)


def test_an_untrained_transformer_has_a_stream_of_its_own(gpt: GPT):
    header = {"config": vars(gpt.config), "n_vocab": N_VOCAB}
    found, again, other = (untrained(header, Stream(seed, "test")) for seed in (3, 3, 4))
    assert not found.training
    torch.manual_seed(3)  # as a transformer that is trained from seed 3 starts
    start = GPT(gpt.config, N_VOCAB).state_dict()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        if "ln" not in name and tensor.dim() > 1:
            assert not torch.equal(tensor, other.state_dict()[name])
            assert not torch.equal(tensor, start[name])


def test_shuffling_keeps_every_coordinates_values_and_no_row(store: Store):
    acts, found = store.activations.acts, shuffled(store, STREAM).activations.acts
    assert torch.equal(acts.sort(0).values, found.sort(0).values)
    assert not (acts == found).all(1).any()
    correlations = [np.abs(np.corrcoef(values.T.numpy()) - np.eye(values.shape[1])).max() for values in (acts, found)]
    assert correlations[1] < 0.3 < correlations[0]
    assert torch.equal(found, shuffled(store, STREAM).activations.acts)
    assert not torch.equal(found, shuffled(store, STREAM.of("another")).activations.acts)


def test_masked_rows_are_not_shuffled(store: Store, masked: Store):
    found, kept = shuffled(masked, STREAM).activations.acts, masked.kept
    assert torch.equal(found[~kept], masked.activations.acts[~kept])
    assert torch.equal(found[kept].sort(0).values, store.activations.acts[kept].sort(0).values)
    assert not torch.equal(found[kept], store.activations.acts[kept])


# Streams


class Drawn:
    """Numbers of all streams that anything is drawn from."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.numbers: list[int] = []
        number = Stream.number.fget
        assert number is not None

        def drawn(stream: Stream) -> int:
            self.numbers.append(number(stream))
            return self.numbers[-1]

        monkeypatch.setattr(Stream, "number", property(drawn))

    def by(self, draw: Callable[[], object]) -> set[int]:
        self.numbers.clear()
        draw()
        return set(self.numbers)


def test_a_control_starts_and_is_trained_as_no_hsae_of_any_seed(store: Store, monkeypatch: pytest.MonkeyPatch):
    drawn, short = Drawn(monkeypatch), TRAINING.shortened(0.25)

    def proper(seed: int) -> None:
        """As phases 1 to 3 draw: stages/phase1.py, phase2.py, phase3.py."""
        dictionary = replace(short.dictionary, seed=seed)
        c, latents, (width1, width2) = short.coefficients, short.latents, dictionary.widths(store.d_in)
        weights = dictionary.weights(1)
        level1 = variants.drawn(latents.activation, store.d_in, width1, k=4, beta=c.beta1, stream=weights)
        phase1(level1, store, c, short.phase1, short.sharpening, 40, dictionary.stream("phase1"))
        model, _ = phase2(level1, width2, store, c, short.phase2, latents, dictionary.stream("phase2"))
        phase3(model, store, c, short.phase3, 40, dictionary.stream("phase3"))

    of_hsae = [drawn.by(partial(proper, seed)) for seed in range(21)]
    of_controls = [
        drawn.by(lambda seed=seed: controls.train(store, short, True, Stream(seed, "control"))) for seed in range(3)
    ]
    assert min(map(len, [*of_hsae, *of_controls])) >= 5
    assert not set().union(*of_hsae) & set().union(*of_controls)
    assert len(set().union(*of_controls)) == sum(map(len, of_controls)), "each seed's are its own"


# Headlines


def test_headlines_of_a_model_are_numbers_and_a_dead_level_2_has_none(
    store: Store, masked: Store, harmless: Store, gpt: GPT, corpus_tokens: torch.Tensor
):
    model = controls.train(store, TRAINING, False, STREAM)
    offsets = store.activations.offsets.long()
    text = Text(corpus_tokens[offsets].numpy(), corpus_tokens[offsets + 1].numpy(), "abc.\n")
    probe = ProbeConfig(1, 10, [0.1], [0.1], 0.2, 10)
    information = InformationConfig(240, 2, 2, 10, 2, 0.01, [1], probe)
    clustering = FeatureClusteringConfig(240, 2, 0.5, 3, 2, 2, 2)
    choose = replace(store, activations=replace(store.activations, offsets=store.activations.offsets + 1000))
    found = controls.measure(model, choose, store, text, information, clustering, STREAM)
    assert found["n_tokens"] == 240
    assert shared(found["samples"]) == []
    assert 0 < found["hierarchy"]["p_parent_given_child_decoder"] <= 1
    assert 0 < found["hierarchy"]["p_parent_given_child_coactivation"] <= 1
    assert 0 < found["information"]["live_parents"] <= 8
    assert found["ami"].keys() >= {"current_character", "next_kind"}
    recovered = controls.loss_recovered(model, gpt, store, corpus_tokens)
    for level, reconstruct in (("level1", model.reconstruct_from_h1), ("level2", model.reconstruct_from_h2)):
        expected = evaluate(gpt, store, corpus_tokens, {level: reconstruct}).methods[level]
        assert recovered[level] == {name: expected[name] for name in ("ce_recovered_zero", "ce_recovered_mean")}

    own = masked.scored(slice(None)).activations.offsets.long()
    of_kept = Text(corpus_tokens[own].numpy(), corpus_tokens[own + 1].numpy(), "abc.\n")
    kept, absurd = (
        controls.measure(model, choose, some, of_kept, information, clustering, STREAM) for some in (harmless, masked)
    )
    assert kept == absurd
    assert kept["n_tokens"] == 200

    with torch.no_grad():
        model.level2.b_enc.fill_(-1e6)
        model.level2.W_dec.zero_()
    dead = controls.measure(model, choose, store, text, information, clustering, STREAM)
    assert dead["level2"]["dead_fraction"] == 1
    assert dead["hierarchy"]["p_parent_given_child_decoder"] is None
    assert dead["information"] == {"live_parents": 0, "parents_with_child": None}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": 0}, "`tokens` must be above 0; not 0"),
        ({"epochs_share": 1.5}, "`epochs_share` must be above 0 and at most 1; not 1.5"),
        ({"shifts": 1}, "`shifts` must be at least 2, to have a variance; not 1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(values: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        replace(ControlConfig(tokens=10, test_tokens=10, epochs_share=0.5, shifts=10), **values)  # pyright: ignore
