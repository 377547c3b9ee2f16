"""Ask a vLLM server for completions and log-probabilities of prompts given as token ids."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol

import httpx

from aird.evaluation.server_process import ServerProcess

PROMPTS_PER_REQUEST = 32  # bounds the size of a body; vLLM batches across requests anyway
POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Completion:
    """One greedy completion.

    Attributes:
        text: the generated text without special tokens.
        token_ids: the generated tokens, an end-of-sequence token included.
        finish_reason: "stop" (an end-of-sequence token) or "length".
        first_token_logprobs: log-probabilities (nats) of the most likely first tokens by
            token id, or None if they were not asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    first_token_logprobs: dict[int, float] | None = None

    @property
    def token_count(self) -> int:
        """Number of generated tokens."""
        return len(self.token_ids)


class Completer(Protocol):
    """What answers prompts: a server's client, or a model in this process."""

    def complete(self, prompts: Sequence[Sequence[int]], maximum_new_tokens: int) -> list[Completion]:
        """Complete each prompt greedily."""
        ...

    def token_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[list[float | None]]:
        """Return the log-probability (nats) of each prompt token given those before it; None for the first."""
        ...


class Client:
    """Asks one server for completions and log-probabilities."""

    def __init__(
        self, base_url: str, model_name: str, server: ServerProcess | None = None, *, prompt_logprobs: bool = True
    ) -> None:
        """Name the server to ask; `serve` does this."""
        self._base_url = base_url.rstrip("/")
        self._model_name = model_name
        self._server = server
        self._prompt_logprobs = prompt_logprobs

    @property
    def base_url(self) -> str:
        """The server's address without a final slash and without /v1."""
        return self._base_url

    @property
    def model_name(self) -> str:
        """The name under which the server knows the checkpoint without an adapter."""
        return self._model_name

    def version(self) -> str:
        """Return the server's vLLM version."""
        return str(self._get("/version")["version"])

    def models(self) -> list[dict[str, Any]]:
        """Return the server's models and adapters as /v1/models lists them."""
        return list(self._get("/v1/models")["data"])

    def wait_until_ready(self, mark: str, timeout_seconds: float) -> None:
        """Return when the started server is healthy and lists a model named `mark`.

        Raises:
            RuntimeError: it ended, or was not ready in time.
        """
        assert self._server is not None
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            code = self._server.exit_code()
            if code is not None:
                raise self._server.failure(f"the vLLM server ended with exit code {code} while starting")
            with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
                self._get("/health")
                if mark in [model["id"] for model in self.models()]:
                    return
            time.sleep(POLL_SECONDS)
        raise self._server.failure(f"the vLLM server was not ready after {timeout_seconds:g} s")

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        maximum_new_tokens: int,
        *,
        adapter: str | None = None,
        logprobs: int | None = None,
    ) -> list[Completion]:
        """Complete each prompt greedily.

        Args:
            prompts: token ids of each prompt, special tokens included.
            maximum_new_tokens: where to cut a completion.
            adapter: name of a LoRA adapter in `ServerSettings.adapters`, None for none.
            logprobs: how many of the first token's log-probabilities to return.

        Returns:
            One completion a prompt, in the order of `prompts`.

        Raises:
            RuntimeError: the server refused, failed or ended.
            ValueError: the checkpoint returns NaN (only seen with `logprobs`).
        """
        parameters: dict[str, Any] = {"max_tokens": maximum_new_tokens}
        if logprobs is not None:
            parameters |= {"logprobs": logprobs, "return_tokens_as_token_ids": True}
        return [_read_completion(choice) for choice in self._choices(prompts, parameters, adapter)]

    def token_logprobs(
        self, prompts: Sequence[Sequence[int]], *, adapter: str | None = None
    ) -> list[list[float | None]]:
        """Return the log-probability (nats) of each prompt token given those before it.

        Args:
            prompts: token ids; shorter than the maximum model length, as one token is generated.
            adapter: name of a LoRA adapter, None for none.

        Returns:
            A list as long as the prompt for each prompt; its first element is None.

        Raises:
            RuntimeError: the server refused, failed or ended.
            ValueError: the checkpoint returns NaN, or the server would crash (LoRA on the CPU).
        """
        if not self._prompt_logprobs:
            raise ValueError("vLLM on the CPU crashes on prompt log-probabilities when adapters are enabled")
        choices = self._choices(prompts, {"max_tokens": 1, "prompt_logprobs": 0}, adapter)
        values: list[list[float | None]] = []
        for prompt, choice in zip(prompts, choices, strict=True):
            pairs = zip(prompt[1:], choice["prompt_logprobs"][1:], strict=True)
            values.append([None, *(_finite(entry[str(token)]["logprob"]) for token, entry in pairs)])
        return values

    def _get(self, path: str) -> dict[str, Any]:
        with httpx.Client(**self._http_settings(5.0)) as http:
            response = http.get(path).raise_for_status()
            return dict(response.json()) if response.content else {}

    def _http_settings(self, timeout: float | None) -> dict[str, Any]:
        key = os.environ.get("VLLM_API_KEY")  # which vLLM takes its own key from
        return {
            "base_url": self._base_url,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": timeout,
            "trust_env": self._server is None,  # a proxy cannot reach our loopback address
            # Ours has no certificate; reading the system's would take longer than a poll.
            "verify": self._server is None,
        }

    def _choices(
        self, prompts: Sequence[Sequence[int]], parameters: dict[str, Any], adapter: str | None
    ) -> list[dict[str, Any]]:
        """Post all prompts to /v1/completions; return the choices in the order of `prompts`."""
        # Set even where they are vLLM's defaults: a checkpoint's generation_config.json changes those.
        greedy = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "n": 1, "stream": False}
        neutral = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        common = {"model": adapter or self._model_name, "return_token_ids": True, **greedy, **neutral}
        bodies: list[dict[str, Any]] = []
        for start in range(0, len(prompts), PROMPTS_PER_REQUEST):
            batch = [list(prompt) for prompt in prompts[start : start + PROMPTS_PER_REQUEST]]
            bodies.append({**common, **parameters, "prompt": batch})
        choices: list[dict[str, Any]] = []
        for body, answer in zip(bodies, asyncio.run(self._send(bodies)), strict=True):
            if len(answer["choices"]) != len(body["prompt"]):
                raise RuntimeError("the server answered with another number of completions than prompts")
            choices.extend(sorted(answer["choices"], key=lambda choice: int(choice["index"])))
        return choices

    async def _send(self, bodies: Sequence[dict[str, Any]]) -> list[Any]:
        """Post all bodies at once; return the decoded answers in the same order."""
        unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        # No time-out: with all requests in flight the last one's wait is the whole job. A server of
        # ours is watched instead; a user's server is trusted to answer or close the connection.
        async with httpx.AsyncClient(**self._http_settings(None), limits=unlimited) as http:
            tasks = [asyncio.create_task(self._post(http, body)) for body in bodies]
            pending = set(tasks)
            try:
                while pending:
                    done, pending = await asyncio.wait(
                        pending, timeout=POLL_SECONDS, return_when=asyncio.FIRST_EXCEPTION
                    )
                    for task in done:
                        task.result()
                    if pending and self._server is not None and self._server.exit_code() is not None:
                        await self._raise_lost("requests were under way")
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            return [task.result() for task in tasks]

    async def _post(self, http: httpx.AsyncClient, body: dict[str, Any]) -> Any:
        try:
            response = await http.post("/v1/completions", json=body)
        except httpx.TransportError as error:
            await self._raise_lost(repr(error))
        if response.status_code == 200:
            return response.json()
        message = response.text
        with contextlib.suppress(ValueError, TypeError, KeyError):
            message = str(response.json()["error"]["message"])
        if "not JSON compliant" in message:  # how the server's JSON encoder refuses NaN
            _finite(math.nan)
        what = f"the vLLM server answered HTTP {response.status_code}: {message}"
        if self._server is not None and response.status_code >= 500:
            raise self._server.failure(what)
        raise RuntimeError(what)

    async def _raise_lost(self, reason: str) -> NoReturn:
        """Raise the error for a connection that broke, with the server's exit code if it ended."""
        if self._server is None:
            raise RuntimeError(f"lost the vLLM server at {self._base_url}: {reason}")
        for _ in range(25):  # the connection breaks a moment before the processes are gone
            if self._server.exit_code() is not None:
                break
            await asyncio.sleep(POLL_SECONDS)
        code = self._server.exit_code()
        state = "is still running" if code is None else f"ended with exit code {code}"
        raise self._server.failure(f"the vLLM server {state} but did not answer ({reason})")


def _read_completion(choice: Mapping[str, Any]) -> Completion:
    first: dict[int, float] | None = None
    if choice["logprobs"] is not None:
        top = choice["logprobs"]["top_logprobs"][0]
        first = {int(name.removeprefix("token_id:")): _finite(value) for name, value in top.items()}
    return Completion(choice["text"], tuple(choice["token_ids"]), choice["finish_reason"], first)


def _finite(logprob: float | None) -> float:
    if logprob is None or math.isnan(logprob):
        raise ValueError("the checkpoint returns NaN log-probabilities: its weights or activations overflow")
    return float(logprob)
