"""dvc.yaml says the truth: a stage depends on exactly the modules that it imports; imports go downward."""

import ast
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from hsae import config

ROOT = Path(__file__).resolve().parent.parent
STAGES: dict[str, dict[str, Any]] = {
    name: stage.get("do", stage)
    for name, stage in OmegaConf.to_container(OmegaConf.load(ROOT / "dvc.yaml"), resolve=False)["stages"].items()  # pyright: ignore
}


def imported(module: Path) -> set[Path]:
    """The project's modules that a module imports itself, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = {ROOT / (name.replace(".", "/") + ".py") for name in names}
    return {file for file in files if file.is_file()}


def imported_transitively(module: Path) -> set[Path]:
    found, new = set(), {module}
    while new:
        found |= new
        new = set().union(*map(imported, new)) - found
    return found


def compiled(modules: set[Path]) -> set[Path]:
    """What modules compile: a source in C++ beside them."""
    return {file.with_suffix(".cpp") for file in modules if file.with_suffix(".cpp").is_file()}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_exactly_the_modules_that_it_imports(name: str):
    modules = imported_transitively(ROOT / "stages" / f"{name}.py")
    expected = {str(file.relative_to(ROOT)) for file in modules | compiled(modules)}
    assert {dep for dep in STAGES[name]["deps"] if dep.endswith((".py", ".cpp"))} == expected


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_lists_nothing_twice_and_the_versions_that_can_change_its_numbers(name: str):
    stage = STAGES[name]
    for kind in ("deps", "params", "outs", "metrics", "plots"):
        written = [str(entry) for entry in stage.get(kind, [])]
        assert len(set(written)) == len(written), kind
    makes_tokens_or_activations = name in ("prepare_data", "train_transformer", "extract_activations")
    expected = {"versions/numerics.lock"} | ({"versions/text.lock"} if makes_tokens_or_activations else set())
    assert {dep for dep in stage["deps"] if dep.startswith("versions/")} == expected


def test_the_versions_are_those_of_the_lock_and_of_what_is_installed():
    locked = (ROOT / "requirements.lock").read_text().splitlines()
    packages = {
        "numerics": ["networkx", "numpy", "scikit-learn", "scipy", "torch"],
        "text": ["gguf", "tokenizers", "transformers"],
    }
    for name, expected in packages.items():
        lines = (ROOT / f"versions/{name}.lock").read_text().splitlines()
        assert [line.partition("==")[0] for line in lines] == expected
        assert set(lines) <= set(locked), "run `make versions`"
        for package in expected:
            assert f"{package}=={version(package).partition('+')[0]}" in lines


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_runs_the_module_of_its_name(name: str):
    assert f"python -m stages.{name}" in STAGES[name]["cmd"]


def test_every_stage_module_stands_in_the_pipeline():
    modules = {file.stem for file in (ROOT / "stages").glob("*.py")} - {
        "__init__",
        "budget",
        "clusters",
        "evidence",
        "files",
        "raised",
        "trained",
        "training_split",
        "transformer",
    }
    assert modules == set(STAGES)


def test_imports_go_downward_only():
    below = {"config", "losses", "metrics", "plots", "progress", "files", "dictionary", "parallel", "streams"}
    for file in (ROOT / "hsae").glob("*.py"):
        assert not any("stages" in other.parts for other in imported(file)), file
        if file.stem in below:
            names = {other.stem for other in imported(file)}
            assert names <= below, f"{file.stem} imports {names - below}"


def test_training_never_imports_a_variant():
    names = {file.stem for file in imported_transitively(ROOT / "hsae/training.py")}
    assert not names & {"sae", "hierarchical", "flat"}


def test_the_committed_parameters_are_known_to_the_pipeline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    assert {name.split(".")[0] for name in config.flatten(config.read_params())} >= set(STAGES) - {
        "evaluate",
        "evaluate_hsae",
        "recurrence",
        "untrained",
    }


def test_params_yaml_holds_no_interpolation():
    assert "${" not in (ROOT / "params.yaml").read_text(), "`-S` would bake it to a literal"


def test_every_output_lies_where_git_or_dvc_expects_it():
    for name, stage in STAGES.items():
        for out in [*stage.get("outs", []), *stage.get("plots", [])]:
            path, cached = (out, True) if isinstance(out, str) else (next(iter(out)), next(iter(out.values()))["cache"])
            allowed = ("data/", "models/", "report.html", "explorer.html") if cached else ("plots/", "case_studies")
            assert path.startswith(allowed), (name, path)


def test_a_stage_that_trains_can_be_taken_from_the_run_cache():
    for name, stage in STAGES.items():
        uncached = [out for out in stage.get("outs", []) if not isinstance(out, str)]
        assert not uncached or name in ("case_studies", "report"), (name, uncached)
