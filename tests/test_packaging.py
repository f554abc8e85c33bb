"""The wheel holds the whole package, and what it says of itself agrees with the repository."""

import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed: it is in `dev`")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", folder, ROOT], check=True, capture_output=True, text=True)
    (built,) = folder.iterdir()
    return built


def test_the_wheel_holds_every_file_of_the_package_and_its_licence(wheel: Path):
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "hsae"]
    files = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    info = [f"hsae-{PROJECT['version']}.dist-info/{name}" for name in
            ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")]  # fmt: skip
    with zipfile.ZipFile(wheel) as archive:
        assert sorted(archive.namelist()) == sorted([*(name for name in files if (ROOT / name).is_file()), *info])
        metadata = HeaderParser().parsestr(archive.read(info[0]).decode())
    assert metadata["License-Expression"] == "MIT"
    assert len(metadata.get_all("Requires-Dist", [])) >= len(PROJECT["dependencies"])


def test_what_the_wheel_installs_runs_away_from_the_repository(wheel: Path, tmp_path: Path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = (
        "import hsae.cli, hsae.presets\n"
        "print(hsae.__file__, hsae.presets.overrides(['run=run_3'])['gamma_group'])\n"
        "hsae.cli.main(['study', 'plan', '--p1', '.7', '--p2', '.8'])"
    )
    command, env = [sys.executable, "-c", script], {**os.environ, "PYTHONPATH": str(tmp_path)}
    output = subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True, text=True).stdout
    assert output.startswith(f"{tmp_path / 'hsae/__init__.py'} 0.05\n")
    assert "raters" in output


def test_the_citation_names_the_project_as_pyproject_does():
    cff = OmegaConf.to_container(OmegaConf.load(ROOT / "CITATION.cff"))
    assert isinstance(cff, dict)
    assert cff["cff-version"] == "1.2.0"
    assert cff.keys() >= {"message", "title", "authors"}, "what the format demands"
    assert (cff["version"], cff["license"]) == (PROJECT["version"], PROJECT["license"])
    assert cff["authors"] == PROJECT["authors"]
    assert cff["keywords"] == PROJECT["keywords"]
    assert cff["authors"][0]["name"] in (ROOT / "LICENSE").read_text(encoding="utf-8")
