"""An S3 bucket that moto serves on this machine's loopback, as a project's remote."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

from tests.project import Project

NAME = "bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "us-east-1"}


class Bucket:
    """A bucket, and the environment in which DVC finds it: no file or host outside of the tests is asked."""

    def __init__(self, endpoint: str, folder: Path):
        empty = folder / "empty"
        empty.touch()
        self.endpoint = endpoint
        self.env = {
            **KEYS,
            "AWS_CONFIG_FILE": str(empty),
            "AWS_SHARED_CREDENTIALS_FILE": str(empty),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        names = ("aws_access_key_id", "aws_secret_access_key", "region_name")
        self.client: Any = boto3.client("s3", endpoint_url=endpoint, **dict(zip(names, KEYS.values(), strict=True)))
        self.client.create_bucket(Bucket=NAME)

    def become_remote(self, project: Project, prefix: str) -> None:
        """Be the default remote of a project and of what is cloned from it, as README has it; not committed yet."""
        project.env |= self.env
        project.run("dvc", "remote", "add", "--default", "storage", f"s3://{NAME}/{prefix}")
        project.run("dvc", "remote", "modify", "storage", "endpointurl", self.endpoint)
        project.run("dvc", "remote", "modify", "storage", "verify", "true")

    @contextmanager
    def damaged(self, key: str, *, lost: bool) -> Iterator[None]:
        """Within, an object is not there, or one bit of it is another."""
        content = self.client.get_object(Bucket=NAME, Key=key)["Body"].read()
        if lost:
            self.client.delete_object(Bucket=NAME, Key=key)
        else:
            self.client.put_object(Bucket=NAME, Key=key, Body=content[:-1] + bytes([content[-1] ^ 1]))
        yield
        self.client.put_object(Bucket=NAME, Key=key, Body=content)


@contextmanager
def serving(folder: Path) -> Iterator[Bucket]:
    """An empty bucket, at a port that is free; `folder` is for a file of settings."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # not a line for every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield Bucket(f"http://{host}:{port}", folder)
    server.stop()
