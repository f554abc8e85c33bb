"""Other libraries' formats: each file's own maths, the library's loader, and the way back give our outputs.

The readers called "naive" compute what a format's documentation says from what lies in the folder. Those of the
libraries need the extra `peers` (`make test-interop`); one that is not installed is skipped.
"""

import json
import re
from collections.abc import Callable
from hashlib import md5, sha256
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from hsae import cli, variants
from hsae.activations import Normalizer, Store
from hsae.causal_lm import ModelConfig, Source
from hsae.files import write_tensors
from hsae.hierarchical import HierarchicalSAE
from hsae.interchange import dictionary_learning, folders, saelens, sparsify
from hsae.interchange.site import Site
from hsae.interchange.weights import assemble, fold, thresholds, unfold
from hsae.sae import SAE
from hsae.variants import VARIANTS, BatchTopKSAE, JumpReLUSAE
from tests.project import ROOT
from tests.test_cli import error
from tests.test_sae import randomised

D_IN, D_SAE, D_SAE2, K, N = 8, 24, 6, 3, 200
SITE = Site("a-model", "blocks.1.hook_resid_post", 1, 32, False)
EXPRESSED = {
    "saelens": tuple(saelens.ARCHITECTURES),
    "dictionary_learning": tuple(dictionary_learning.CLASSES),
    "sparsify": sparsify.KINDS,
}
PAIRS = [(form, kind) for form, kinds in EXPRESSED.items() for kind in kinds]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(kind: str, d_in: int = D_IN, d_sae: int = D_SAE, nonnegative: bool = False) -> SAE:
    """An autoencoder as training leaves it: own biases, thresholds, and a BatchTopK's cutoff."""
    model = randomised(variants.build(kind, d_in, d_sae, k=K, beta=0.1, nonnegative=nonnegative))
    if isinstance(model, BatchTopKSAE):
        model.threshold.fill_(0.4)
    return model.eval().requires_grad_(False)


def hsae(kind: str) -> HierarchicalSAE:
    return HierarchicalSAE(trained(kind), trained(kind, D_SAE, D_SAE2, nonnegative=True)).eval()


def normalizer(scale: float = 2.7) -> Normalizer:
    return Normalizer(scale * normal(D_IN, seed=5), torch.tensor(scale))


def raw(scale: float = 2.7) -> Tensor:
    return normalizer(scale).inverse(normal(N, D_IN, seed=6))


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert expected.abs().max() > 0
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


# Folding


def test_a_fold_by_hand():
    model = SAE(1, 1)
    with torch.no_grad():
        for parameter, value in zip((model.W_enc, model.b_enc, model.W_dec, model.b_dec), (2, 0.5, 1, 3), strict=True):
            parameter.fill_(value)
    folded = fold(model, Normalizer(torch.tensor([10.0]), torch.tensor(4.0)))
    assert [folded.W_enc.item(), folded.b_enc.item(), folded.W_dec.item(), folded.b_dec.item()] == [0.5, 0.5, 4, 22]
    # x = 30 is 5 when normalised; (5 - 3) 2 + 0.5 = 4.5; 4.5 + 3 = 7.5 is 40.
    assert folded.reconstruct(torch.tensor([[30.0]])) == (torch.tensor([[4.5]]), torch.tensor([[40.0]]))


@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("kind", VARIANTS)
def test_a_folded_autoencoder_does_with_raw_activations_what_ours_does_with_normalised_ones(kind: str, scale: float):
    model, x = trained(kind), raw(scale)
    acts, x_hat = model.reconstruct(normalizer(scale)(x))
    folded = fold(model, normalizer(scale))
    found_acts, found_x_hat = folded.reconstruct(x)
    assert_same(found_acts, acts)
    assert_same(found_x_hat, normalizer(scale).inverse(x_hat))
    back = unfold(folded, normalizer(scale))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], tensor, rtol=1e-6, atol=1e-6)


def test_what_is_folded_leaves_the_autoencoder_as_it_was():
    model = trained("jumprelu")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fold(model, normalizer())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_normaliser_of_other_activations_is_refused():
    with pytest.raises(ValueError, match=r"^the autoencoder has 8 inputs; the activations have 3\.$"):
        fold(trained("relu"), Normalizer(torch.zeros(3), torch.tensor(1.0)))


def test_an_untrained_batchtopk_has_the_threshold_of_its_relu():
    assert thresholds(variants.build("batchtopk", D_IN, D_SAE, k=K, beta=0.0)).tolist() == [0.0] * D_SAE


def test_a_jumprelu_may_have_thresholds_of_zero_and_below():
    given = trained("relu")
    weights = {name: parameter.data for name, parameter in given.named_parameters()}
    model = assemble("jumprelu", weights, threshold=torch.tensor([0.0, -1.0, 0.5]).repeat(D_SAE // 3))
    pre_acts = given.pre_acts(raw())
    expected = pre_acts.relu() * (pre_acts > torch.tensor([0.0, 0.0, 0.5]).repeat(D_SAE // 3))
    assert_same(model.encode(raw()), expected)


# What is in the folders, as the formats' own documentation has it


class Outputs(NamedTuple):
    acts: Tensor
    x_hat: Tensor


def keep_largest(acts: Tensor, k: int) -> Tensor:
    kept = torch.zeros_like(acts)
    for row, values in enumerate(acts.tolist()):
        for latent in sorted(range(len(values)), key=lambda i: -values[i])[:k]:
            kept[row, latent] = values[latent]
    return kept


def naive_saelens(folder: Path, x: Tensor) -> Outputs:
    config = json.loads((folder / "cfg.json").read_text())
    t = load_file(folder / "sae_weights.safetensors")
    h = (x - t["b_dec"] * config["apply_b_dec_to_input"]) @ t["W_enc"] + t["b_enc"]
    acts = {
        "standard": lambda: h.relu(),
        "topk": lambda: keep_largest(h.relu(), config["k"]),
        "jumprelu": lambda: h.relu() * (h > t["threshold"]),
    }[config["architecture"]]()
    return Outputs(acts, acts @ t["W_dec"] + t["b_dec"])


def naive_dictionary_learning(folder: Path, x: Tensor) -> Outputs:
    trainer = json.loads((folder / "config.json").read_text())["trainer"]
    t = torch.load(folder / "ae.pt", weights_only=True)
    if trainer["dict_class"] == "JumpReluAutoEncoder":
        h = x @ t["W_enc"] + t["b_enc"]
        acts = (h * (h > t["threshold"])).relu()
        return Outputs(acts, acts @ t["W_dec"] + t["b_dec"])
    if trainer["dict_class"] == "AutoEncoderNew":
        acts = (x @ t["encoder.weight"].T + t["encoder.bias"]).relu()
        return Outputs(acts, acts @ t["decoder.weight"].T + t["decoder.bias"])
    acts = ((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]).relu()
    assert t["k"] == trainer["k"]
    topk = trainer["dict_class"] == "AutoEncoderTopK"
    acts = keep_largest(acts, trainer["k"]) if topk else acts * (acts > t["threshold"])
    return Outputs(acts, acts @ t["decoder.weight"].T + t["b_dec"])


def naive_sparsify(folder: Path, x: Tensor) -> Outputs:
    config = json.loads((folder / "cfg.json").read_text())
    t = load_file(folder / "sae.safetensors")
    acts = keep_largest(((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]).relu(), config["k"])
    return Outputs(acts, acts @ t["W_dec"] + t["b_dec"])


# The libraries' own loaders


def by_saelens(folder: Path, x: Tensor) -> Outputs:
    sae = pytest.importorskip("sae_lens").SAE.load_from_disk(folder)
    acts = sae.encode(x)
    torch.testing.assert_close(sae(x), sae.decode(acts))
    return Outputs(acts, sae.decode(acts))


def by_dictionary_learning(folder: Path, x: Tensor) -> Outputs:
    sae, _ = pytest.importorskip("dictionary_learning.utils").load_dictionary(str(folder), device="cpu")
    acts = sae.encode(x)
    torch.testing.assert_close(sae(x), sae.decode(acts))
    return Outputs(acts, sae.decode(acts))


def by_sparsify(folder: Path, x: Tensor) -> Outputs:
    coder = pytest.importorskip("sparsify").SparseCoder.load_from_disk(folder)
    values, latents, _ = coder.encode(x)
    acts = torch.zeros(len(x), coder.num_latents).scatter(1, latents, values)
    return Outputs(acts, coder.decode(values, latents))


READERS = {
    "saelens": (naive_saelens, by_saelens),
    "dictionary_learning": (naive_dictionary_learning, by_dictionary_learning),
    "sparsify": (naive_sparsify, by_sparsify),
}
CASES = [
    pytest.param(form, kind, reader, id=f"{kind}-{reader.__name__}", marks=pytest.mark.filterwarnings("ignore"))
    for form, kind in PAIRS
    for reader in READERS[form]
]


@torch.no_grad()
@pytest.mark.parametrize(("form", "kind", "reader"), CASES)
def test_an_exported_flat_autoencoder_has_our_outputs(
    form: str, kind: str, reader: Callable[[Path, Tensor], Outputs], tmp_path: Path
):
    model = trained(kind)
    folders.write(model, tmp_path, form, normalizer(), SITE)
    found = reader(tmp_path, raw())
    acts, x_hat = model.reconstruct(normalizer()(raw()))
    assert_same(found.acts, acts)
    assert_same(found.x_hat, normalizer().inverse(x_hat))


@torch.no_grad()
@pytest.mark.parametrize(("form", "kind", "reader"), CASES)
def test_both_exported_levels_have_our_outputs(
    form: str, kind: str, reader: Callable[[Path, Tensor], Outputs], tmp_path: Path
):
    model = hsae(kind)
    folders.write(model, tmp_path, form, normalizer(), SITE)
    expected = model(normalizer()(raw()))
    level1 = reader(tmp_path / "level1", raw())
    level2 = reader(tmp_path / "level2", level1.acts)
    assert_same(level1.acts, expected.level1.acts)
    assert_same(level1.x_hat, normalizer().inverse(expected.level1.x_hat))
    assert_same(level2.acts, expected.level2.acts)
    assert_same(level2.x_hat, expected.level2.x_hat)
    hierarchy = load_file(tmp_path / "hierarchy.safetensors")
    assert torch.equal(hierarchy["W_dec2"], model.level2.W_dec)
    assert_same(hierarchy["directions_h2"], normalizer().scale * model.directions_h2)


@torch.no_grad()
@pytest.mark.parametrize(("form", "kind"), PAIRS)
def test_what_was_exported_comes_back(form: str, kind: str, tmp_path: Path):
    flat, both, x = trained(kind), hsae(kind), normalizer()(raw())
    folders.write(flat, tmp_path / "flat", form, normalizer(), SITE)
    folders.write(both, tmp_path / "both", form, normalizer(), SITE)
    back = folders.read(tmp_path / "flat", form, normalizer())
    assert isinstance(back, SAE)
    for found, expected in zip(back(x), flat(x), strict=True):
        assert_same(found, expected)
    back = folders.read(tmp_path / "both", form, normalizer())
    assert isinstance(back, HierarchicalSAE)
    found, expected = back(x), both(x)
    assert_same(found.x_hat_from_h2, expected.x_hat_from_h2)
    for level in ("level1", "level2"):
        assert_same(getattr(found, level).acts, getattr(expected, level).acts)
        assert_same(getattr(found, level).x_hat, getattr(expected, level).x_hat)
    for level in (back.level1, back.level2):
        torch.testing.assert_close(level.W_dec.norm(dim=1), torch.ones(level.d_sae))


@pytest.mark.parametrize(
    ("form", "kind", "back"),
    [
        ("saelens", "batchtopk", "jumprelu"),
        ("saelens", "matryoshka", "jumprelu"),
        ("dictionary_learning", "threshold", "jumprelu"),
        ("dictionary_learning", "matryoshka", "batchtopk"),
        ("dictionary_learning", "batchtopk", "batchtopk"),
        ("sparsify", "relu", "relu"),
        ("sparsify", "topk", "topk"),
    ],
)
def test_kinds_come_back_as_the_format_has_them(form: str, kind: str, back: str, tmp_path: Path):
    folders.write(trained(kind), tmp_path, form, normalizer(), SITE)
    found = folders.read(tmp_path, form, normalizer())
    assert isinstance(found, SAE)
    assert found.header() == {**found.header(), "kind": back, "d_in": D_IN, "d_sae": D_SAE}
    assert found.header().get("k", K) == K


@pytest.mark.parametrize(("form", "kind"), [(form, kind) for form in EXPRESSED for kind in VARIANTS])
def test_a_kind_that_a_format_does_not_have_is_refused(form: str, kind: str, tmp_path: Path):
    if kind in EXPRESSED[form]:
        return
    message = f"`kind` must be one of {', '.join(EXPRESSED[form])} for {form}; not '{kind}'."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        folders.write(trained(kind), tmp_path, form, normalizer(), SITE)
    assert list(tmp_path.iterdir()) == []


def test_a_site_is_named_by_the_model_that_activations_come_from(store: Store):
    ours = ModelConfig(Source.train, None, None, False, 6)
    theirs = ModelConfig(Source.hf, "org/a-model", None, False, 6)
    assert Site.of(store, ours) == ("hsae-char-transformer", "blocks.1.hook_resid_post", 1, 6, False)
    assert Site.of(store, theirs) == ("org/a-model", "blocks.1.hook_resid_post", 1, 6, True)


def test_the_first_token_of_a_pretrained_model_is_left_out(tmp_path: Path):
    folders.write(trained("topk"), tmp_path, "saelens", normalizer(), SITE._replace(prepend_bos=True))
    metadata = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    assert metadata["prepend_bos"] is True
    assert metadata["seqpos_slice"] == [1, None]


def test_the_config_says_where_the_input_is_read(tmp_path: Path):
    folders.write(hsae("jumprelu"), tmp_path, "saelens", normalizer(), SITE)
    level1, level2 = (
        json.loads((tmp_path / name / "cfg.json").read_text())["metadata"] for name in ("level1", "level2")
    )
    assert level1["hook_name"] == "blocks.1.hook_resid_post"
    assert level2["hook_name"] == "blocks.1.hook_resid_post.hook_sae_acts_post"
    assert level1["hsae_decoder_norm"] == pytest.approx(2.7)
    assert level2["hsae_decoder_norm"] == pytest.approx(1)
    for metadata in (level1, level2):
        assert (metadata["model_name"], metadata["context_size"], metadata["hook_layer"]) == ("a-model", 32, 1)
        assert (metadata["prepend_bos"], metadata["hsae_kind"], metadata["hsae_version"]) == (
            False,
            "jumprelu",
            "0.1.0",
        )


# Folders that the libraries wrote


def perturbed(module: torch.nn.Module) -> None:
    for seed, parameter in enumerate(module.parameters()):
        parameter.data += 0.3 * normal(*parameter.shape, seed=20 + seed)


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize(
    ("name", "settings"),
    [("Standard", {}), ("TopK", {"k": K}), ("TopK", {"k": K, "rescale_acts_by_decoder_norm": True}), ("JumpReLU", {})],
)
def test_what_saelens_saved_is_read(name: str, settings: dict[str, object], subtracts: bool, tmp_path: Path):
    library = pytest.importorskip("sae_lens")
    config = getattr(library, f"{name}SAEConfig")(d_in=D_IN, d_sae=D_SAE, apply_b_dec_to_input=subtracts, **settings)
    theirs = getattr(library, f"{name}SAE")(config)
    perturbed(theirs)
    theirs.save_model(tmp_path)
    ours = folders.read(tmp_path, "saelens", normalizer())
    assert isinstance(ours, SAE)
    acts, x_hat = ours.reconstruct(normalizer()(raw()))
    assert_same(acts, theirs.encode(raw()))
    assert_same(normalizer().inverse(x_hat), theirs(raw()))


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_an_autoencoder_of_dictionary_learning_is_read(tmp_path: Path):
    library = pytest.importorskip("dictionary_learning.dictionary")
    theirs = library.AutoEncoder(D_IN, D_SAE)
    perturbed(theirs)
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder"}}))
    ours = folders.read(tmp_path, "dictionary_learning", normalizer())
    assert isinstance(ours, SAE)
    acts, x_hat = ours.reconstruct(normalizer()(raw()))
    assert_same(acts, theirs.encode(raw()))
    assert_same(normalizer().inverse(x_hat), theirs(raw()))


# Folders that cannot be read


def spoil(path: Path, **values: object) -> None:
    content = json.loads(path.read_text())
    content.get("trainer", content).update(values)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("form", "values", "message"),
    [
        ("saelens", {"architecture": "gated"}, "`architecture` must be one of standard, topk, jumprelu; not 'gated'."),
        ("saelens", {"normalize_activations": "layer_norm"}, "`normalize_activations` must be none; not 'layer_norm'."),
        ("saelens", {"k": D_SAE + 1}, f"`k` must be in 1..d_sae (={D_SAE}); not {D_SAE + 1}."),
        (
            "dictionary_learning",
            {"dict_class": "GatedAutoEncoder"},
            "`dict_class` must be one of AutoEncoder, AutoEncoderNew, AutoEncoderTopK, BatchTopKSAE, "
            "JumpReluAutoEncoder; not 'GatedAutoEncoder'.",
        ),
        ("sparsify", {"activation": "groupmax"}, "`activation` must be topk; not 'groupmax'."),
        ("sparsify", {"transcode": True}, "`transcode` must be False; not True."),
        ("sparsify", {"skip_connection": True}, "`skip_connection` must be False; not True."),
        ("sparsify", {"k": None}, "TypeError: 'NoneType' object cannot be interpreted as an integer"),
        ("dictionary_learning", {"k": 2.0}, "TypeError: 'float' object cannot be interpreted as an integer"),
    ],
)
def test_a_config_of_something_else_is_one_line(form: str, values: dict[str, object], message: str, tmp_path: Path):
    folders.write(trained("topk"), tmp_path, form, normalizer(), SITE)
    spoil(tmp_path / ("config.json" if form == "dictionary_learning" else "cfg.json"), **values)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} cannot be read as {form}: {message}")) as raised:
        folders.read(tmp_path, form, normalizer())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("form", EXPRESSED)
def test_a_file_that_is_missing_damaged_or_cut_off_is_one_line(form: str, tmp_path: Path):
    folders.write(trained("topk"), tmp_path, form, normalizer(), SITE)
    for path in set(tmp_path.iterdir()) - {tmp_path / "hsae.json"}:
        content = path.read_bytes()
        for spoilt in (b"", content[: len(content) // 2], b"[]", b"\xff" * 100):
            path.write_bytes(spoilt)
            with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))} cannot be read as {form}: ") as raised:
                folders.read(tmp_path, form, normalizer())
            assert "\n" not in str(raised.value)
        path.unlink()
        with pytest.raises(OSError, match=path.name):
            folders.read(tmp_path, form, normalizer())
        path.write_bytes(content)


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path):
    folders.write(trained("topk"), tmp_path, "dictionary_learning", normalizer(), SITE)

    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "was run",)

    torch.save({"encoder.weight": Malicious()}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match="cannot be read as dictionary_learning: Weights only load failed"):
        folders.read(tmp_path, "dictionary_learning", normalizer())
    assert not (tmp_path / "was run").exists()


def test_tensors_of_other_shapes_are_one_line(tmp_path: Path):
    folders.write(trained("topk"), tmp_path, "saelens", normalizer(), SITE)
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    for wrong in (torch.zeros(1), torch.zeros(D_IN, D_SAE)):
        save_file(tensors | {"b_enc": wrong}, tmp_path / "sae_weights.safetensors")
        with pytest.raises(ValueError, match=r"cannot be read as saelens: RuntimeError: .*size mismatch for b_enc"):
            folders.read(tmp_path, "saelens", normalizer())


def test_levels_that_are_no_hsae_are_one_line(tmp_path: Path):
    saelens.write(trained("topk"), tmp_path / "level1", SITE)
    saelens.write(trained("topk"), tmp_path / "level2", SITE)
    message = f"{tmp_path}: level 2 has {D_IN} inputs; level 1 has {D_SAE} latents."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        folders.read(tmp_path, "saelens", normalizer())
    saelens.write(trained("topk", D_SAE, D_SAE2), tmp_path / "level2", SITE)
    with pytest.raises(ValueError, match="level 2's decoder has negative entries"):
        folders.read(tmp_path, "saelens", normalizer())


# The commands


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two models, activations, parameters and a dvc.lock."""
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    both, flat = hsae("jumprelu"), trained("topk")
    write_tensors(Path("models/phase3.safetensors"), both.state_dict(), both.header())
    write_tensors(Path("models/flat_baseline/topk.safetensors"), flat.state_dict(), flat.header())
    places = {name: torch.zeros(N, dtype=torch.int) for name in ("offsets", "positions", "documents")}
    store = {"acts": raw(), **places, "kept": torch.ones(N, dtype=torch.bool), **vars(normalizer())}
    write_tensors(Path("data/activations/val.safetensors"), store, {"layer": 2, "context": 16})
    write_evaluation(Path("models/phase3.safetensors"), "evaluate_hsae", "hsae.json", {"level1": {"l0": 24.6}})
    return tmp_path


def write_evaluation(model: Path, stage: str, name: str, metrics: object) -> None:
    """Metrics, and a dvc.lock that says that they are of this model."""
    path = Path("metrics", name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(metrics))
    deps, outs = (f"    - path: {file}\n      md5: {md5(file.read_bytes()).hexdigest()}\n" for file in (model, path))
    Path("dvc.lock").write_text(f"schema: '2.0'\nstages:\n  {stage}:\n    deps:\n{deps}    outs:\n{outs}")


def run(command: str, *arguments: str) -> None:
    cli.main([command, "--format", *arguments])


def front_matter(card: str) -> object:
    return OmegaConf.to_container(OmegaConf.create(card.split("---\n")[1]))


def test_the_commands_formats_are_the_librarys():
    assert tuple(folders.FORMATS) == cli.FORMATS
    assert all(isinstance(form, ModuleType) for form in folders.FORMATS.values())


@torch.no_grad()
def test_an_hsae_goes_out_and_comes_back(project: Path, capsys: pytest.CaptureFixture[str]):
    run("export", "saelens", "--output", "out/mine")
    run("import", "saelens", "out/mine", "--output", "models/back.safetensors")
    assert capsys.readouterr().out == "wrote out/mine\nwrote models/back.safetensors\n"
    back, ours = folders.load(Path("models/back.safetensors")), hsae("jumprelu")
    x = normalizer()(raw())
    assert_same(back(x).x_hat_from_h2, ours(x).x_hat_from_h2)
    assert {path.name for path in Path("out/mine").iterdir()} == {
        "README.md", "hierarchy.safetensors", "level1", "level2", "params.yaml"
    }  # fmt: skip
    assert (project / "out/mine/params.yaml").read_text() == (project / "params.yaml").read_text()
    assert (
        json.loads(Path("out/mine/level1/cfg.json").read_text())["metadata"]["hook_name"] == "blocks.2.hook_resid_post"
    )


def test_the_card_has_the_metrics_and_how_to_load_it(project: Path):
    run("export", "saelens", "--output", "out/mine")
    card = Path("out/mine/README.md").read_text()
    assert front_matter(card) == {
        "library_name": "saelens",
        "tags": ["sparse-autoencoder", "mechanistic-interpretability", "hsae"],
        "model-index": [
            {
                "name": "mine",
                "results": [
                    {
                        "task": {"type": "feature-extraction"},
                        "dataset": {"name": "shakespeare", "type": "shakespeare", "split": "test"},
                        "metrics": [{"type": "level1.l0", "value": 24.6}],
                    }
                ],
            }
        ],
    }
    assert "| level1.l0 | 24.6 |" in card
    loading = "level1 = SAE.load_from_disk('mine/level1')\nlevel2 = SAE.load_from_disk('mine/level2')"
    assert f"```python\nfrom sae_lens import SAE\n\n{loading}\n```" in card
    assert f"dvc.lock, sha256 {sha256((project / 'dvc.lock').read_bytes()).hexdigest()}" in card


def test_the_card_of_a_flat_autoencoder_has_its_own_metrics(project: Path):
    model = Path("models/flat_baseline/topk.safetensors")
    write_evaluation(model, "evaluate", "evaluate.json", {"flat": {"topk": {"fvu": 0.25}, "relu": {"fvu": 0.5}}})
    run("export", "sparsify", "--model", str(model), "--output", "mine")
    card = (project / "mine/README.md").read_text()
    assert "| fvu | 0.25 |" in card
    assert "0.5" not in card
    assert "sae = SparseCoder.load_from_disk('mine')" in card


@pytest.mark.parametrize("stale", ["models/phase3.safetensors", "metrics/hsae.json"])
def test_metrics_of_another_model_are_not_in_the_card(stale: str, project: Path, capsys: pytest.CaptureFixture[str]):
    other = hsae("topk")
    if stale.startswith("models"):
        write_tensors(project / stale, other.state_dict(), other.header())
    else:
        (project / stale).write_text("{}")
    run("export", "saelens", "--output", "mine")
    assert capsys.readouterr().out == "wrote mine; its card has no metrics: dvc.lock has none of this very file\n"
    card = (project / "mine/README.md").read_text()
    assert "None: the pipeline has not measured this very file." in card
    assert "24.6" not in card


def test_what_exists_is_not_written_over(project: Path, capsys: pytest.CaptureFixture[str]):
    (project / "mine").mkdir()
    run("export", "saelens", "--output", "mine")  # into an empty folder
    capsys.readouterr()
    message = error(capsys, "export", "--format", "saelens", "--output", "mine")
    assert message == "error: mine exists already: remove it, or choose another folder."
    message = error(capsys, "import", "--format", "saelens", "mine", "--output", "models/phase3.safetensors")
    assert message == "error: models/phase3.safetensors exists already: remove it, or choose another file."


@pytest.mark.parametrize("missing", ["models/phase3.safetensors", "data/activations/val.safetensors"])
def test_a_missing_input_is_one_line(missing: str, project: Path, capsys: pytest.CaptureFixture[str]):
    (project / missing).unlink()
    message = error(capsys, "export", "--format", "saelens", "--output", "mine")
    assert message == f"error: {missing} is missing: run `dvc repro` (or `dvc checkout`)."


@pytest.mark.parametrize("missing", ["params.yaml", "dvc.lock"])
def test_outside_of_the_projects_root_nothing_is_written(
    missing: str, project: Path, capsys: pytest.CaptureFixture[str]
):
    (project / missing).unlink()
    before = sorted(project.iterdir())
    message = error(capsys, "export", "--format", "saelens", "--output", "mine")
    assert message.startswith(f"error: {missing} is missing; run from the project's root")
    assert sorted(project.iterdir()) == before


@pytest.mark.usefixtures("project")
def test_a_file_that_is_no_autoencoder_is_one_line(capsys: pytest.CaptureFixture[str]):
    message = error(
        capsys, "export", "--format", "saelens", "--output", "mine", "--model", "data/activations/val.safetensors"
    )
    assert "the autoencoder is not what its stage writes" in message


def test_an_export_that_fails_leaves_nothing(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def fail(path: Path, _: object) -> None:
        raise OSError(f"cannot write {path.name}: no space left")

    monkeypatch.setattr(saelens, "write_json", fail)
    before = sorted(project.rglob("*"))
    assert error(capsys, "export", "--format", "saelens", "--output", "mine") == (
        "error: cannot write cfg.json: no space left"
    )
    assert sorted(project.rglob("*")) == before
    message = error(capsys, "export", "--format", "sparsify", "--output", "mine")
    assert message == "error: `kind` must be one of relu, topk for sparsify; not 'jumprelu'."
    assert sorted(project.rglob("*")) == before


def test_imported_thresholds_are_those_that_were_exported(tmp_path: Path):
    model = trained("jumprelu")
    assert isinstance(model, JumpReLUSAE)
    folders.write(model, tmp_path, "saelens", normalizer(), SITE)
    back = folders.read(tmp_path, "saelens", normalizer())
    assert isinstance(back, JumpReLUSAE)
    torch.testing.assert_close(back.threshold(), model.threshold(), rtol=1e-6, atol=0)
