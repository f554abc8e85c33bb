"""The real pipeline, run by dvc on a copy of the project with tiny parameters."""

import json
from pathlib import Path

import pytest

from tests.project import Project, stages_run

METHODS = {
    "hsae": {"level1", "level2"},
    "flat": {"relu_l1", "topk", "relu_l1_level2", "topk_level2"},
    "clustering": {"kmeans", "ward"},
}
METRICS = {
    "l0",
    "fvu",
    "explained_variance",
    "dead_fraction",
    "ce_recovered_zero",
    "ce_recovered_mean",
    "kl_recovered_mean",
}
ALL_STAGES = {
    "prepare_data", "train_transformer", "extract_activations", "phase1", "phase2", "phase3", "evaluate", "report",
    "flat_baseline@relu_l1", "flat_baseline@topk", "flat_baseline@relu_l1_level2", "flat_baseline@topk_level2",
    "clustering_baseline@kmeans", "clustering_baseline@ward",
}  # fmt: skip
AFTER_BETA2 = {
    "phase2", "phase3", "flat_baseline@relu_l1_level2", "flat_baseline@topk_level2", "evaluate", "report",
}  # fmt: skip


@pytest.fixture(scope="module")
def site_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory, site_cache: Path) -> Project:
    """A project after its first `dvc repro`, committed."""
    project = Project.create(tmp_path_factory.mktemp("project"), site_cache)
    assert stages_run(project.run("dvc", "repro")) == ALL_STAGES
    project.commit()
    return project


@pytest.fixture
def project(reproduced: Project, tmp_path: Path) -> Project:
    return reproduced.clone(tmp_path / "project")


def test_a_repro_leaves_dvc_and_git_clean_and_a_second_one_does_nothing(reproduced: Project):
    assert "up to date" in reproduced.run("dvc", "status")
    assert reproduced.run("git", "status", "--porcelain") == ""
    assert stages_run(reproduced.run("dvc", "repro")) == set()


def test_evaluate_reports_every_metric_of_every_method(reproduced: Project):
    evaluation = json.loads((reproduced.path / "metrics/evaluate.json").read_text())
    assert {family: set(evaluation[family]) for family in METHODS} == METHODS
    for family, methods in METHODS.items():
        for name in methods:
            assert set(evaluation[family][name]) >= METRICS
            assert evaluation[family][name]["explained_variance"] == pytest.approx(1 - evaluation[family][name]["fvu"])
    assert evaluation["hsae"]["level2"]["fvu_h1"] > 0
    losses = evaluation["language_model"]
    assert losses["ce_clean"] < losses["ce_mean_ablated"]
    assert losses["n_tokens"] == 2048


def test_another_clone_gives_byte_identical_results(reproduced: Project, tmp_path: Path, site_cache: Path):
    other = Project.create(tmp_path / "other", site_cache)
    assert stages_run(other.run("dvc", "repro")) == ALL_STAGES
    assert other.digests("metrics", "plots", "models") == reproduced.digests("metrics", "plots", "models")


def test_changing_beta2_reruns_only_what_depends_on_it_and_shows_in_the_diffs(project: Project):
    output = project.run("dvc", "exp", "run", "-n", "stronger", "-S", "beta2=0.2")
    assert stages_run(output) == AFTER_BETA2
    changes = json.loads(project.run("dvc", "metrics", "diff", "--json"))
    level2 = changes["metrics/evaluate.json"]["hsae.level2.l0"]
    assert level2["new"] < level2["old"]
    assert "hsae.level1.l0" in changes["metrics/evaluate.json"], "phase 3 also moves level 1"
    assert "stronger" in project.run("dvc", "exp", "show", "--csv")
    assert "index.html" in project.run("dvc", "plots", "diff", "HEAD")


def test_a_queued_sweep_runs_every_value(project: Project):
    project.run("dvc", "exp", "run", "--queue", "-S", "beta2=0.05,0.2", "-S", "phase3.epochs=1")
    project.run("dvc", "exp", "run", "--run-all")
    status = project.run("dvc", "queue", "status")
    assert status.count("Success") == 2, status


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+betta2=1", "unknown key `betta2`; allowed: beta1, beta2"),
        ("beta2=abc", "`beta2`: Value 'abc' of type 'str' could not be converted to Float"),
        ("beta2=0.001", "`beta2` must be at least beta1 (=0.01); not 0.001"),
        ("extract_activations.layer=2", "`extract_activations.layer` must be in 0..1 (the blocks); not 2"),
        ("expansion1=-8", "`expansion1` must be above 0 and finite; not -8.0"),
        ("phase1.epochs=0", "`epochs` must be above 0; not 0"),
        ("prepare_data.corpus=bible", "allowed"),
        ("prepare_data.max_chars=100", "shorter than one context"),
    ],
)
def test_a_bad_parameter_ends_the_run_with_one_line(project: Project, override: str, message: str):
    before = project.digests("metrics", "models", "plots")
    result = project.try_run("dvc", "exp", "run", "-S", override)
    errors = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("error:")]
    assert result.returncode != 0
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in result.stdout + result.stderr
    after = project.digests("metrics", "models", "plots")
    assert all(after[name] == content for name, content in before.items() if name in after), "nothing is half-written"


def test_a_misspelt_override_is_refused_by_name(project: Project):
    result = project.try_run("dvc", "exp", "run", "-S", "betta2=1")
    assert result.returncode != 0
    assert "Could not override 'betta2'" in result.stderr
