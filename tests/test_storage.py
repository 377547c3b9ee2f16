"""Results in object storage: profiles/object-storage and profiles/kubernetes, against a real S3 server on this machine."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pandas
import pytest
from grid import tiny_configuration
from moto.server import ThreadedMotoServer
from project import (
    copy_project,
    job_records,
    names,
    planned,
    printed_by_rules,
    read_configuration,
    snakemake,
    write_configuration,
)

pytestmark = [pytest.mark.workflow, pytest.mark.thorough]

BUCKET = "my-bucket"  # as in the profiles


@pytest.fixture(scope="module")
def storage() -> Iterator[Any]:
    """Return a client of an S3 server with an empty bucket."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line per request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket=BUCKET)
    yield client
    server.stop()


@pytest.fixture(scope="module")
def environment(storage: Any) -> Iterator[list[str]]:
    """Put the bucket's keys into the environment; return the option that names the server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNAKEMAKE_STORAGE_S3_ACCESS_KEY", "key")
        patch.setenv("SNAKEMAKE_STORAGE_S3_SECRET_KEY", "secret")
        yield ["--storage-s3-endpoint-url", storage.meta.endpoint_url]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, vllm_python: Path) -> Path:
    """Return a project with a grid of one compression, and nothing run."""
    project = copy_project(tmp_path_factory.mktemp("stored") / "project")
    write_configuration(project, tiny_configuration(project, ["tiny"], {"executable": str(vllm_python)}))
    return project


@pytest.mark.parametrize("profile", ["object-storage", "kubernetes"])
def test_a_profile_plans_the_same_jobs(project: Path, environment: list[str], profile: str) -> None:
    options = ["--workflow-profile", f"profiles/{profile}", *environment]
    records = job_records(project, *options)
    assert names(records) == planned(project)
    # Code comes with the sources, everything else from the bucket.
    evaluation = next(record for record in records if record["rule"] == "evaluate_suite")
    for path in evaluation["input"]:
        assert path.startswith(("results/code/", "inputs/")) == (BUCKET not in path), path


def test_the_python_of_an_image_need_not_exist_here(project: Path, environment: list[str]) -> None:
    write_configuration(
        project, tiny_configuration(project, ["tiny"], {"executable": "/image/bin/python"}), "image.yaml"
    )
    wanted = "results/environments/vllm.json"
    options = [wanted, "--workflow-profile", "profiles/kubernetes", *environment]
    assert planned(project, *options, configuration="image.yaml") == {"build_environment vllm"}
    refused = snakemake(project, "--dry-run", wanted, configuration="image.yaml", check=False)
    assert refused.returncode != 0 and "engines.vllm.executable" in refused.stdout + refused.stderr


@pytest.mark.parametrize(
    ("profile", "token", "declared"),
    [("kubernetes", "secret", "{'HF_TOKEN'}"), ("kubernetes", None, "set()"), ("object-storage", "secret", "set()")],
)
def test_a_pod_gets_the_token_of_the_hub(
    project: Path,
    environment: list[str],
    monkeypatch: pytest.MonkeyPatch,
    profile: str,
    token: str | None,
    declared: str,
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    options = ["--workflow-profile", f"profiles/{profile}", *environment]
    assert f"DECLARED {declared}" in printed_by_rules(project, 'print("DECLARED", workflow.envvars)', *options)


def test_a_fresh_checkout_runs_nothing_with_what_snakemake_knows(
    project: Path, environment: list[str], tmp_path: Path
) -> None:
    """Nothing of a checkout is in the bucket, and all of it is newer than what is there."""
    options = ["results/models/tiny/original/manifest.json", "results/prompts/attack.jsonl"]
    options += ["--workflow-profile", "profiles/object-storage", *environment]
    options += ["--default-storage-prefix", f"s3://{BUCKET}/checkout"]
    snakemake(project, *options)
    for known in (False, True):
        checkout = tmp_path / str(known)
        ignored = shutil.ignore_patterns(".snakemake", "results")
        shutil.copytree(project, checkout, ignore=ignored, copy_function=shutil.copyfile)
        if known:
            shutil.copytree(project / ".snakemake/metadata", checkout / ".snakemake/metadata")
        assert planned(checkout, *options) == (set() if known else {"import_model tiny", "prompt_set attack"})


def test_the_grid_runs_with_its_results_in_the_bucket(project: Path, environment: list[str], storage: Any) -> None:
    """Transformers answers in the place of a server, as no engine sees where its files are from."""
    configuration = read_configuration(project)
    configuration["serving"]["engine"] = "transformers"
    for name in ("tasks", "task_folder"):
        del configuration["suites"]["quick"][name]
    write_configuration(project, configuration, "stored.yaml")
    options = ["--workflow-profile", "profiles/object-storage", *environment]
    snakemake(project, *options, configuration="stored.yaml")
    pages = storage.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    stored = {entry["Key"] for page in pages for entry in page["Contents"]}
    assert "aird/results/models/tiny/wanda-50/checkpoint/model.safetensors" in stored
    assert not any(key.endswith(".py") for key in stored)
    body = storage.get_object(Bucket=BUCKET, Key="aird/results/tables/summary.csv")["Body"]
    assert set(pandas.read_csv(body).patch) == {"plain", "aird"}
    assert planned(project, *options, configuration="stored.yaml") == set()
