"""Text, transformer and activations as the first three stages write them: documents, splits, masks, streams."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from hsae.blocks import Written
from hsae.data import context_starts
from hsae.files import read_json, read_tensors, write_json
from hsae.samples import shared
from tests.project import TINY, Project

SPLITS = ["train", "final", "val", "test"]
CONTEXT = TINY["train_transformer"]["context"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """After the first three stages."""
    project = Project.create(tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site"))
    for stage in ("prepare_data", "train_transformer", "extract_activations"):
        result = project.stage(stage)
        assert result.returncode == 0, result.stderr
    return project


def rows(project: Project, name: str) -> dict[str, Tensor]:
    folder = project.path / "data/activations"
    path = folder / "train/00000.safetensors" if name == "train" else folder / f"{name}.safetensors"
    return read_tensors(path)[0]


def test_splits_are_whole_documents_and_all_of_them(project: Project):
    corpus = read_json(project.path / "data/corpus.json")
    n = len(read_tensors(project.path / "data/tokens.safetensors")[0]["tokens"])
    starts = [document["start"] for document in corpus["documents"]]
    assert list(corpus["splits"]) == SPLITS
    ranges = [tuple(one) for own in corpus["splits"].values() for one in own]
    assert ranges == list(pairwise([*starts, n]))
    assert len(starts) == 38


@pytest.mark.parametrize("name", SPLITS)
def test_no_context_nor_its_target_crosses_a_document(project: Project, name: str):
    found = rows(project, name)
    offsets, positions, documents = (found[key].long() for key in ("offsets", "positions", "documents"))
    corpus = read_json(project.path / "data/corpus.json")
    ranges = torch.tensor(corpus["splits"][name])
    begins = offsets - positions
    own = torch.searchsorted(ranges[:, 0].contiguous(), begins, right=True) - 1
    assert (begins >= ranges[own, 0]).all()
    assert (begins + CONTEXT < ranges[own, 1]).all(), "the last target is in the document too"
    assert torch.isin(begins, context_starts(ranges, CONTEXT)).all()
    titles = [document["start"] for document in corpus["documents"]]
    assert documents.tolist() == (torch.searchsorted(torch.tensor(titles), offsets, right=True) - 1).tolist()
    assert len(documents.unique()) > 1 or name in ("final", "val"), "the first of these has enough tokens"


def test_splits_share_no_token(project: Project):
    offsets = torch.cat([rows(project, name)["offsets"] for name in SPLITS])
    assert len(offsets.unique()) == len(offsets)


def test_the_transformer_is_chosen_and_scored_on_other_tokens(project: Project):
    metrics = read_json(project.path / "metrics/train_transformer.json")
    assert [sample["role"] for sample in metrics["samples"]] == ["chosen", "scored"]
    assert shared(metrics["samples"]) == []


def test_of_characters_none_is_masked(project: Project):
    counts = read_json(project.path / "metrics/activations.json")
    assert {name: own["tokens"] for name, own in counts.items()} == {
        "first_block": 8192, "val": 1024, "test": 2048, "final": 2048,
    }  # fmt: skip
    assert all(own["masked_special"] == own["masked_sink"] == 0 for own in counts.values())
    assert all(rows(project, name)["kept"].all() for name in SPLITS)


def test_extraction_repeats_to_the_byte(project: Project):
    before = project.digests("data/activations", "metrics/activations.json")
    assert project.stage("extract_activations").returncode == 0
    assert project.digests("data/activations", "metrics/activations.json") == before


def test_another_seed_chooses_other_contexts_and_leaves_what_is_evaluated_on(project: Project):
    other = project.clone(project.path.with_name("other"))
    other.set_params({"extract_activations": {"seed": 1}})
    assert other.stage("extract_activations").returncode == 0
    assert not torch.equal(rows(project, "train")["offsets"], rows(other, "train")["offsets"])
    for name in ("acts", "offsets"):
        assert torch.equal(rows(project, "test")[name], rows(other, "test")[name])


def test_special_tokens_are_masked_counted_and_not_trained_on(project: Project):
    other = project.clone(project.path.with_name("special"))
    path = other.path / "data/tokenizer.json"
    tokenizer = read_json(path)
    special = tokenizer["vocabulary"].index("e")
    write_json(path, {**tokenizer, "special": [special]})
    assert other.stage("extract_activations").returncode == 0
    tokens = read_tensors(other.path / "data/tokens.safetensors")[0]["tokens"]
    counts = read_json(other.path / "metrics/activations.json")
    for name in ("val", "test", "final"):
        found = rows(other, name)
        masked = tokens[found["offsets"].long()] == special
        assert torch.equal(found["kept"], ~masked)
        assert counts[name]["masked_special"] == masked.sum() > 0
    data = Written.read(other.path / "data/activations/train", torch.device("cpu")).kept()
    store = data.block(0)
    assert len(store) == 8192
    assert not (tokens[store.activations.offsets.long()] == special).any()
    assert (tokens[rows(other, "train")["offsets"].long()] == special).any(), "its file has all rows"
