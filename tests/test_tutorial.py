"""The tutorial works as it stands: its console and Python blocks are run in their order, on the tiny project."""

import re
from pathlib import Path

import pytest

from tests.project import ROOT, Project, stages_run

TUTORIAL = ROOT / "docs/tutorial.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[str]:
    return [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    project = Project.create(tmp_path / "project", tmp_path / "site")
    monkeypatch.chdir(project.path)
    names: dict[str, object] = {"__name__": "tutorial"}
    ran = []
    for language, block in BLOCKS:
        if language == "console":
            ran += [stages_run(project.run("bash", "-c", command)) for command in commands(block)]
        elif language == "python":
            exec(compile(block, TUTORIAL.name, "exec"), names)
    phases = {"phase2", "phase3"}
    expected = [{"prepare_data", "train_transformer", "extract_activations", "phase1"} | phases, phases]
    assert [stages for stages in ran if stages] == expected, "what the text says of the stages"
    assert project.params()["beta2"] == 0.15
    printed = capsys.readouterr().out
    for line in ("P(parent | child)", "median with level 1 shifted", "groupmax {'l0'", "topk {'l0'"):
        assert line in printed


def test_the_tutorial_has_no_blocks_that_are_neither_run_nor_marked():
    assert {language for language, _ in BLOCKS} == {"sh", "console", "python"}
    assert TUTORIAL.read_text(encoding="utf-8").count("```") == 2 * len(BLOCKS)
