import json
import signal
import socket
import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest

from hsae import cli
from hsae.study import responses
from tests.study import LINES, Quick, process, study_at, write


def error(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which a command fails."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    message = str(ended.value.code)
    assert message.startswith("error: ")
    assert "\n" not in message
    assert capsys.readouterr().out == ""
    return message


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    """A study with a database, as arguments."""
    path = write(tmp_path)
    study_at(path, tmp_path / "study.sqlite")
    return "--trials", str(path), "--database", str(tmp_path / "study.sqlite")


# Serve and export


def test_what_was_answered_is_exported_while_the_server_runs(tmp_path: Path, files: tuple[str, ...]):
    output = tmp_path / "out" / "responses.jsonl"
    with process(Path(files[1]), Path(files[3])) as (_, url):
        cli.main(["study", "export", *files, "--output", str(output)])
        assert output.read_text() == ""
        Quick(url).rate()
        cli.main(["study", "export", *files, "--output", str(output)])
    found = responses.loads(output.read_text(encoding="utf-8"))
    assert found == study_at(Path(files[1]), Path(files[3]))
    assert [response.position for response in found.responses] == list(range(1, 51))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_stopped_ends_well_and_its_port_can_be_had_again(tmp_path: Path, number: signal.Signals):
    command = [sys.executable, "-m", "hsae.cli", "study", "serve", "--port", "0", "--trials", str(write(tmp_path))]
    command += ["--database", str(tmp_path / "new" / "study.sqlite")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout
        assert "serving" in server.stdout.readline()
        server.send_signal(number)
        assert server.communicate(timeout=60) == ("", "")
        assert server.returncode == 0
    # SQLite's journal is merged into the database by an orderly end.
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"study.sqlite", "study.secret"}


def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str], files: tuple[str, ...]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = error(capsys, "study", "serve", *files, "--port", port)
    assert message.startswith(f"error: `--host 127.0.0.1 --port {port}` cannot be had: ")
    assert "in use" in message


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (("--host", "no.such.host.invalid"), "`--host no.such.host.invalid --port 8000` cannot be had: "),
        (("--port", "65536"), "`--port` must be 0 to 65535; not 65536."),
        (("--port", "-1"), "`--port` must be 0 to 65535; not -1."),
    ],
)
def test_an_address_that_cannot_be_is_one_line(
    capsys: pytest.CaptureFixture[str], files: tuple[str, ...], where: tuple[str, str], message: str
):
    assert message in error(capsys, "study", "serve", *files, *where)


def test_an_address_that_others_reach_is_warned_of(
    capsys: pytest.CaptureFixture[str], files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("uvicorn.Server.run", lambda *_: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    cli.main(["study", "serve", *files, "--port", "0", "--host", "0.0.0.0"])
    assert "warning: others can reach this" in capsys.readouterr().err
    cli.main(["study", "serve", *files, "--port", "0"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["serve", "export"])
def test_trials_that_are_missing_or_damaged_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
):
    database, path = tmp_path / "study.sqlite", tmp_path / "trials.json"
    database.touch()
    arguments = "study", command, "--trials", path, "--database", database
    assert f"{path} is missing: run `dvc repro build_study`" in error(capsys, *arguments)
    for content in (b"", b"\xff\xfe", b"[]", b'{"format": "hsae-trials-1"}', b"{"):
        path.write_bytes(content)
        assert "`dvc repro build_study`" in error(capsys, *arguments)


def test_a_database_that_is_missing_or_of_other_trials_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, files: tuple[str, ...]
):
    elsewhere = tmp_path / "none.sqlite"
    message = error(capsys, "study", "export", *files[:2], "--database", elsewhere)
    assert f"{elsewhere} is missing: run `hsae study serve`" in message
    assert not elsewhere.exists()
    content = json.loads(Path(files[1]).read_text())
    Path(files[1]).write_text(json.dumps({**content, "corpus": LINES[0]}))
    for command in ("export", "serve"):
        assert "holds answers to other trials" in error(capsys, "study", command, *files)


def test_an_output_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str], files: tuple[str, ...]):
    error(capsys, "study", "export", *files, "--output", Path(files[1]) / "below-a-file")


def test_who_asks_to_be_forgotten_is(capsys: pytest.CaptureFixture[str], files: tuple[str, ...]):
    assert "`code` must be that of a rater; not '0000000000'" in error(capsys, "study", "forget", *files, "ooooo-ooooo")
    with process(Path(files[1]), Path(files[3])) as (_, url):
        rater = Quick(url)
        rater.rate()
        code = rater.request("GET", "/done").split('<b class="code">')[1][:11]
        (alias,) = {response.rater for response in study_at(Path(files[1]), Path(files[3])).responses}
        cli.main(["study", "forget", *files, code.lower()])
        assert rater.request("GET", "/trial") == ""  # leads to the start
        rater.close()
    assert alias in capsys.readouterr().out
    assert study_at(Path(files[1]), Path(files[3])).responses == ()


# The others


def test_the_explorer_is_opened_in_a_browser(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    page, opened = tmp_path / "a page.html", []
    assert error(capsys, "explore", "--page", page) == f"error: {page} is missing: run `dvc repro`."
    page.touch()
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    cli.main(["explore", "--page", str(page)])
    assert opened == [page.as_uri()]
    monkeypatch.setattr(webbrowser, "open", lambda _: False)
    assert "no browser to open" in error(capsys, "explore", "--page", page)


def test_plan_prints_the_report(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    planning = pytest.importorskip("hsae.study.planning")
    monkeypatch.setattr(planning, "report", lambda *asked: f"report of {asked}")
    cli.main(["study", "plan", "--p1", ".7", "--p2", ".8", "--per-feature", "3", "--icc", ".1"])
    assert capsys.readouterr().out == "report of (0.7, 0.8, 0.8, 0.05, 3, 0.1)\n"


@pytest.mark.parametrize(
    "arguments", [[], ["study"], ["nothing"], ["study", "serve", "--port", "x"], ["study", "plan"]]
)
def test_a_command_line_that_cannot_be_is_explained(capsys: pytest.CaptureFixture[str], arguments: list[str]):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: hsae" in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    script = "import sys, hsae.cli; hsae.cli._parser().format_help(); print({m.split('.')[0] for m in sys.modules})"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "numpy", "fastapi", "uvicorn", "omegaconf", "jinja2"):
        assert f"'{heavy}'" not in found
