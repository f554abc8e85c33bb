"""A pretrained language model goes through the real pipeline: run by dvc on a copy of the project, all of it tiny."""

import json

import pytest

from hsae.files import read_json, read_tensors
from tests.hf_models import save_model, save_tokenizer
from tests.project import Project, stages_run

CONTEXT = 32
MAX_NORM = 1.2  # so low that some tokens are masked


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """After `dvc repro` of the pages, and all that they are made of."""
    model = tmp_path_factory.mktemp("model")
    save_tokenizer(model)
    save_model(model)
    project = Project.create(tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site"))
    extraction = {"layer": 1, "train_tokens": 4096, "max_norm": MAX_NORM}
    source = {"source": "hf", "name": str(model), "context": CONTEXT}
    project.set_params({"model": source, "extract_activations": extraction})
    ran = stages_run(project.run("dvc", "repro", "build_explorer", "case_studies"))
    assert ran > {"train_transformer", "phase3", "causal_tracing", "interpretability_proxy", "build_explorer"}
    return project


def test_activations_are_those_of_tokens_after_the_models_first_one(project: Project):
    vocabulary = read_json(project.path / "data/tokenizer.json")["vocabulary"]
    tokens = read_tensors(project.path / "data/tokens.safetensors")[0]["tokens"]
    corpus = read_json(project.path / "data/corpus.json")
    text = "".join(vocabulary[token] for token in tokens.tolist())
    assert len(tokens) < len(text) == 60_000
    assert corpus["splits"]["test"][-1][1] == len(tokens)
    tensors, header = read_tensors(project.path / "data/activations/test.safetensors")
    assert tensors["positions"].unique().tolist() == list(range(CONTEXT))
    assert header["context"] == CONTEXT
    norms, kept = tensors["acts"].norm(dim=1), tensors["kept"]
    assert 0.5 < kept.float().mean() < 1
    assert norms[kept].max() < norms[~kept].min() < 10 * norms.median()


def test_masked_tokens_are_in_no_sample_of_rules(project: Project):
    splits = {name: read_tensors(project.path / f"data/activations/{name}.safetensors")[0] for name in ("val", "test")}
    for record in read_json(project.path / "metrics/interpretability_proxy.json")["samples"]:
        own = splits[record["split"]]
        within = [set(range(first, last + 1)) for first, last in record["runs"]]
        assert set().union(*within) <= set(own["offsets"][own["kept"]].tolist())


def test_rules_and_pages_speak_of_tokens_of_several_characters(project: Project):
    rules = (project.path / "metrics/interpretability_proxy.json").read_text()
    assert json.loads(rules)
    page = (project.path / "explorer.html").read_text()
    vocabulary = read_json(project.path / "data/tokenizer.json")["vocabulary"]
    words = [token for token in vocabulary if len(token.strip()) > 3]
    assert words
    assert sum(json.dumps(word, ensure_ascii=False) in page for word in words) > len(words) / 2
    cases = (project.path / "case_studies/README.md").read_text()
    assert any(word.strip() in cases for word in words)


def test_what_a_pretrained_model_says_of_itself_is_measured(project: Project):
    losses = read_json(project.path / "metrics/train_transformer.json")
    assert losses["tokens_seen"] == 0
    assert losses["val_loss"] > 0
    assert set(read_json(project.path / "metrics/hsae.json")) >= {"level1", "level2"}
