import dataclasses
import math

import pytest

from hsae import variants
from hsae.dictionary import Activation, DictionaryConfig, LatentConfig, Start


@pytest.mark.parametrize(
    ("expansion1", "expansion2", "d_in", "widths"),
    [(8.0, 2.0, 128, (1024, 256)), (0.75, 0.5, 512, (384, 256)), (0.3, 0.26, 2, (1, 1)), (0.01, 0.01, 4, (1, 1))],
)
def test_widths_are_the_rounded_multiples_of_the_input_and_at_least_one(
    expansion1: float, expansion2: float, d_in: int, widths: tuple[int, int]
):
    assert DictionaryConfig(0, expansion1, expansion2).widths(d_in) == widths


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_an_expansion_that_is_not_positive_and_finite_is_refused_by_name(value: float):
    with pytest.raises(ValueError, match=f"`expansion1` must be above 0 and finite; not {value}"):
        DictionaryConfig(0, value, 1.0)
    with pytest.raises(ValueError, match=f"`expansion2` must be above 0 and finite; not {value}"):
        DictionaryConfig(0, 1.0, value)


@pytest.mark.parametrize("activation", Activation)
def test_every_activation_is_a_kind_of_autoencoder_that_a_file_can_name(activation: Activation):
    model = variants.build(activation, 3, 4, k=2, beta=0.1)
    assert model.header()["kind"] == activation.value
    assert type(model.header()["kind"]) is str


LATENTS = {
    "activation": Activation.topk,
    "k1": 4,
    "k2": 2,
    "dead_tokens": 0,
    "init_level2": Start.data,
    "init_tokens": 1,
}


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("k1", 0, "1 or above"),
        ("k2", -1, "1 or above"),
        ("dead_tokens", -1, "0 or above"),
        ("init_tokens", 0, "1 or above"),
    ],
)
def test_latent_settings_out_of_range_are_refused_by_name(key: str, value: int, allowed: str):
    assert vars(LatentConfig(**LATENTS)) == LATENTS
    with pytest.raises(ValueError, match=f"^`{key}` must be {allowed}; not {value}.$"):
        LatentConfig(**{**LATENTS, key: value})


def test_where_level_2_stands_for_families_nothing_is_revived_later():
    config = LatentConfig(Activation.jumprelu, k1=1, k2=1, dead_tokens=500, init_level2=Start.data, init_tokens=9)
    assert config.dead_tokens_later == 500
    assert dataclasses.replace(config, init_level2=Start.families).dead_tokens_later == 0
