"""A running server of the user's as an engine: `serving.url`. Nothing is started, and nothing ended.

vLLM is asked by its own extensions, any other server by the standard completions interface, as far as that goes:
what it can is found out by asking.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urldefrag

import httpx

from aird.evaluation.engines.engine import Abilities, Client, Engine, ServerSettings
from aird.evaluation.engines.standard_client import PATH, StandardClient, Ways, try_server
from aird.evaluation.engines.vllm import Vllm, VllmClient
from aird.evaluation.http_server import HttpServer, listed_models
from aird.evaluation.server_process import signals_as_exit
from aird.models.loading import load_tokenizer


@dataclass(frozen=True)
class Address(Engine):
    """The server at an address, without /v1, that serves the checkpoint. VLLM_API_KEY is its key.

    Attributes:
        url: the address; what follows a # names the model there, else it is the first that the server lists.
    """

    url: str

    abilities: ClassVar = Abilities(first_token_logprobs=True, prompt_logprobs=True, tasks=True, adapters=False)
    weights: ClassVar = None

    @classmethod
    def recorded(cls, record: Mapping[str, Any], folder: Path) -> Address | None:
        """Return the server that an environment's record names."""
        return None if record["url"] is None else cls(record["url"])

    def describe(self) -> str:
        """Return which server it is."""
        return f"the server at {self.url}"

    def able(self, checkpoint: Path) -> Abilities:
        """Return what the server can be asked for: what vLLM can, or what works of the standard, and no adapter.

        Raises:
            RuntimeError: no server answers there, or its answers cannot be used.
        """
        server, model, _ = self._opened()
        if _speaks_vllm(server, model):
            return replace(Vllm.abilities, adapters=False)  # it serves already what it does
        return try_server(server, model, load_tokenizer(checkpoint)).abilities

    @contextlib.contextmanager
    def serve(
        self, checkpoint: Path, settings: ServerSettings, log_path: Path, adapter: Path | None = None
    ) -> Iterator[Client]:
        """Ask the server; the settings are its own.

        Raises:
            RuntimeError: no server answers there, it offers no such model, or its answers cannot be used.
            ValueError: an adapter is to be put on what it serves.
        """
        if adapter is not None:
            raise ValueError(
                f"{self.url} serves already what it does; let it serve the checkpoint with {adapter} merged"
            )
        server, model, owner = self._opened()
        if _speaks_vllm(server, model):
            client: Client = VllmClient(server, model)
        else:
            tokenizer = load_tokenizer(checkpoint)
            ways: Ways = try_server(server, model, tokenizer)
            client = StandardClient(server, model, owner, tokenizer, ways)
        with signals_as_exit():
            yield client

    def _opened(self) -> tuple[HttpServer, str, str]:
        """Return the server, the model that is asked there, and who the server says it is."""
        address, named = urldefrag(self.url)
        server = HttpServer("user's", address)
        try:
            models = [model for model in listed_models(server) if named or not model.get("parent")]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise RuntimeError(f"no server with /v1/models answers at {address}: {error!r}") from error
        names = [str(model["id"]) for model in models]
        if named and named not in names:
            raise RuntimeError(f"the server at {address} offers no model {named}; it offers {', '.join(names)}")
        if not names:
            raise RuntimeError(f"the server at {address} offers no model")
        chosen = models[names.index(named) if named else 0]
        return server, str(chosen["id"]), str(chosen.get("owned_by") or "")


def _speaks_vllm(server: HttpServer, model: str) -> bool:
    """Return whether a server answers in vLLM's extensions: token ids in and out, and prompt log-probabilities."""
    extensions = {"return_token_ids": True, "return_tokens_as_token_ids": True, "prompt_logprobs": 0}
    body = {"model": model, "prompt": [[1, 2]], "max_tokens": 1, "temperature": 0.0, "logprobs": 1, **extensions}
    try:
        (choice,) = server.post_all(PATH, [body])[0]["choices"]
        (first,) = choice["logprobs"]["top_logprobs"]
        return len(choice["prompt_logprobs"]) == 2 and all(name.startswith("token_id:") for name in first)
    except RuntimeError as error:
        return "not JSON compliant" in str(error)  # how its encoder refuses the NaN of a broken checkpoint
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
