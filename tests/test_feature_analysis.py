from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hsae import feature_clustering
from hsae.feature_analysis import (
    agreement_frame,
    analyse,
    detail_frame,
    differences,
    headline,
    latent_frame,
)  # fmt: skip
from hsae.feature_clustering import Features, flat_features, hsae_features
from hsae.files import read_json, write_json
from hsae.latent_classes import LABELLINGS
from tests.test_feature_clustering import CONFIG, N_LATENTS, STREAM, decoders, planted


@pytest.fixture(scope="module")
def hsae() -> Features:
    acts, _, groups = planted()
    parents = {"decoder": groups, "coactivation": np.random.default_rng(0).permutation(groups)}
    return hsae_features((acts, acts), *decoders(), parents, CONFIG, STREAM)


@pytest.fixture(scope="module")
def flat() -> Features:
    acts, _, _ = planted()
    return flat_features((acts, acts), decoders()[0], 6, CONFIG, STREAM)


@pytest.fixture(scope="module")
def analysis(hsae: Features) -> dict[str, Any]:
    return analyse(hsae, planted()[1], planted()[1], CONFIG, STREAM)


def leaves(record: object) -> list[object]:
    return [leaf for value in record.values() for leaf in leaves(value)] if isinstance(record, dict) else [record]


def test_an_analysis_can_be_written_and_repeats(analysis: dict[str, Any], hsae: Features, tmp_path: Path):
    write_json(tmp_path / "analysis.json", analysis)
    assert (
        read_json(tmp_path / "analysis.json") == analysis == analyse(hsae, planted()[1], planted()[1], CONFIG, STREAM)
    )


def test_it_says_how_many_latents_count(analysis: dict[str, Any]):
    latents = analysis["latents"]
    assert latents["living"] == latents["current_character"]["value"] == N_LATENTS - 2
    assert latents["current_character"]["shifted"]["mean"] < 1, "shifted, the text tells of no latent"
    assert latents["next_character"]["value"] == 0
    assert analysis["partitions"]["groups_decoder"]["clusters"] == 6
    assert analysis["partitions"]["groups_decoder"]["largest"] == 7


def test_planted_groups_agree_with_characters_and_co_activation_and_shuffled_ones_with_nothing(
    analysis: dict[str, Any],
):
    ami = {name: rows["current_character"]["ami"] for name, rows in analysis["taxonomy"].items()}
    for name in ("groups_decoder", "communities", "coactivation_clusters"):
        assert ami[name]["value"] == pytest.approx(1)
        assert ami[name]["permuted"]["mean"] < 0.2
    for name in ("groups_coactivation", "decoder_clusters"):
        assert ami[name]["value"] < ami[name]["permuted"]["mean"] + 4 * ami[name]["permuted"]["sd"]
    assert analysis["between"]["communities_with_groups_decoder"]["ami"]["value"] == pytest.approx(1)
    assert len(analysis["between"]) == 10


def test_indices_stand_beside_the_nulls_that_they_need(analysis: dict[str, Any]):
    communities = analysis["partitions"]["communities"]["modularity"]
    assert communities["value"] > communities["independent"]["mean"] + 3 * communities["independent"]["sd"]
    # What Louvain finds where nothing is to be found is far above 0; shuffled labels would not show it.
    assert communities["independent"]["mean"] > 0.1 > communities["shuffled"]["mean"]
    directions = analysis["partitions"]["decoder_clusters"]["silhouette"]
    null = directions["random_directions"]
    assert abs(directions["value"] - null["mean"]) < 5 * null["sd"], "the directions are random"
    assert directions["value"] > directions["shuffled"]["mean"] + 3 * directions["shuffled"]["sd"]
    assert set(analysis["cophenetic"]["decoder"]) == {"value", "random_directions"}
    assert set(analysis["cophenetic"]["coactivation"]) == {"value", "independent"}
    assert set(analysis["cophenetic"]["groups_decoder"]) == {"value", "shuffled"}


def test_the_trees_of_co_activation_and_of_groups_are_pure(analysis: dict[str, Any]):
    for tree in ("coactivation", "groups_decoder"):
        purity = analysis["purity"][tree]["current_character"]
        assert purity["value"] == pytest.approx(1)
        assert purity["permuted"]["mean"] < 0.6
    decoder = analysis["purity"]["decoder"]["current_character"]
    assert abs(decoder["value"] - decoder["permuted"]["mean"]) < 5 * decoder["permuted"]["sd"]


def test_what_is_undefined_is_none(analysis: dict[str, Any]):
    assert analysis["taxonomy"]["groups_decoder"]["next_character"]["ami"]["value"] is None
    assert analysis["purity"]["groups_decoder"]["next_character"]["value"] is None


def test_the_headline_is_the_analysis_number(analysis: dict[str, Any]):
    acts, text, groups = planted()
    rows = analysis["taxonomy"]["groups_decoder"]
    assert feature_clustering.headline(groups, acts, text, CONFIG) == {
        name: rows[name]["ami"]["value"] for name in LABELLINGS
    }


@pytest.fixture(scope="module")
def compared(hsae: Features, flat: Features) -> pd.DataFrame:
    return differences(hsae, flat, planted()[1], CONFIG, STREAM)


def row(compared: pd.DataFrame, level2: str, flat: str, definition: str, labelling: str) -> dict[str, float]:
    keys = ["level2", "flat", "definition", "labelling"]
    return compared.set_index(keys).loc[(level2, flat, definition, labelling)].to_dict()  # pyright: ignore


def test_differences_are_of_every_two_amis_with_an_interval_around(
    compared: pd.DataFrame, hsae: Features, flat: Features
):
    pd.testing.assert_frame_equal(compared, differences(hsae, flat, planted()[1], CONFIG, STREAM))
    assert len(compared) == 2 * 2 * 4 * len(LABELLINGS)
    found = row(compared, "level2_by_decoder", "flat_by_decoder", "main", "current_character")
    assert found["level2_ami"] == pytest.approx(1)
    assert found["difference"] == pytest.approx(found["level2_ami"] - found["flat_ami"])
    assert 0.5 < found["low"] < found["difference"] < found["high"]
    assert found["difference"] - found["low"] == pytest.approx(found["high"] - found["difference"])
    same = row(compared, "level2_by_decoder", "flat_by_coactivation", "main", "current_character")
    assert same["difference"] == pytest.approx(0), "both find the characters"
    # Groups by co-activation are shuffled ones here: no better than clusters of random directions, far behind.
    shuffled = row(compared, "level2_by_coactivation", "flat_by_coactivation", "main", "current_character")
    assert shuffled["high"] < -0.5
    undefined = compared.query("labelling == 'next_character' and definition == 'main'")
    assert np.isnan(undefined["difference"].to_numpy()).all()


def test_the_trees_are_cut_at_as_many_clusters_as_there_are_classes(compared: pd.DataFrame):
    names = ("level2_by_decoder", "flat_by_coactivation")
    # Three kinds: the six groups are merged to three clusters, of which the AMI cannot see more.
    assert row(compared, *names, "cut_at_classes", "current_kind") != row(compared, *names, "main", "current_kind")
    # Six characters: nothing is merged.
    assert row(compared, *names, "cut_at_classes", "current_character")["level2_ami"] == pytest.approx(1)


def test_the_headline_is_short_and_holds_numbers_of_the_analyses(
    analysis: dict[str, Any], flat: Features, compared: pd.DataFrame, tmp_path: Path
):
    analyses = {"hsae": analysis, "flat": analyse(flat, planted()[1], planted()[1], CONFIG, STREAM)}
    found = headline(analyses, compared, analyses)
    write_json(tmp_path / "headline.json", found)
    assert len(leaves(found)) <= 150
    assert found["untrained"] == {name: found[name] for name in found["untrained"]}, "the same models here"
    assert [*found["untrained"]] == ["latents", "taxonomy", "hsae", "flat"]
    of_hsae = analysis["latents"]["current_character"]
    assert found["latents"]["hsae"]["current_character"] == {
        "value": of_hsae["value"],
        "null": of_hsae["shifted"]["mean"],
    }
    assert found["taxonomy"]["level2_by_decoder"]["current_character"] == pytest.approx(1)
    assert found["taxonomy"]["level2_by_decoder"]["next_character"] is None
    pair = found["differences"]["level2_by_coactivation_less_flat_by_coactivation"]["current_character"]
    assert pair["low"] < pair["difference"] < pair["high"] < 0
    modularity = analysis["partitions"]["communities"]["modularity"]
    expected = {"value": modularity["value"], "null": modularity["independent"]["mean"]}
    assert found["hsae"]["modularity"] == expected
    groups = analysis["cophenetic"]["groups_decoder"]
    assert found["hsae"]["cophenetic"]["groups_decoder"] == {
        "value": groups["value"],
        "null": groups["shuffled"]["mean"],
    }


def test_the_detail_holds_every_number_and_null_once(analysis: dict[str, Any], compared: pd.DataFrame):
    frame = detail_frame({"hsae": analysis}, compared)
    assert not frame.duplicated(["dictionary", "measure", "null"]).any()
    of = frame.set_index(["dictionary", "measure"])
    modularity = of.loc[("hsae", "partitions.communities.modularity")].set_index("null")
    for null in ("shuffled", "independent"):
        assert modularity["null_mean"][null] == analysis["partitions"]["communities"]["modularity"][null]["mean"]
    assert of.loc[("hsae", "latents.living")]["value"].item() == N_LATENTS - 2
    name = "level2_by_decoder.flat_by_decoder.main.current_character"
    expected = row(compared, *name.split("."))
    numbers = frame[frame["measure"] == name].iloc[0]
    assert [numbers[key] for key in ("value", "low", "high")] == [
        expected[key] for key in ("difference", "low", "high")
    ]
    assert len(frame.query("dictionary == 'hsae_less_flat'")) == len(compared)


def test_the_frame_of_agreement_has_every_number_once_each_way(analysis: dict[str, Any]):
    frame = agreement_frame({"HSAE": analysis})
    assert len(frame) == 5 * len(LABELLINGS) + 2 * 10
    assert not frame.duplicated(["dictionary", "partition", "other"]).any()
    ami = {(row["partition"], row["other"]): row["ami"] for row in frame.to_dict("records")}
    assert ami["communities", "groups_decoder"] == ami["groups_decoder", "communities"] == pytest.approx(1)
    assert ami["groups_decoder", "current_character"] == pytest.approx(1)


def test_the_frame_of_latents_names_groups_and_classes(hsae: Features):
    frame = latent_frame(hsae, planted()[1], CONFIG, STREAM)
    assert list(frame) == ["x", "y", "group", "community", "current", "next"]
    assert frame["group"].value_counts().to_dict() == {
        "1 (7 latents)": 7, "2 (7 latents)": 7, "3 (6 latents)": 6, "other": 18
    }  # fmt: skip
    # Groups 0 and 1, which have seven latents, answer line breaks and blanks.
    assert frame.query("group == '1 (7 latents)'")["current"].unique().tolist() == ["line break"]
    assert frame.query("group == '2 (7 latents)'")["current"].unique().tolist() == ["blank"]
    assert "no class" in set(frame["next"])
