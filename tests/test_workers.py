import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hsae.workers import workers


def late_if_first(part: int) -> tuple[int, int, int]:
    """So that the first result is the last to be ready."""
    time.sleep(0.5 * (part == 0))
    print("not to be seen")
    return part, os.getpid(), torch.get_num_threads()


def inverse(part: int) -> float:
    if part == 0:
        raise ValueError("`part` must not be 0")
    if part < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if part > 1:
        time.sleep(60)
    return 1 / part


def report_and_sleep(folder: str) -> None:
    Path(folder, f"{os.getpid()}.worker").touch()
    time.sleep(60)


def test_results_come_in_order_from_processes_of_one_thread(capfd: pytest.CaptureFixture[str]):
    with workers("parts", 2) as each:
        results = list(each(late_if_first, range(4)))
    assert [part for part, _, _ in results] == [0, 1, 2, 3]
    assert os.getpid() not in {pid for _, pid, _ in results}
    assert {threads for _, _, threads in results} == {1}
    shown = capfd.readouterr()
    assert shown.out.splitlines() == ["parts: 1/4 0", "parts: 2/4 1", "parts: 3/4 2", "parts: 4/4 3"]
    assert "seen" not in shown.err


def test_what_a_part_raises_ends_the_others():
    began = time.monotonic()
    with pytest.raises(ValueError, match="`part` must not be 0"), workers("parts", 2) as each:
        list(each(inverse, [0, 2]))
    assert time.monotonic() - began < 50, "a part that takes a minute was not waited for"
    assert not multiprocessing.active_children()


def test_a_lost_worker_is_said_in_one_line():
    with pytest.raises(ChildProcessError, match="a worker was lost"), workers("parts", 1) as each:
        list(each(inverse, [-1]))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path: Path, number: signal.Signals):
    script = tmp_path / "parent.py"
    script.write_text(
        "from hsae import run\nfrom hsae.workers import workers\nfrom tests.test_workers import report_and_sleep\n"
        "if __name__ == '__main__':\n    with run.stage('synthetic'), workers('parts', 2) as each:\n"
        f"        list(each(report_and_sleep, ['{tmp_path}'] * 2))\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    parent = subprocess.Popen([sys.executable, script], env=env, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while len(found := [*tmp_path.glob("*.worker")]) < 2:
        assert time.monotonic() < until
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(number)
    _, complaint = parent.communicate(timeout=30)
    if number == signal.SIGTERM:
        assert (parent.returncode, complaint) == (1, "error: synthetic: stopped before its end\n")
    until = time.monotonic() + 10
    while any(is_running(int(file.stem)) for file in found):
        assert time.monotonic() < until, "a worker goes on"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
