"""Running servers of the user's as an engine: nothing is started, and nothing ended.

vLLM is asked by its own extensions, any other server by the standard completions interface, as far as that goes:
what it can is found out by asking.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urldefrag, urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from aird.evaluation.engine import Abilities, Client, Engine, ServerSettings
from aird.evaluation.server_process import signals_as_exit
from aird.settings.base import Name, Text
from aird.settings.engines import Cell, EngineSettings

if TYPE_CHECKING:
    from aird.evaluation.http_server import HttpServer

PATH = "/v1/completions"
VLLM_TELLS = 20  # log-probabilities, unless it was started with another --max-logprobs


class UrlSettings(EngineSettings):
    """Which running servers are asked. VLLM_API_KEY is their key."""

    address: Text | None = Field(
        None,
        description="Address with OpenAI's completions interface. `{model}`, `{compression}` and `{patch}` stand for "
        "names; the model's name there follows `#` (default: the first listed), as in "
        "`http://localhost:8000#{compression}`.",
    )
    addresses: dict[Name, dict[Name, Text]] | None = Field(
        None, description="An address for each model and each compression, `original` included."
    )

    def of(self, cell: Cell) -> Self:
        """Return the address of one checkpoint alone."""
        model, compression, _ = cell
        template = self.address or (self.addresses or {}).get(model, {}).get(compression)
        names = zip(("{model}", "{compression}", "{patch}"), cell, strict=True)
        address = template and reduce(lambda text, name: text.replace(*name), names, template)
        return self.model_copy(update={"address": address, "addresses": None})

    def mistakes(self, cells: Sequence[Cell]) -> Iterator[str]:
        """Yield checkpoints that no address is given for, names that nothing has, and checkpoints that share one."""
        key = "address" if self.addresses is None else "addresses"
        served = [f"{model}.{compression}" for model, compression, _ in cells]
        for name in (
            f"{model}.{compression}" for model, some in (self.addresses or {}).items() for compression in some
        ):
            if name not in served:
                yield f"addresses.{name}: no such checkpoint is served (there are: {', '.join(dict.fromkeys(served))})"
        addresses = {cell: self.of(cell).address for cell in cells}
        if absent := dict.fromkeys(f"{cell[0]}/{cell[1]}" for cell in cells if addresses[cell] is None):
            yield f"{key}: there is no address for {', '.join(absent)}; add it, or leave out what no server serves"
        taken: dict[str, Cell] = {}
        for cell, address in addresses.items():
            if address is not None and (other := taken.setdefault(address, cell)) != cell:
                yield (
                    f"{key}: {'/'.join(other)} and {'/'.join(cell)} would be asked at the same address; write "
                    "{model}, {compression} and {patch} into it, behind a # where one server has all of them"
                )
                return

    @field_validator("addresses")
    @classmethod
    def _addresses(cls, addresses: dict[str, dict[str, str]] | None) -> dict[str, dict[str, str]] | None:
        for model, of_model in (addresses or {}).items():
            for compression, address in of_model.items():
                try:
                    cls._address(address)
                except ValueError as error:
                    raise ValueError(f"{address} of {model}/{compression} {error}") from error
        return addresses

    @field_validator("address")
    @classmethod
    def _address(cls, address: str | None) -> str | None:
        if address is None:
            return address
        try:
            parts = urlsplit(address)
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            valid = False
        if not valid or any(character.isspace() for character in address):
            raise ValueError(
                f"is no address; write http:// or https:// and a host, as http://localhost:8000 (found: {address})"
            )
        if parts.username is not None or parts.query:
            # The address is written into results; a password must not be.
            raise ValueError("must be an address only; give the key as the environment's VLLM_API_KEY")
        if parts.path.rstrip("/").endswith("/v1"):
            raise ValueError("ends in /v1, which the workflow adds itself; leave it out")
        return address

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.address is not None and self.addresses is not None:
            raise ValueError("address and addresses exclude each other; keep one of them")
        return self


@dataclass(frozen=True)
class Url(Engine):
    """The server at an address, without /v1, that serves the checkpoint."""

    options: UrlSettings = field(default_factory=UrlSettings)

    title = "a running server"
    settings = UrlSettings
    abilities = Abilities(first_token_logprobs=VLLM_TELLS, prompt_logprobs=True, tasks=True, adapters=False)
    weights = None
    option = "ADDRESS"
    usage = "address of a running server, vLLM or another, that serves the model (and the adapter merged)"

    @classmethod
    def of_option(cls, value: str) -> Self:
        """Return the server at an address."""
        try:
            return cls(options=UrlSettings(address=value))
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error

    def describe(self) -> str:
        """Return which server it is."""
        return f"the server at {self.options.address}"

    def able(self, checkpoint: Path) -> Abilities:
        """Return what the server can be asked for: what vLLM can, or what works of the standard, and no adapter.

        Raises:
            RuntimeError: no server answers there, or its answers cannot be used.
        """
        from aird.evaluation.standard_client import try_server
        from aird.models.loading import load_tokenizer

        server, model, _ = self._opened()
        if _speaks_vllm(server, model):
            return self.abilities
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
        from aird.evaluation.standard_client import StandardClient, try_server
        from aird.evaluation.vllm_client import VllmClient
        from aird.models.loading import load_tokenizer

        if adapter is not None:
            raise ValueError(
                f"{self.options.address} serves already what it does; let it serve the checkpoint with {adapter} merged"
            )
        server, model, owner = self._opened()
        if _speaks_vllm(server, model):
            client: Client = VllmClient(server, model)
        else:
            tokenizer = load_tokenizer(checkpoint)
            client = StandardClient(server, model, owner, tokenizer, try_server(server, model, tokenizer))
        with signals_as_exit():
            yield client

    def _opened(self) -> tuple[HttpServer, str, str]:
        """Return the server, the model that is asked there, and who the server says it is."""
        import httpx

        from aird.evaluation.http_server import HttpServer, listed_models

        if self.options.address is None:
            raise ValueError("no address of a running server is given; write engines.url.address")
        address, named = urldefrag(self.options.address)
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


ENGINE = Url
