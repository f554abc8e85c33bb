"""The command `hsae`: the study's web app, the explorer, export and import. What is heavy is imported late."""

import argparse
import ipaddress
import signal
import socket
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hsae.activations import Store as ActivationStore
    from hsae.study.store import Store
    from hsae.study.trials import Trials

TRIALS, DATABASE = Path("data/study/trials.json"), Path("study/study.sqlite")
FORMATS = ("saelens", "dictionary_learning", "sparsify")  # as in hsae/interchange/folders.py


def main(arguments: list[str] | None = None) -> None:
    """Run a command line. Whatever goes wrong ends the process with one line and exit status 1."""
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hsae", description="Hierarchical sparse autoencoders.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    study = commands.add_parser("study", help="the study with people").add_subparsers(required=True, metavar="COMMAND")

    serve = _command(study, "serve", "serve the web app until it is interrupted", _serve)
    export = _command(study, "export", "write the answers so far", _export)
    forget = _command(study, "forget", "delete a rater who asks for it, by their code", _forget)
    for command in (serve, export, forget):
        command.add_argument("--trials", type=Path, default=TRIALS, help="default: %(default)s")
        command.add_argument("--database", type=Path, default=DATABASE, help="default: %(default)s")
    serve.add_argument("--host", default="127.0.0.1", help="default: %(default)s, reached from this machine only")
    serve.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0 for any that is free")
    serve.add_argument(
        "--https", action="store_true", help="send cookies over HTTPS only: behind a proxy that speaks it"
    )
    export.add_argument("--output", type=Path, default=Path("study/responses.jsonl"), help="default: %(default)s")
    forget.add_argument("code", help="as the rater was told it")

    plan = _command(study, "plan", "how many raters it takes to tell two shares of right answers apart", _plan)
    plan.add_argument("--p1", type=float, required=True, help="share of right answers in one arm")
    plan.add_argument("--p2", type=float, required=True, help="share in the other")
    plan.add_argument("--power", type=float, default=0.8, help="default: %(default)s")
    plan.add_argument("--alpha", type=float, default=0.05, help="default: %(default)s")
    plan.add_argument("--per-feature", type=int, default=1, help="answers to each feature; default: %(default)s")
    plan.add_argument(
        "--icc", type=float, default=0.0, help="correlation of answers to a feature; default: %(default)s"
    )

    explore = _command(commands, "explore", "open the explorer in a browser", _explore)
    explore.add_argument("--page", type=Path, default=Path("explorer.html"), help="default: %(default)s")

    publish = _command(commands, "export", "write a trained model as another library's folder, with a card", _publish)
    publish.add_argument("--model", type=Path, default=Path("models/phase3.safetensors"), help="default: %(default)s")
    publish.add_argument("--output", type=Path, required=True, help="folder, which must not exist yet")
    adopt = _command(commands, "import", "read another library's folder as a model of the pipeline", _adopt)
    adopt.add_argument("folder", type=Path, help="one autoencoder, or level1/ and level2/ of an HSAE")
    adopt.add_argument("--output", type=Path, required=True, help="file, which must not exist yet")
    for command in (publish, adopt):
        command.add_argument("--format", choices=FORMATS, required=True)
        command.add_argument(
            "--store",
            type=Path,
            default=Path("data/activations/val.safetensors"),
            help="activations, of any split, for their normalisation; default: %(default)s",
        )
    return parser


def _command(
    group: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, what: str, run: object
) -> argparse.ArgumentParser:
    parser = group.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _serve(args: argparse.Namespace) -> None:
    import uvicorn

    from hsae.study.app import create_app
    from hsae.study.store import secret

    # uvicorn stops at these and then raises them once more.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    trials, store = _store(args)
    with closing(store), _listen(args.host, args.port) as listening:
        app = create_app(trials, store, secret(args.database.with_suffix(".secret")), args.https)
        host, port = listening.getsockname()[:2]
        if not ipaddress.ip_address(host).is_loopback:
            print("warning: others can reach this; put a reverse proxy that speaks TLS before it", file=sys.stderr)
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        app.router.on_startup.append(lambda: print(f"serving {args.trials} at {address}", flush=True))
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=5
        )
        uvicorn.Server(config).run([listening])


def _export(args: argparse.Namespace) -> None:
    from hsae.files import write_text
    from hsae.study.responses import dumps

    _, store = _store(args, must_exist=True)
    with closing(store):
        found = store.responses()
    write_text(args.output, dumps(found))
    print(f"wrote {len(found.responses)} answers to {args.output}")


def _forget(args: argparse.Namespace) -> None:
    from hsae.study.store import read_code

    _, store = _store(args, must_exist=True)
    with closing(store):
        alias = store.forget(read_code(args.code))
    print(f"deleted; in what was exported before, this rater is {alias}")


def _plan(args: argparse.Namespace) -> None:
    from hsae.study import planning

    print(planning.report(args.p1, args.p2, args.power, args.alpha, args.per_feature, args.icc))


def _explore(args: argparse.Namespace) -> None:
    import webbrowser

    if not args.page.is_file():
        raise ValueError(f"{args.page} is missing: run `dvc repro`.")
    if not webbrowser.open(args.page.resolve().as_uri()):
        raise ValueError(f"there is no browser to open {args.page} with.")


def _publish(args: argparse.Namespace) -> None:
    from hsae import config
    from hsae.causal_lm import ModelConfig
    from hsae.interchange import card, folders
    from hsae.interchange.site import Site

    model, store = folders.load(_present(args.model)), _activations(args.store)
    site = Site.of(store, config.load(ModelConfig, "model"))
    with folders.new_folder(args.output) as folder:
        folders.write(model, folder, args.format, store.normalizer, site)
        has_metrics = card.write(folder, args.model, model, args.format, site, args.output.name)
    without = "" if has_metrics else "; its card has no metrics: dvc.lock has none of this very file"
    print(f"wrote {args.output}{without}")


def _adopt(args: argparse.Namespace) -> None:
    from hsae.files import write_tensors
    from hsae.interchange import folders

    if args.output.exists():
        raise ValueError(f"{args.output} exists already: remove it, or choose another file.")
    model = folders.read(args.folder, args.format, _activations(args.store).normalizer)
    write_tensors(args.output, model.state_dict(), model.header())
    print(f"wrote {args.output}")


def _activations(path: Path) -> "ActivationStore":
    import torch

    from hsae.activations import read
    from hsae.files import read_tensors

    return read(*read_tensors(_present(path)), torch.device("cpu"))


def _present(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path} is missing: run `dvc repro` (or `dvc checkout`).")
    return path


def _store(args: argparse.Namespace, must_exist: bool = False) -> "tuple[Trials, Store]":
    import hashlib

    from hsae.study import trials
    from hsae.study.store import Store

    if not args.trials.is_file():
        raise ValueError(f"{args.trials} is missing: run `dvc repro build_study`.")
    if must_exist and not args.database.is_file():
        raise ValueError(f"{args.database} is missing: run `hsae study serve`.")
    content = args.trials.read_bytes()
    try:
        study = trials.loads(content.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"{args.trials} is damaged ({error}): run `dvc repro build_study`.") from None
    return study, Store(args.database, study, hashlib.sha256(content).hexdigest())


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ValueError for an address that cannot be had."""
    from hsae.config import check

    check("--port", port, "0 to 65535", port in range(65536))
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(f"`--host {host} --port {port}` cannot be had: {error}.") from None


if __name__ == "__main__":
    main()
