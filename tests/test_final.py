"""The split `final` is of text that nothing was chosen on, and nothing but the last comparison reads it."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from hsae.corpora import CorpusName, DataConfig, load_corpus
from hsae.data import split
from hsae.evaluation import Split
from hsae.sweep_config import SCHEMAS, SWEEPS, load

ROOT = Path(__file__).resolve().parent.parent
PIPELINE: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "dvc.yaml"), resolve=False)
PARAMS: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "params.yaml"))
STORE = "data/activations/final.safetensors"


def deps(which: Split) -> dict[str, list[str]]:
    """What each stage depends on if `evaluate.split` is this one."""
    stages = {name: stage.get("do", stage) for name, stage in PIPELINE["stages"].items()}
    return {name: [dep.replace("${evaluate.split}", which) for dep in stage["deps"]] for name, stage in stages.items()}


def readers(which: Split) -> set[str]:
    return {name for name, own in deps(which).items() if any(STORE.startswith(dep) for dep in own)}


def test_no_stage_depends_on_the_final_split_unless_it_is_asked_for():
    assert PARAMS["evaluate"]["split"] == "test"
    assert readers(Split.test) == set()
    assert readers(Split.final) == {"evaluate", "evaluate_hsae"}


def test_no_stage_but_the_one_that_writes_it_names_the_final_split():
    """Else a stage could read it in spite of its deps."""
    naming = {file.stem for file in (ROOT / "stages").glob("*.py") if '"final"' in file.read_text()}
    assert naming == {"extract_activations"}


def test_the_last_comparison_is_the_comparison_but_for_its_text_and_its_seeds():
    last, first = vars(load("final")), vars(load("comparison"))
    assert last.pop("budget") == {"evaluate": {"split": "final"}}
    assert first.pop("budget") == {}
    assert last.pop("seeds") == [*range(200, 208)]
    first.pop("seeds")
    assert last == first


def test_no_other_sweep_has_its_text_or_its_seeds():
    for name in SCHEMAS.keys() - {"final"}:
        assert not {*load(name).seeds} & {*range(200, 208)}, name
        assert "split: final" not in (SWEEPS / f"{name}.yaml").read_text(), name


@pytest.fixture(scope="module")
def plays() -> dict[str, list[str]]:
    """The titles of each split's documents at the default parameters."""
    config = DataConfig(**{**PARAMS["prepare_data"], "corpus": CorpusName(PARAMS["prepare_data"]["corpus"])})
    corpus = load_corpus(config, Path("unused"))
    titles = {document.start: document.title for document in corpus.documents}
    fractions = config.val_fraction, config.final_fraction, config.test_fraction
    splits = split([*titles], len(corpus.text), *fractions)
    return {name: [titles[begin] for begin, _ in ranges] for name, ranges in splits.items()}


def test_the_final_plays_are_none_that_was_looked_at_before(plays: dict[str, list[str]]):
    """Until documents became boundaries, validation and test were the last tenth: from within Macbeth on."""
    assert plays["final"] == ["hamlet", "king-lear"]
    assert plays["val"] == ["macbeth", "othello"]
    assert plays["test"] == ["romeo-and-juliet", "timon-of-athens"]
    assert len(plays["train"]) == 32
