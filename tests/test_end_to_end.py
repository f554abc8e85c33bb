"""The real pipeline, run by dvc on a copy of the project with tiny parameters."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hsae import config, samples
from tests import stages_log
from tests.project import Project, stages_run

if TYPE_CHECKING:
    from tests.bucket import Bucket

LEVEL1 = {"relu_l1", "topk", "batchtopk", "jumprelu", "matryoshka", "gated"}
LEVEL2 = {"relu_l1_level2", "topk_level2", "batchtopk_level2", "jumprelu_level2"}
METHODS = {
    "hsae": {"level1", "level2"},
    "flat": LEVEL1 | LEVEL2,
    "clustering": {"kmeans", "minibatch_kmeans", "ward", "gmm", "nmf", "pca"},
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
RIVALS = {
    level: {f"flat_baseline@{name}" for name in names} for level, names in (("level1", LEVEL1), ("level2", LEVEL2))
}
CONTROLS = {f"control@{name}" for name in ("trained", "random_decoder", "random_transformer", "shuffled_activations")}
TRACED = {"causal_tracing", "steering", "interpretability_proxy"}
LOOKED_AT = {"recurrence", "latent_effects", "build_study", "score_study", "build_explorer", "case_studies"}
ANALYSES = {"mutual_information", "feature_clustering", "absorption", *TRACED, *LOOKED_AT}
AFTER_BETA2 = {"phase2", "phase3", "untrained", "evaluate_hsae", "evaluate", *ANALYSES, *CONTROLS, "report"}
ALL_STAGES = (
    {"prepare_data", "train_transformer", "extract_activations", "phase1", "synthetic", *AFTER_BETA2}
    | RIVALS["level1"]
    | RIVALS["level2"]
    | {f"clustering_baseline@{method}" for method in METHODS["clustering"]}
)
# Stages that choose (a matching, a parent, a case, a bin, the best of several) and score what they chose.
CHOOSING = {
    "train_transformer",
    "evaluate_hsae",
    "mutual_information",
    "absorption",
    "interpretability_proxy",
    "feature_clustering",
    "causal_tracing",
    "steering",
    "latent_effects",
    "case_studies",
    "synthetic",
    *CONTROLS,
}
# Parameters that are read only where no compiler builds the kernels, or for kinds that have none.
BY_AUTOGRAD = {
    "phase2: beta1",
    "phase2: weight_x_from_h1",
    "phase2: level1_grad_scale",
    "phase3: beta1",
    "phase3: beta2",
}


@pytest.fixture(scope="module")
def site_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, site_cache: Path) -> tuple[Project, Project]:
    """Two projects after their first `dvc repro`, which ran at the same time; both committed.

    The stages of the second one log (tests/stages_log.py), into `log` beside it.
    """
    first, second = (Project.create(tmp_path_factory.mktemp(name), site_cache) for name in ("project", "other"))
    second.env = stages_log.logging_to(second.path.with_name(f"{second.path.name}.log"), second.env)
    with ThreadPoolExecutor() as pool:
        for output in pool.map(lambda project: project.run("dvc", "repro"), (first, second)):
            assert stages_run(output) == ALL_STAGES
    for project in (first, second):
        project.commit()
    return first, second


@pytest.fixture(scope="module")
def reproduced(both: tuple[Project, Project]) -> Project:
    """One of them."""
    return both[0]


@pytest.fixture(scope="module")
def log(both: tuple[Project, Project]) -> list[dict[str, Any]]:
    """What its stages logged."""
    path = both[1].path
    return stages_log.read(path.with_name(f"{path.name}.log"))


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


def test_two_clones_give_byte_identical_results(both: tuple[Project, Project]):
    results = ("metrics", "plots", "models", "case_studies", "explorer.html", "report.html")
    first, second = (project.digests(*results) for project in both)
    assert first.keys() == second.keys()
    assert [path for path, content in first.items() if second[path] != content] == []


def test_every_generator_is_seeded_by_a_stream_of_its_own(log: list[dict[str, Any]]):
    assert {entry["stage"].split()[0].removeprefix("stages.") for entry in log} >= {"phase1", "synthetic", "control"}
    assert sum("seeder" in entry for entry in log) > 20
    assert stages_log.offences(log) == []


def test_a_stage_uses_every_parameter_that_it_lists(
    reproduced: Project, log: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    """It can use no other: `Stage.params` withholds them."""
    monkeypatch.chdir(reproduced.path)
    stages = [name.replace("@", "/") for name in ALL_STAGES]
    listed = {name: config.listed(name, "params") for name in stages}
    assert set(stages_log.unused(log, listed)) <= BY_AUTOGRAD


def test_nothing_is_chosen_and_scored_on_the_same_samples(reproduced: Project):
    records = {
        str(file.relative_to(reproduced.path / "metrics").with_suffix("")).replace("/", "@"): content["samples"]
        for file in (reproduced.path / "metrics").rglob("*.json")
        if "samples" in (content := json.loads(file.read_text()))
    }
    files = {"hsae": "evaluate_hsae"}  # of the stage that writes it, where it has another name
    assert {name: shared for name, of in records.items() if (shared := samples.shared(of))} == {}
    assert {files.get(name, name) for name, of in records.items() if of} == CHOOSING


def test_a_second_clone_pulls_all_of_it_from_the_remote_and_runs_nothing(
    project: Project, tmp_path: Path, bucket: "Bucket"
):
    bucket.become_remote(project, "everything")
    project.commit()
    project.run("dvc", "push")
    second = project.git_clone(tmp_path / "second")
    assert not (second.path / ".dvc/cache").exists()
    second.run("dvc", "pull")
    assert stages_run(second.run("dvc", "repro")) == set()
    assert second.run("git", "status", "--porcelain") == ""
    everything = ("data", "metrics", "plots", "models", "case_studies", "explorer.html", "report.html")
    assert second.digests(*everything) == project.digests(*everything)


def test_changing_beta2_reruns_only_what_depends_on_it_and_shows_in_the_diffs(project: Project):
    before = project.digests("models/l0")
    output = project.run("dvc", "exp", "run", "-n", "stronger", "-S", "beta2=0.2", "evaluate")
    after = project.digests("models/l0")
    # Rivals are matched with a level's L0 in whole latents, and train again only where that has changed.
    changed = [level for level in RIVALS if before[f"models/l0/{level}.json"] != after[f"models/l0/{level}.json"]]
    rerun = {"phase2", "phase3", "untrained", "evaluate_hsae", "evaluate"}.union(*(RIVALS[level] for level in changed))
    assert stages_run(output) == rerun
    # What is left: all that depends on beta2, or on what has changed, and nothing else. (score_study depends on the
    # trials alone, which are still to be made.)
    assert set(json.loads(project.run("dvc", "status", "--json"))) == AFTER_BETA2 - rerun - {"score_study"}
    changes = json.loads(project.run("dvc", "metrics", "diff", "--json"))
    level2 = changes["metrics/evaluate.json"]["hsae.level2.l0"]
    assert level2["new"] < level2["old"]
    assert "hsae.level1.l0" in changes["metrics/evaluate.json"], "phase 3 also moves level 1"
    assert "stronger" in project.run("dvc", "exp", "show", "--csv")
    assert "index.html" in project.run("dvc", "plots", "diff", "HEAD")


def test_a_queued_sweep_runs_every_value(project: Project):
    values = ["-S", "beta2=0.05,0.2", "-S", "phase2.epochs=1"]
    project.run("dvc", "exp", "run", "--queue", *values, "phase2")  # all stages after it would take minutes
    project.run("dvc", "exp", "run", "--run-all")
    status = project.run("dvc", "queue", "status")
    assert status.count("Success") == 2, status


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The one line with which a run was refused."""
    output = result.stdout + result.stderr
    lines = [line for line in output.splitlines() if line.startswith("error:")]
    assert result.returncode != 0, output
    assert "Traceback" not in output
    assert len(lines) == 1, output
    return lines[0]


@pytest.mark.parametrize(
    ("stage", "values", "message"),
    [
        ("phase2", {"betta2": 1}, "unknown key `betta2`; allowed: absorption, activation, beta1, beta2"),
        ("phase2", {"beta2": "abc"}, "`beta2`: Value 'abc' of type 'str' could not be converted to Float"),
        ("phase1", {"beta2": 0.001}, "`beta2` must be at least beta1 (=0.03); not 0.001"),
        ("extract_activations", {"extract_activations": {"layer": 2}}, "`extract_activations.layer` must be in 0..1"),
        ("phase1", {"expansion1": -8}, "`expansion1` must be above 0 and finite; not -8.0"),
        ("phase1", {"phase1": {"epochs": -1}}, "`epochs` must be finite and 0 or above; not -1"),
        ("phase1", {"phase1": {"epoch": 1}}, "unknown key `phase1.epoch`; allowed: epochs, batch_size"),
        ("prepare_data", {"prepare_data": {"corpus": "bible"}}, "shakespeare, shakespeare_char, enwik8"),
        ("prepare_data", {"prepare_data": {"corpus": "text_file"}}, "`path` must be the file to read"),
        ("prepare_data", {"prepare_data": {"corpus": "text_file", "path": "nowhere.txt"}}, "nowhere.txt is missing"),
        (
            "prepare_data",
            {"prepare_data": {"corpus": "shakespeare_char", "path": "README.md"}},
            "expected 1115394 bytes",
        ),
        ("train_transformer", {"train_transformer": {"context": 9000}}, "has no context of 9000 and a target"),
    ],
)
def test_bad_parameters_are_refused_in_one_line_and_leave_all_files_alone(
    project: Project, stage: str, values: dict[str, Any], message: str
):
    project.set_params(values)
    before = project.digests("metrics", "models", "plots", "data")
    assert message in refused(project.stage(stage))
    assert project.digests("metrics", "models", "plots", "data") == before


@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b"caf\xe9 " * 5000, "is not UTF-8")])
def test_a_bad_text_file_is_refused_by_name(project: Project, content: bytes, message: str):
    (project.path / "my.txt").write_bytes(content)
    project.set_params({"prepare_data": {"corpus": "text_file", "path": "my.txt"}})
    line = refused(project.stage("prepare_data"))
    assert "my.txt" in line
    assert message in line


def test_a_truncated_activation_store_is_refused_by_name(project: Project):
    store = project.path / "data/activations/train/00000.safetensors"
    content = store.read_bytes()
    store.unlink()  # the file is a link into DVC's cache
    store.write_bytes(content[:-1000])
    assert "data/activations/train is not what dvc.lock records" in refused(project.stage("phase1"))


def test_dvc_reports_a_refused_stage_and_records_nothing(project: Project):
    lock = (project.path / "dvc.lock").read_text()
    result = project.try_run("dvc", "exp", "run", "-S", "beta2=0.001")
    assert "`beta2` must be at least beta1" in refused(result)
    assert "failed to reproduce 'phase2'" in result.stderr
    assert (project.path / "dvc.lock").read_text() == lock
    # What README says of getting back.
    project.run("git", "restore", "params.yaml", "dvc.lock", "metrics", "plots")
    project.run("dvc", "checkout")
    assert stages_run(project.run("dvc", "repro")) == set()


def test_without_the_project_s_environment_dvc_ends_in_one_line_that_says_so(project: Project, tmp_path: Path):
    other = Path(sys.base_prefix) / "bin/python"
    if subprocess.run([other, "-c", "import torch"], capture_output=True).returncode == 0:
        pytest.skip("Python has torch without an environment")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(other)
    project.env["PATH"] = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    result = project.try_run(f"{os.path.dirname(sys.executable)}/dvc", "repro", "--force", "--single-item", "phase1")
    assert "run `. .venv/bin/activate` first" in refused(result)


def test_a_misspelt_override_is_refused_by_name(project: Project):
    result = project.try_run("dvc", "exp", "run", "-S", "betta2=1")
    assert result.returncode != 0
    assert "Could not override 'betta2'" in result.stderr
