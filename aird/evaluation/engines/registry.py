"""The one registry of engines. To add one: write its file, and add a line to ENGINES."""

from __future__ import annotations

from pathlib import Path

from aird.evaluation.engines.address import Address
from aird.evaluation.engines.engine import Engine
from aird.evaluation.engines.llama_cpp import LlamaCpp
from aird.evaluation.engines.transformers import Transformers
from aird.evaluation.engines.vllm import Vllm
from aird.support.environments import recorded_python
from aird.support.files import read_json

ENGINES: dict[str, type[Engine]] = {
    "vllm": Vllm,
    "llama.cpp": LlamaCpp,
    "url": Address,
    "transformers": Transformers,
}


def recorded_engine(environment: Path) -> Engine:
    """Return the engine that the record of an environment, such as results/environments/vllm.json, is about.

    Raises:
        ValueError: no engine knows the record.
        FileNotFoundError: the environment is not there.
    """
    record = read_json(environment)
    if record["python"] is not None:
        recorded_python(environment)
    for kind in ENGINES.values():
        engine = kind.recorded(record, environment.parent)
        if engine is not None:
            return engine
    raise ValueError(f"{environment} is the record of none of the engines {', '.join(ENGINES)}; build it again")
