from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hsae import presets
from hsae.config import flatten
from hsae.corpora import CorpusName
from hsae.losses import Coefficients

ROOT = Path(__file__).resolve().parent.parent
CHOICES = sorted(
    f"{file.parent.name}={file.stem}" for file in presets.CONF.glob("*/*.yaml") if not file.stem.startswith("_")
)


@pytest.fixture(scope="module")
def params() -> dict[str, object]:
    return flatten(OmegaConf.to_container(OmegaConf.load(ROOT / "params.yaml")))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_preset_composes_to_keys_of_params_yaml_and_values_of_their_types(choice: str, params: dict[str, object]):
    values = presets.overrides([choice])
    assert bool(values) == (choice != "scale=default")
    for key, value in values.items():
        assert key in params
        assert params[key] is None or type(value) is type(params[key])


@pytest.mark.parametrize(
    ("run", "lambda_cos", "gamma_group"),
    [("run_1", 0.0, 0.0), ("run_2", 0.1, 0.05), ("run_3", 0.0, 0.05), ("run_4", 0.1, 0.0)],
)
def test_the_owners_runs_have_his_coefficients_widths_and_phases(
    run: str, lambda_cos: float, gamma_group: float, params: dict[str, object]
):
    values = presets.overrides([f"run={run}"])
    expected = {
        "beta1": 0.01, "beta2": 0.1, "lambda_cos": lambda_cos, "gamma_group": gamma_group,
        "expansion1": 0.75, "expansion2": 0.5, "phase1.epochs": 20, "phase2.epochs": 20, "phase3.epochs": 10,
        "phase1.lr": 1e-3, "phase2.lr": 1e-3, "phase3.lr": 5e-4,
    }  # fmt: skip
    assert expected.items() <= values.items()
    Coefficients(**{key: values.get(key, params[key]) for key in Coefficients.__annotations__})  # pyright: ignore


def test_run_5_is_run_1_for_twice_as_long():
    first, fifth = presets.overrides(["run=run_1"]), presets.overrides(["run=run_5"])
    longer = {f"phase{i}.epochs": 2 * first[f"phase{i}.epochs"] for i in (1, 2, 3)}  # pyright: ignore
    assert fifth == {**first, **longer}


def test_presets_of_several_groups_are_joined():
    joined = presets.overrides(["run=run_3", "scale=small", "data=kjv"])
    parts = [presets.overrides([choice]) for choice in ("run=run_3", "scale=small", "data=kjv")]
    assert joined == {**parts[0], **parts[1], **parts[2]}
    assert joined["prepare_data.corpus"] == "kjv"


def test_nothing_chosen_changes_nothing():
    assert presets.overrides([]) == {}


def test_the_data_presets_name_corpora_that_exist():
    names = {choice.removeprefix("data=") for choice in CHOICES if choice.startswith("data=")}
    assert names <= {corpus.value for corpus in CorpusName}
    for name in names:
        assert presets.overrides([f"data={name}"])["prepare_data.corpus"] == name


@pytest.mark.parametrize("choice", ["run=run_9", "size=small", "run", "run=_original", "scale="])
def test_an_unknown_preset_ends_in_one_line_with_those_there_are(choice: str):
    with pytest.raises(SystemExit) as end:
        presets.main([choice])
    message = str(end.value)
    assert message.startswith(f"error: presets: no preset `{choice}`; allowed: ")
    assert "run=run_1|run_2|run_3|run_4" in message
    assert "\n" not in message


def test_the_flags_are_printed_on_one_line_as_dvc_takes_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    presets.main(["data=text8"])
    assert capsys.readouterr().out == "-S prepare_data.corpus=text8\n"
    monkeypatch.setattr(presets, "overrides", lambda _: {"a.b": 0.5, "c": None, "d": [1, 2], "e": True})
    presets.main([])
    assert capsys.readouterr().out == "-S a.b=0.5 -S c=null -S d=[1,2] -S e=true\n"
