"""A copy of the project with tiny parameters, and ways to run dvc in it as a user does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parent.parent

TINY = {
    "threads": 1,
    "prepare_data": {"max_chars": 60_000},
    "train_transformer": {
        "n_layer": 2, "n_head": 2, "d_model": 16, "context": 32, "steps": 30, "warmup_steps": 5,
        "eval_interval": 10, "eval_windows": 8, "sample_chars": 40,
    },
    "extract_activations": {
        "layer": 0, "train_tokens": 8192, "val_tokens": 1024, "test_tokens": 2048,
        "block_tokens": 8192, "keep": True,
    },
    "phase1": {"epochs": 2, "batch_size": 512},
    "phase2": {"epochs": 2, "batch_size": 512},
    "phase3": {"epochs": 1, "batch_size": 512},
    "clustering_baseline": {"fit_tokens": 2048, "max_iter": 5},
    "feature_clustering": {"n_tokens": 1024, "min_active": 2, "n_null": 2, "n_resamples": 2, "groups_shown": 2},
    "absorption": {"fit_tokens": 1024, "score_tokens": 2048, "min_tokens": 10},
    "mutual_information": {
        "bins": 2, "screening_shifts": 2, "shifts": 20, "candidates": 2, "children": [1, 2],
        "probe": {"epochs": 2, "batch_size": 512, "resamples": 50},
    },
    "synthetic": {
        "train_samples": 4096, "test_samples": 1024, "phase1": {"epochs": 1}, "sharpening": {"epochs": 1},
        "init_tokens": 1024, "clustering": {"fit_tokens": 4096, "max_iter": 3},
        "rivals": ["topk", "kmeans"],
    },
    "interpretability_proxy": {"fit_tokens": 1024, "score_tokens": 1024, "longest": 2, "min_active": 2, "trials": 2},
    "causal_tracing": {
        "prompt_chars": 16, "pairs": 8, "min_pairs": 1, "ks": [1, 4], "steps": 1, "exact": 3, "draws": 1, "nulls": 2,
        "distance": 2, "parents": 2, "children": 2,
    },
    "steering": {"contexts": 4, "doses": [0.5, 1.0]},
    "latent_effects": {"contexts": 8, "contexts_per_latent": 1},
    "build_study": {
        "tokens": 2048, "features": 2, "trials": 1, "parents": 2, "snippet_chars": 8, "clarity_snippets": 2, "gold": 2,
        "attention": 1, "session": {"intruder": 2, "odd_child": 1, "clarity": 1, "gold": 1, "attention": 1},
    },
    "score_study": {"reference": "random directions"},
    "build_explorer": {"tokens": 1024, "strongest": 2, "per_band": 1},
    "case_studies": {"cases": 2, "snippets": 2, "sample_chars": 8},
    "control": {"tokens": 4096, "test_tokens": 1024, "shifts": 10},
    "report": {"n_parents": 2, "n_snippets": 2},
}  # fmt: skip


class Project:
    """A git repository with the project's files in a folder of its own."""

    def __init__(self, path: Path, site_cache: Path):
        self.path = path
        self.env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "OMP_NUM_THREADS": "1",  # several of these run at once
            "DVC_SITE_CACHE_DIR": str(site_cache),
            "DVC_GLOBAL_CONFIG_DIR": str(site_cache / "config"),
            **{
                f"GIT_{who}_{what}": "test@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
            },
        }

    @classmethod
    def create(cls, path: Path, site_cache: Path) -> "Project":
        """Copy what git would commit but dvc.lock, which is of full size, make the parameters tiny, and commit."""
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
        for name in names:
            if name and name != "dvc.lock" and (ROOT / name).is_file():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, path / name)
        project = cls(path, site_cache)
        project.set_params(TINY)
        project.run("git", "init", "--quiet")
        project.commit()
        return project

    def clone(self, path: Path) -> "Project":
        """An independent copy with everything in it, outputs and cache too."""
        shutil.copytree(self.path, path, symlinks=True)
        return self._at(path, Path(self.env["DVC_SITE_CACHE_DIR"]))

    def git_clone(self, path: Path) -> "Project":
        """What another user gets from git: nothing of what only DVC has."""
        self.run("git", "clone", "--quiet", ".", str(path))
        return self._at(path, path.with_name(f"{path.name}.site"))

    def params(self) -> dict[str, Any]:
        """The content of params.yaml."""
        return OmegaConf.to_container(OmegaConf.load(self.path / "params.yaml"))  # pyright: ignore[reportReturnType]

    def set_params(self, values: dict[str, Any]) -> None:
        """Merge values into params.yaml."""
        OmegaConf.save(OmegaConf.merge(self.params(), values), self.path / "params.yaml")

    def commit(self) -> None:
        """Commit everything."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "state")

    def try_run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command and return it with its output, whatever its status."""
        return subprocess.run(command, cwd=self.path, env=self.env, capture_output=True, text=True)

    def run(self, *command: str) -> str:
        """Run a command that must succeed; its standard output."""
        result = self.try_run(*command)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    def stage(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a stage's module as DVC would."""
        return self.try_run("python", "-m", f"stages.{module}", *arguments)

    def _at(self, path: Path, site_cache: Path) -> "Project":
        """The project in another folder, with what was added to the environment."""
        other = Project(path, site_cache)
        other.env = self.env | {name: other.env[name] for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR")}
        return other

    def digests(self, *folders: str) -> dict[str, bytes]:
        """Content of some files, and of every file below some folders."""
        below = (path for folder in folders for path in (self.path / folder, *sorted((self.path / folder).rglob("*"))))
        files = (path for path in below if path.is_file())
        return {str(file.relative_to(self.path)): file.read_bytes() for file in files}


def stages_run(output: str) -> set[str]:
    """Names of the stages that dvc says it ran."""
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}
