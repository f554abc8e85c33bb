"""How the processes that train one model together start and end; hsae/parallel.py has what they do in between.

On one machine a stage with `processes` above 1 starts itself again so many times, as ranks, and waits for them. On
several machines torchrun does, in the same way: both name the ranks by RANK and WORLD_SIZE, and say by MASTER_ADDR and
MASTER_PORT where they find each other. Only rank 0 takes the lock, and writes.
"""

import atexit
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, NoReturn

import torch
from torch import distributed as dist

from hsae.config import check
from hsae.run import Stage

SILENCE = timedelta(minutes=10)  # after which a process that does not answer is taken for lost
PATIENCE = 5.0  # seconds that the others have to end by themselves, once one has failed
BEREFT = os.EX_TEMPFAIL  # exit status of one that ended because it was told to, or because another is gone
SUPERVISOR = "HSAE_SUPERVISOR"  # who started a rank, if it was not torchrun


@dataclass
class Processes:
    """Top-level key `processes`: how many train one autoencoder together, each with so many `threads`, or a GPU.

    Results repeat to the bit only for the same number of them.
    """

    processes: int

    def __post_init__(self) -> None:
        check("processes", self.processes, "above 0", self.processes > 0)


def start(stage: Stage, device: torch.device) -> None:
    """Make this process ready to be a rank; or, if ranks are still to be started, start them and end as they do.

    To be called once parameters are checked, so that each complaint comes once, and before anything large is read.
    Raises ValueError if `processes` is not the number that torchrun started, or more than there are GPUs; and
    ChildProcessError if a rank is lost.
    """
    n, world = stage.params(Processes).processes, _world()
    if world > 1:
        check("processes", n, f"{world}, as many as were started", n == world)
        _be_a_rank(device)
    elif n > 1:
        if device.type == "cuda":
            there = torch.cuda.device_count()
            check("processes", n, f"at most {there}, the GPUs of this machine", n <= there)
        sys.exit(_supervise(n))


@contextmanager
def together(stage: Stage, device: torch.device) -> Iterator[Path]:
    """The stage's folder of checkpoints, within a block in which its ranks, if it has more than one, train together."""
    if _world() == 1:
        with stage.checkpoints() as folder:
            yield folder
        return
    with stage.checkpoints() if leads() else nullcontext(stage.folder()) as folder:
        try:
            _join(device)
            yield folder
        except ConnectionError:
            if _is_supervised():  # by one that says what happened
                _end_bereft()
            raise
        dist.destroy_process_group()


def leads() -> bool:
    """Whether this process is the one that writes."""
    return os.environ.get("RANK", "0") == "0" or _world() == 1


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _is_supervised() -> bool:
    return os.environ.get(SUPERVISOR) == str(os.getppid())


def _be_a_rank(device: torch.device) -> None:
    """Be silent unless this is rank 0, end silently if the supervisor wishes so, and take the GPU of one's own."""
    if not leads():
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (until the end)
    if _is_supervised():
        signal.signal(signal.SIGTERM, lambda *_: _end_bereft())
    if device.type == "cuda":
        own, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        check("processes", own + 1, f"at most {there} on this machine, which has no more GPUs", own < there)
        torch.cuda.set_device(own)


def _end_bereft() -> NoReturn:
    """Exit, but past the destructors of a group whose others are gone: its threads may abort the process there."""

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(BEREFT)

    atexit.register(leave)
    sys.exit(BEREFT)


def _join(device: torch.device) -> None:
    """Raises ConnectionError if the others are not there."""
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=SILENCE)
    except (RuntimeError, ValueError) as error:
        raise ConnectionError(f"the processes did not find each other ({error}).") from error


def _supervise(n: int) -> int:
    """Run this process's own command as `n` ranks, and return its exit status. Ends all if one fails, or is lost."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # pyright: ignore
    with ExitStack() as stack:
        # What rank 0 complains of is seen at once; the others, if they do too, mostly say the same.
        complaints = [None, *(stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(1, n))]
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            for rank, complaint in enumerate(complaints):
                ranks.append(_launch(rank, n, store.port, complaint))
            statuses = _wait(ranks)
        finally:
            _end(ranks)
        return _verdict(statuses, complaints)


def _launch(rank: int, n: int, port: int, complaints: IO[str] | None) -> subprocess.Popen[bytes]:
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    quiet = {"GLOO_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "ERROR", SUPERVISOR: os.getpid()}
    env = os.environ | {name: str(value) for name, value in (own | meeting | quiet).items()}
    # In a group of its own: Ctrl-C in a terminal reaches the supervisor alone, who ends the ranks.
    return subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=env, stderr=complaints, process_group=0)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> list[int | None]:
    """The exit statuses, once all have ended, or a while after one has failed: its loss ends the others as well."""
    until = math.inf
    while None in (statuses := [rank.poll() for rank in ranks]) and time.monotonic() < until:
        if any(statuses):
            until = min(until, time.monotonic() + PATIENCE)
        time.sleep(0.05)
    return statuses


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.terminate()
    for rank in ranks:
        try:
            rank.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()


def _verdict(statuses: list[int | None], complaints: list[IO[str] | None]) -> int:
    """The exit status of the whole, after what the first of those that failed by themselves has to say.

    Raises ChildProcessError if a rank was lost.
    """
    n, again = len(statuses), "run it again, and it goes on from its last checkpoint"
    for rank, status in enumerate(statuses):
        if status is not None and status < 0:
            how = signal.Signals(-status).name
            raise ChildProcessError(f"process {rank} of 0 to {n - 1} was lost ({how}): {again}.")
    for status, complaint in zip(statuses, complaints, strict=True):
        if status not in (None, 0, BEREFT):
            if complaint is not None:
                complaint.seek(0)
                sys.stderr.write(complaint.read())
            return status
    if BEREFT in statuses:
        raise ChildProcessError(f"its {n} processes lost contact with each other: {again}.")
    return 0
