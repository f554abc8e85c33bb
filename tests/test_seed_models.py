import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hsae import seed_models
from hsae.activations import Activations, Normalizer, Store
from hsae.files import write_tensors
from hsae.hierarchical import HierarchicalSAE
from hsae.sae import SAE
from hsae.seed_models import directions, read_models
from hsae.variants import TopKSAE
from tests.project import Project

PATHS = {"HSAE": "models/hsae.safetensors", "topk": "models/topk.safetensors"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A repository whose pipeline trains nothing: it copies models that tests put beside it."""
    made = Project(tmp_path / "project", tmp_path / "cache")
    made.path.mkdir()
    for name, value in made.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(made.path)
    made.run("git", "init", "--quiet")
    made.run("dvc", "init", "--quiet")
    Path("seed").write_text("0")
    val().write(tmp_path / "val.0")
    for name, path in (("hsae", PATHS["HSAE"]), ("topk", PATHS["topk"]), ("val", seed_models.VALIDATION)):
        command = ["--name", name, "--deps", "seed", "--outs", path]
        made.run(
            "dvc",
            "stage",
            "add",
            "--quiet",
            *command,
            f"mkdir -p $(dirname {path}); cp ../{name}.$(cat seed) {path}",
        )
    return made


def hsae(seed: int) -> HierarchicalSAE:
    torch.manual_seed(seed)
    model = HierarchicalSAE(SAE(4, 6), SAE(6, 3, nonnegative=True))
    with torch.no_grad():
        model.level2.b_enc[1] = -1e6
    return model


def val() -> Store:
    """Tokens on which every latent but that one is active somewhere."""
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    offsets, positions, documents = (torch.arange(300) for _ in range(3))
    return Store(
        Activations(x, offsets, positions, documents, offsets >= 0),
        Normalizer(torch.zeros(4), torch.tensor(1.0)),
        0,
        10,
    )


def topk(seed: int) -> SAE:
    torch.manual_seed(10 + seed)
    return TopKSAE(4, 5, k=2)


def train(project: Project, seed: int) -> str:
    """Have DVC make the models of a seed, and return the commit."""
    for name, model in (("hsae", hsae(seed)), ("topk", topk(seed))):
        write_tensors(project.path.parent / f"{name}.{seed}", model.state_dict(), model.header())
    val().write(project.path.parent / f"val.{seed}")
    Path("seed").write_text(str(seed))
    project.run("dvc", "repro", "--quiet")
    project.commit()
    return project.run("git", "rev-parse", "HEAD").strip()


def test_models_of_commits_are_read_from_the_cache_and_their_seeds_compared(project: Project):
    commits = {seed: train(project, seed) for seed in (0, 1, 2)}
    present = project.digests("models")
    for seed, commit in commits.items():
        found = read_models(commit, PATHS)
        assert [*found] == ["HSAE level 1", "HSAE level 2", "HSAE level 2 in h1", "topk"]
        np.testing.assert_array_equal(found["topk"].rows, topk(seed).W_dec.detach().double())
    assert project.digests("models") == present
    seed_models.collect(commits, PATHS)
    summary = json.loads(Path("metrics/stability.json").read_text())
    assert [*summary] == ["HSAE level 1", "HSAE level 2", "HSAE level 2 in h1", "topk"]
    assert summary["topk"]["n_seeds"] == 3
    table = pd.read_csv("metrics/stability.csv")
    assert len(table) == 4 * 3
    assert max(table["mcc"].tolist()) < 0.999, "each commit has its own models"
    latents = pd.read_csv("metrics/stability_latents.csv")
    assert latents.query("dictionary == 'HSAE level 2'")["latent"].tolist() == [0, 2], "latent 1 is dead"
    assert latents["recurrence"].between(0, 2).all()
    assert Path("plots/stability.png").stat().st_size > 1000
    for file in Path(".dvc/cache").rglob("*"):
        if file.is_file():
            file.unlink()
    with pytest.raises(OSError, match="No storage files available"):
        read_models(commits[0], {"topk": PATHS["topk"]})


def test_level_2_is_read_through_both_decoders_without_its_dead_latents():
    model = hsae(0)
    found = directions("HSAE", model, val())
    W1, W2 = (level.W_dec.detach().double().numpy() for level in (model.level1, model.level2))
    np.testing.assert_array_equal(found["HSAE level 1"].rows, W1)
    np.testing.assert_allclose(found["HSAE level 2"].rows, W2[[0, 2]] @ W1)
    np.testing.assert_array_equal(found["HSAE level 2 in h1"].rows, W2[[0, 2]])
    np.testing.assert_array_equal(found["HSAE level 2 in h1"].basis, W1)  # pyright: ignore[reportArgumentType]
