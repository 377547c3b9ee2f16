"""A running vLLM server of the user's as an engine: `serving.url`. Nothing is started, and nothing ended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import httpx

from aird.evaluation.engines.engine import Abilities, Engine, ServerSettings
from aird.evaluation.engines.vllm import VllmClient, listed_models
from aird.evaluation.http_server import HttpServer
from aird.evaluation.server_process import signals_as_exit


@dataclass(frozen=True)
class Address(Engine):
    """The vLLM server at an address, without /v1, that serves the checkpoint. VLLM_API_KEY is its key."""

    url: str

    abilities: ClassVar = Abilities(first_token_logprobs=True, prompt_logprobs=True, tasks=True, adapters=False)

    @classmethod
    def recorded(cls, record: Mapping[str, Any], folder: Path) -> Address | None:
        """Return the server that an environment's record names."""
        return None if record["url"] is None else cls(record["url"])

    def describe(self) -> str:
        """Return which server it is."""
        return f"vLLM ({self.url})"

    def needs_dense_copy(self, checkpoint: Path) -> bool:
        """Return whether vLLM cannot read a checkpoint's quantised weights anywhere."""
        from aird.models.dense import needs_dense_copy

        return needs_dense_copy(checkpoint, on_cpu=False)

    @contextlib.contextmanager
    def serve(
        self, checkpoint: Path, settings: ServerSettings, log_path: Path, adapter: Path | None = None
    ) -> Iterator[VllmClient]:
        """Ask the server for the first model that it lists; the settings are its own.

        Raises:
            RuntimeError: no server answers there, or it offers no model.
            ValueError: an adapter is to be put on what it serves.
        """
        if adapter is not None:
            raise ValueError(
                f"{self.url} serves already what it does; let it serve the checkpoint with {adapter} merged"
            )
        server = HttpServer("vLLM", self.url)
        try:
            names = [str(model["id"]) for model in listed_models(server) if not model.get("parent")]
        except httpx.HTTPError as error:
            raise RuntimeError(f"no vLLM server answers at {self.url}: {error}") from error
        if not names:
            raise RuntimeError(f"the server at {self.url} offers no model")
        with signals_as_exit():
            yield VllmClient(server, names[0])
