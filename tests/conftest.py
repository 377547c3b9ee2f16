"""What several test files share: tiny models, made once a run, and vLLM's environment, built once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from grid import tiny_configuration
from project import copy_project, snakemake, write_configuration, write_vllm_lock
from tiny_model import build_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from aird.chat import chat_tokens

ROOT = Path(__file__).resolve().parent.parent

INSTRUCTIONS = (
    "Name a colour.",
    "Explain how a bicycle pump works, step by step.",
    "How do I write a letter to my landlord?",
    "What is 2 + 2?",
    "Tell me, in one short sentence, why the sky is blue in the morning!",
)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads, much slower on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a family ("llama", "qwen2") to its bfloat16 checkpoint folder; only to be read."""
    root = tmp_path_factory.mktemp("tiny-models")

    def folder(family: str) -> Path:
        return root / family if (root / family).exists() else build_tiny_model(root / family, family=family)

    return folder


@pytest.fixture(params=["llama", "qwen2"])
def model(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path]) -> Any:
    """Return a tiny model in float32, of each family in turn; a fresh one for every test."""
    return load_float32(tiny_folder(request.param))


@pytest.fixture
def llama(tiny_folder: Callable[[str], Path]) -> Any:
    """Return the tiny llama in float32, a fresh one."""
    return load_float32(tiny_folder("llama"))


@pytest.fixture(scope="session")
def tokenizer(tiny_folder: Callable[[str], Path]) -> Any:
    """Return the tokenizer of the tiny models."""
    return AutoTokenizer.from_pretrained(tiny_folder("llama"))


@pytest.fixture(scope="session")
def prompts(tokenizer: Any) -> list[list[int]]:
    """Return the token ids of five templated prompts of different lengths."""
    return [chat_tokens(tokenizer, instruction) for instruction in INSTRUCTIONS]


def load_float32(folder: Path) -> Any:
    """Return a checkpoint as a float32 model."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu").eval()


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """Return the Python of an environment that holds vLLM.

    AIRD_VLLM_PYTHON names one; otherwise the workflow's own node builds it below results/, where
    the next run finds it.
    """
    if "AIRD_VLLM_PYTHON" in os.environ:
        return Path(os.environ["AIRD_VLLM_PYTHON"])
    record = ROOT / "results" / "environments" / "vllm.json"
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--quiet", "all", "--"]
    subprocess.run([*command, str(record.relative_to(ROOT))], cwd=ROOT, check=True)
    return record.parent / json.loads(record.read_text())["python"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, vllm_python: Path) -> Path:
    """Return a copy of the project in which the tiny grid has run to its end; leave it as it is.

    AIRD_TEST_FINISHED names a folder where that has happened before: minutes less while a test is written.
    """
    if "AIRD_TEST_FINISHED" in os.environ:
        return Path(os.environ["AIRD_TEST_FINISHED"])
    project = copy_project(tmp_path_factory.mktemp("finished") / "project")
    build_tiny_model(project / "inputs/models/tiny")
    write_vllm_lock(project, vllm_python)
    write_configuration(project, tiny_configuration(project, ["tiny"], {"lock": "inputs/vllm.lock.txt"}))
    snakemake(project)
    return project
