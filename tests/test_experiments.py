import subprocess
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from hsae import experiments
from hsae.experiments import finished, git, read_recipe, run

PIPELINE = {
    "vars": [{"flat": ["topk"]}],
    "stages": {
        "first": {
            "cmd": "first",
            "deps": ["hsae/a.py"],
            "params": ["seed"],
            "outs": ["mid"],
            "plots": [{"a.csv": {"cache": False}}],
        },
        "second": {"cmd": "second", "deps": ["hsae/b.py", "mid"], "params": ["phase.lr", "x"], "metrics": ["out.json"]},
        "flat": {
            "foreach": "${flat}",
            "do": {"cmd": "flat ${item}", "deps": ["hsae/c.py"], "params": ["width${item}"], "outs": ["m/${item}.pt"]},
        },
        "all": {"cmd": "all", "deps": ["out.json", "m/topk.pt"], "params": ["seed"], "outs": [{"end": None}]},
        "draw": {"cmd": "draw", "deps": ["a.csv"]},
    },
}
PARAMS = {"seed": 0, "phase": {"lr": 1.0, "epochs": 2}, "x": {"y": 1e-05}, "width1": 8}


class FakeQueue:
    """DVC's queue in a git repository: look by look, a worker takes the next task, and finishes it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.tasks: dict[str, str] = {}
        self.failing: set[str] = set()
        self.commands: list[str] = []
        self.workers = 0
        self.quits_after_each_task = False
        self.can_start = True
        monkeypatch.setattr(experiments, "dvc", self.dvc)
        monkeypatch.setattr(experiments, "start_workers", self.start)
        monkeypatch.setattr(experiments, "POLL_SECONDS", 0.0)

    def start(self, jobs: int) -> None:
        self.commands.append(f"start {jobs}")
        self.workers = jobs * self.can_start

    def dvc(self, *arguments: str) -> str:
        match arguments:
            case ("queue", "status"):
                rows = [f"0123456  {name}  09:41 PM  {status} " for name, status in self.tasks.items()]
                self.work()
                return "\n".join([*rows, "", f"Worker status: 0 active, {self.workers} idle", ""])
            case ("exp", "run", "--queue", "--name", name, *_, "second"):
                assert name not in self.tasks, "DVC refuses this"
                self.tasks[name] = "Queued"
            case ("queue", "remove", *names):
                for name in names:
                    assert self.tasks.pop(name) != "Running"
            case ("queue", "kill", *names):
                self.tasks |= dict.fromkeys(names, "Failed")
        self.commands.append(" ".join(arguments))
        return ""

    def work(self) -> None:
        for name, status in self.tasks.items():
            if status == "Running" and self.workers:
                self.tasks[name] = "Failed" if name in self.failing else "Success"
                if name not in self.failing:
                    git("update-ref", f"refs/exps/{head()}/{name}", "HEAD")
                self.workers -= self.quits_after_each_task
                return
            if status == "Queued" and self.workers:
                self.tasks[name] = "Running"
                return

    def queued(self) -> list[str]:
        """Names that were queued, in their order, since the last call."""
        names = [command.split()[4] for command in self.commands if "--queue" in command]
        self.commands.clear()
        return names


def head() -> str:
    commit = git("rev-parse", "HEAD").strip()
    return f"{commit[:2]}/{commit[2:]}"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with a pipeline, and the working directory."""
    monkeypatch.chdir(tmp_path)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "test")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "test@example.org")
    Path("hsae").mkdir()
    for name in ("a", "b", "c"):
        Path(f"hsae/{name}.py").write_text(name)
    OmegaConf.save(PIPELINE, "dvc.yaml")
    OmegaConf.save(PARAMS, "params.yaml")
    monkeypatch.setattr(experiments, "read_params", lambda: OmegaConf.to_container(OmegaConf.load("params.yaml")))
    git("init", "--quiet")
    commit_all()
    return tmp_path


@pytest.fixture
def queue(project: Path, monkeypatch: pytest.MonkeyPatch) -> FakeQueue:
    assert project.is_dir()
    return FakeQueue(monkeypatch)


def commit_all() -> None:
    git("add", "--all")
    git("commit", "--quiet", "--message", "state")


def name_of(target: str, **overrides: Any) -> str:
    return read_recipe(target).name("sweep-one-0", overrides)


@pytest.mark.usefixtures("project")
def test_a_name_is_its_label_and_a_hash_that_repeats():
    name = name_of("second")
    assert name.startswith("sweep-one-0-")
    assert len(name) == len("sweep-one-0-") + 8
    assert name == name_of("second") == name_of("second", seed=0)


@pytest.mark.usefixtures("project")
def test_a_recipe_has_the_stages_and_files_from_its_target_upward():
    assert {*read_recipe("second").stages} == {"first", "second"}
    assert {*read_recipe("second").files} == {"hsae/a.py", "hsae/b.py"}
    assert {*read_recipe("draw").stages} == {"first", "draw"}
    assert {*read_recipe("all").stages} == {"first", "second", "flat", "all", "vars"}
    assert {*read_recipe("all").files} == {"hsae/a.py", "hsae/b.py", "hsae/c.py"}


@pytest.mark.usefixtures("project")
def test_a_template_among_the_dependencies_takes_every_stage_that_it_may_mean():
    pipeline: Any = OmegaConf.create(PIPELINE)
    pipeline.stages.second.outs = ["level1.json"]
    pipeline.stages.flat.do.deps = ["level${item}.json"]
    OmegaConf.save(pipeline, "dvc.yaml")
    assert {*read_recipe("flat").stages} == {"first", "second", "flat", "vars"}
    assert "level*.json" not in read_recipe("flat").files


@pytest.mark.parametrize(
    ("target", "overrides", "counts"),
    [
        ("second", {"seed": 1}, True),  # of the stage above
        ("second", {"phase.lr": 2.0}, True),
        ("second", {"x.y": 0.0}, True),  # of a section that is used as a whole
        ("second", {"x.z": 0.0}, True),
        ("second", {"phase.epochs": 3}, False),
        ("second", {"width1": 16}, False),
        ("all", {"width1": 16}, True),  # width${item}
        ("first", {"x.y": 0.0}, False),  # of a stage below
    ],
)
@pytest.mark.usefixtures("project")
def test_a_name_changes_with_the_parameters_that_its_stages_use(target: str, overrides: dict[str, Any], counts: bool):
    before = name_of(target)
    recipe = read_recipe(target)
    assert (recipe.name("sweep-one-0", overrides) != before) == counts
    OmegaConf.save(OmegaConf.from_dotlist([f"{k}={v}" for k, v in overrides.items()]), "changed.yaml")
    OmegaConf.save(OmegaConf.merge(PARAMS, OmegaConf.load("changed.yaml")), "params.yaml")
    assert (name_of(target) != before) == counts, "the same in params.yaml itself"


@pytest.mark.parametrize(
    ("file", "changed"),
    [("hsae/a.py", {"first", "second", "all"}), ("hsae/b.py", {"second", "all"}), ("hsae/c.py", {"all"})],
)
@pytest.mark.usefixtures("project")
def test_a_name_changes_with_the_code_of_its_stages_and_comes_back_with_it(file: str, changed: set[str]):
    targets = ("first", "second", "all")
    before = {target: name_of(target) for target in targets}
    Path(file).write_text("edited")
    Path("README.md").write_text("words")
    assert {target for target in targets if name_of(target) != before[target]} == changed
    commit_all()
    assert {target for target in targets if name_of(target) != before[target]} == changed
    git("checkout", "--quiet", "HEAD~1", "--", file)
    assert {target: name_of(target) for target in targets} == before


@pytest.mark.parametrize(
    ("key", "value", "changed"),
    [
        ("stages.first.cmd", "another", {"first", "second", "all"}),
        ("stages.flat.do.cmd", "another", {"all"}),
        ("vars", [{"flat": ["topk", "gated"]}], {"all"}),
        ("plots", ["a.csv"], set()),
    ],
)
@pytest.mark.usefixtures("project")
def test_a_name_changes_with_the_definition_of_its_stages(key: str, value: Any, changed: set[str]):
    targets = ("first", "second", "all")
    before = {target: name_of(target) for target in targets}
    pipeline = OmegaConf.load("dvc.yaml")
    OmegaConf.update(pipeline, key, value, merge=False)
    OmegaConf.save(pipeline, "dvc.yaml")
    assert {target for target in targets if name_of(target) != before[target]} == changed


@pytest.mark.usefixtures("project")
def test_another_target_has_another_name():
    assert name_of("first") != name_of("second")


@pytest.mark.usefixtures("project")
def test_an_unknown_stage_or_a_missing_file_is_refused():
    with pytest.raises(
        ValueError, match="`target` must be one of the stages first, second, flat, all, draw; not 'third'"
    ):
        read_recipe("third")
    Path("hsae/b.py").unlink()
    with pytest.raises(ValueError, match=r"^hsae/b.py, on which `all` depends, is missing"):
        read_recipe("all")
    assert read_recipe("first")


OVERRIDES = {"sweep-one-0": {"seed": 0, "phase.lr": 0.5}, "sweep-two-0": {"seed": 0, "x.y": None}}


def sweep(*labels: str, jobs: int = 1) -> dict[str, str]:
    """Run experiments, all of OVERRIDES unless told, to stage `second`: label -> commit."""
    recipe = read_recipe("second")
    wanted = {recipe.name(label, OVERRIDES[label]): OVERRIDES[label] for label in labels or OVERRIDES}
    done = run(wanted, recipe, jobs, "sweep")
    assert done == finished(wanted)
    return {name.rpartition("-")[0]: commit for name, commit in done.items()}


def current(label: str) -> str:
    return read_recipe("second").name(label, OVERRIDES[label])


def test_experiments_are_queued_with_their_parameters_run_and_then_left_alone(queue: FakeQueue):
    assert [*sweep(jobs=3)] == [*OVERRIDES]
    one, two = map(current, OVERRIDES)
    assert queue.commands == [
        f"exp run --queue --name {one} -S seed=0 -S phase.lr=0.5 second",
        f"exp run --queue --name {two} -S seed=0 -S x.y=null second",
        "start 3",
    ]
    queue.commands.clear()
    assert [*sweep()] == [*OVERRIDES]
    assert queue.commands == []


def test_an_edit_voids_results_until_it_is_taken_back(queue: FakeQueue):
    sweep()
    before = [current(label) for label in OVERRIDES]
    assert queue.queued() == before
    Path("hsae/a.py").write_text("edited")
    assert [*finished(map(current, OVERRIDES))] == []
    assert [*sweep()] == [*OVERRIDES]
    assert queue.queued() == [current(label) for label in OVERRIDES] != before
    git("restore", "hsae/a.py")
    sweep()
    assert queue.queued() == []


def test_what_fails_is_left_out_and_tried_again_by_the_next_run(queue: FakeQueue):
    queue.failing = {current("sweep-two-0")}
    assert [*sweep()] == ["sweep-one-0"]
    assert queue.tasks[current("sweep-two-0")] == "Failed"
    queue.queued()
    queue.failing = set()
    assert [*sweep()] == [*OVERRIDES]
    assert queue.queued() == [current("sweep-two-0")]


def test_what_is_queued_or_running_is_not_queued_again(queue: FakeQueue):
    queue.tasks = {current("sweep-one-0"): "Running", current("sweep-two-0"): "Queued"}
    queue.workers = 1
    assert [*sweep()] == [*OVERRIDES]
    assert queue.commands == []


def test_what_is_queued_with_other_code_is_taken_out_of_the_queue_and_what_runs_with_it_is_let_be(queue: FakeQueue):
    old_one, old_two = map(current, OVERRIDES)
    queue.tasks = {old_one: "Running", old_two: "Queued", "others-0-01234567": "Queued"}
    Path("hsae/b.py").write_text("edited")
    queue.workers = 1
    assert [*sweep()] == [*OVERRIDES]
    assert queue.queued() == [current(label) for label in OVERRIDES]
    assert old_two not in queue.tasks
    assert queue.tasks[old_one] == "Success"
    assert "others-0-01234567" in queue.tasks


def test_what_runs_without_a_worker_is_declared_dead_and_queued_again(queue: FakeQueue):
    one = current("sweep-one-0")
    queue.tasks = {one: "Running"}
    assert [*sweep("sweep-one-0")] == ["sweep-one-0"]
    assert queue.commands[:2] == [f"queue kill {one}", f"queue remove {one}"]
    assert queue.queued() == [one]


def test_a_worker_that_quits_with_tasks_left_is_started_again(queue: FakeQueue):
    queue.quits_after_each_task = True
    assert [*sweep()] == [*OVERRIDES]
    assert queue.commands.count("start 1") == 2


def test_a_busy_worker_that_answers_late_is_not_started_twice(queue: FakeQueue, monkeypatch: pytest.MonkeyPatch):
    names = [current(label) for label in OVERRIDES]
    queue.tasks = {names[0]: "Running", names[1]: "Queued"}
    queue.workers = 1
    real, looks = experiments.queue, iter([1, 0, 1, 0, 0])
    monkeypatch.setattr(experiments, "queue", lambda: (dict(queue.tasks), n) if (n := next(looks, -1)) >= 0 else real())
    # The first look is before the waiting; then one is late once, and then twice.
    assert [*sweep()] == [*OVERRIDES]
    assert queue.commands.count("start 1") == 1


def test_waiting_ends_where_no_worker_can_be_had(queue: FakeQueue):
    queue.can_start = False
    assert sweep() == {}
    assert queue.commands.count("start 1") == experiments.PATIENCE


def test_a_task_on_its_way_from_queued_to_running_is_waited_for(queue: FakeQueue, monkeypatch: pytest.MonkeyPatch):
    one, looks = current("sweep-one-0"), iter([({}, 1), ({}, 1), ({"none": "Success"}, 1)])
    real = experiments.queue
    monkeypatch.setattr(experiments, "queue", lambda: next(looks, None) or real())
    assert [*sweep("sweep-one-0")] == ["sweep-one-0"]
    assert queue.queued() == [one]


def test_an_edit_while_experiments_are_queued_stops_the_queueing(queue: FakeQueue, monkeypatch: pytest.MonkeyPatch):
    def edit(*arguments: str) -> str:
        if "--queue" in arguments:
            Path("hsae/b.py").write_text("edited")
        return queue.dvc(*arguments)

    monkeypatch.setattr(experiments, "dvc", edit)
    one = current("sweep-one-0")
    with pytest.raises(ValueError, match=r"^code or parameters changed during queueing: run this again"):
        sweep()
    assert queue.queued() == [one]


def test_code_that_git_does_not_know_is_refused_before_anything_is_queued(queue: FakeQueue):
    git("rm", "--cached", "--quiet", "hsae/b.py")
    git("commit", "--quiet", "--message", "forgotten")
    with pytest.raises(ValueError, match=r"^hsae/b.py is unknown to git, so that the queue would run without it"):
        sweep()
    assert queue.commands == []


@pytest.mark.usefixtures("queue")
def test_no_jobs_are_refused():
    with pytest.raises(ValueError, match="`jobs` must be above 0; not 0"):
        sweep(jobs=0)


@pytest.mark.usefixtures("project")
def test_a_command_that_fails_is_told_in_its_own_words():
    with pytest.raises(ValueError, match=r"^`git show nowhere` failed: fatal: "):
        git("show", "nowhere")


def test_the_table_of_the_queue_is_read_by_its_names_and_what_runs_goes_before_what_failed(
    monkeypatch: pytest.MonkeyPatch,
):
    table = (
        "Task     Name                   Created       Status\n"
        "beaf7c4  ablations-reference-0  10:07 PM      Running\n"
        "7821e5f  ablations-good-0       Nov 23, 2025  Queued\n"
        "b820a1d                         10:07 PM      Success\n"
        "91ab2cd  ablations-good-0       10:01 PM      Failed\n"
        "\nWorker status: 1 active, 2 idle\n"
    )
    monkeypatch.setattr(experiments, "dvc", lambda *_: table)
    tasks, workers = experiments.queue()
    assert tasks["ablations-reference-0"] == "Running"
    assert tasks["ablations-good-0"] == "Queued"
    assert workers == 3


def test_an_empty_queue_is_read(monkeypatch: pytest.MonkeyPatch):
    empty = "No experiment tasks in the queue.\n\nWorker status: 0 active, 0 idle\n"
    monkeypatch.setattr(experiments, "dvc", lambda *_: empty)
    assert experiments.queue() == ({}, 0)


def test_workers_hold_no_pipe_of_their_starter(monkeypatch: pytest.MonkeyPatch):
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **options: calls.append({"command": command, **options}))
    experiments.start_workers(2)
    assert calls == [{"command": ["dvc", "queue", "start", "--jobs", "2"], "stdout": subprocess.DEVNULL, "check": True}]
