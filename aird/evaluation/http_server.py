"""A server on HTTP, whatever its engine: started on a port of its own, asked by many requests at once, and watched.

An engine's file in `engines/` says what is started and what is asked; here is what all such engines share.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import httpx

from aird.evaluation import server_process
from aird.evaluation.server_process import ServerProcess
from aird.support import progress

POLL_SECONDS = 0.2
PORT_ATTEMPTS = 4
# A small server of the user's drops connections while it is busy; the pauses between attempts double.
CONNECTION_ATTEMPTS = 5
KEY_VARIABLE = "VLLM_API_KEY"  # which vLLM takes its own key from


class _Unshown(str):
    """A text that an error which shows a request's headers leaves out."""

    def __repr__(self) -> str:
        return "'...'"


class HttpServer:
    """Asks the server at one address.

    Attributes:
        name: what errors call it.
        address: without a final slash.
        process: the server that this job started; None for a server of the user's.
    """

    def __init__(self, name: str, address: str, process: ServerProcess | None = None) -> None:
        self.name = name
        self.address = address.rstrip("/")
        self.process = process

    def key_header(self) -> dict[str, str]:
        """Return the header with the user's key for the server; empty where there is none."""
        key = os.environ.get(KEY_VARIABLE)
        return {"Authorization": _Unshown(f"Bearer {key}")} if key else {}

    def get(self, path: str) -> Mapping[str, Any]:
        """Return the object that a path answers with, empty for an empty answer.

        Raises:
            httpx.HTTPError: it does not answer, or with an error.
        """
        with httpx.Client(**self._settings(5.0)) as http:
            response = http.get(path).raise_for_status()
            return dict(response.json()) if response.content else {}

    def post_all(self, path: str, bodies: Sequence[Mapping[str, Any]], connections: int | None = None) -> list[Any]:
        """Post all bodies at once; return the decoded answers in the same order.

        Args:
            path: where to.
            bodies: objects that are sent as JSON.
            connections: the most that are open at a time; None is no limit.

        Raises:
            RuntimeError: the server refused, failed or ended.
        """
        try:
            return asyncio.run(self._post_all(path, bodies, connections))
        except BaseExceptionGroup as group:
            exits = group.subgroup(SystemExit)
            if exits is None:
                raise
            # A signal that came while a connection was opened: there anyio wraps what the handler raises in groups.
            error: BaseException = exits
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None

    def _settings(self, timeout: float | None) -> dict[str, Any]:
        return {
            "base_url": self.address,
            "headers": self.key_header(),
            "timeout": timeout,
            "trust_env": self.process is None,  # a proxy cannot reach our loopback address
            # Ours has no certificate; reading the system's would take longer than a poll.
            "verify": self.process is None,
        }

    async def _post_all(self, path: str, bodies: Sequence[Mapping[str, Any]], connections: int | None) -> list[Any]:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=0)
        # No time-out: with all requests in flight the last one's wait is the whole job. A server of
        # ours is watched instead; a user's server is trusted to answer or close the connection.
        async with httpx.AsyncClient(**self._settings(None), limits=limits) as http:
            tasks = [asyncio.create_task(self._post(http, path, body)) for body in bodies]
            pending = set(tasks)
            try:
                with progress.count("requests", len(tasks)) as answered:
                    while pending:
                        done, pending = await asyncio.wait(
                            pending, timeout=POLL_SECONDS, return_when=asyncio.FIRST_EXCEPTION
                        )
                        for task in done:
                            task.result()
                        answered.add(len(done))
                        if pending and self.process is not None and self.process.exit_code() is not None:
                            await self._raise_lost("requests were under way")
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            return [task.result() for task in tasks]

    async def _post(self, http: httpx.AsyncClient, path: str, body: Mapping[str, Any]) -> Any:
        attempts = CONNECTION_ATTEMPTS if self.process is None else 1
        for attempt in range(attempts):
            try:
                response = await http.post(path, json=body)
                break
            except httpx.TransportError as error:
                if attempt + 1 == attempts:
                    await self._raise_lost(repr(error))
            await asyncio.sleep(POLL_SECONDS * 2**attempt)
        if response.status_code == 200:
            try:
                return response.json()
            except ValueError as error:
                raise RuntimeError(f"the {self.name} server answered no JSON: {response.text[:80]!r}") from error
        message = response.text
        with contextlib.suppress(ValueError, TypeError, KeyError):
            message = str(response.json()["error"]["message"])
        what = f"the {self.name} server answered HTTP {response.status_code}: {message}"
        if self.process is not None and response.status_code >= 500:
            raise self.process.failure(what)
        raise RuntimeError(what)

    async def _raise_lost(self, reason: str) -> NoReturn:
        """Raise the error for a connection that broke, with the server's exit code if it ended."""
        if self.process is None:
            raise RuntimeError(f"lost the {self.name} server at {self.address}: {reason}")
        for _ in range(25):  # the connection breaks a moment before the processes are gone
            if self.process.exit_code() is not None:
                break
            await asyncio.sleep(POLL_SECONDS)
        code = self.process.exit_code()
        state = "is still running" if code is None else f"ended with exit code {code}"
        raise self.process.failure(f"the {self.name} server {state} but did not answer ({reason})")


def listed_models(server: HttpServer) -> list[Mapping[str, Any]]:
    """Return the server's models and adapters as /v1/models lists them."""
    return list(server.get("/v1/models")["data"])


@contextlib.contextmanager
def start_server(
    name: str,
    command: Callable[[int, str], Sequence[str]],
    environment: Mapping[str, str],
    log_path: Path,
    timeout_seconds: float,
) -> Iterator[HttpServer]:
    """Yield a server on a free port of 127.0.0.1, ready to be asked.

    Its processes are ended when the context closes and when the job ends in any way, SIGKILL included; SIGTERM and
    SIGINT raise SystemExit inside the context (only if it is opened in the main thread).

    Args:
        name: what errors call it.
        command: its command line, from a port and a mark. It serves a model by that name, which tells our server from
            another job's that took the port in between.
        environment: of its processes.
        log_path: receives what it prints; its folder is made.
        timeout_seconds: how long it may take until it is ready.

    Raises:
        RuntimeError: it did not start in time or ended; the message has the end of its log.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with server_process.signals_as_exit():
        for attempt in range(1, PORT_ATTEMPTS + 1):
            mark = f"aird-{secrets.token_hex(8)}"
            with server_process.reserve_port() as port:
                process = ServerProcess(command(port, mark), environment, log_path)
                server = HttpServer(name, f"http://127.0.0.1:{port}", process)
                try:
                    _wait_until(lambda: _is_ready(server, mark), server, process, timeout_seconds)  # noqa: B023
                except BaseException as error:
                    process.stop()
                    taken = isinstance(error, RuntimeError) and "address already in use" in str(error).lower()
                    if taken and attempt < PORT_ATTEMPTS:
                        continue
                    raise
            try:
                yield server
            finally:
                process.stop()
            return


def _is_ready(server: HttpServer, mark: str) -> bool:
    """Return whether the server that answers is ours; an exception says that none does yet."""
    server.get("/health")
    return mark in [model["id"] for model in listed_models(server)]


def _wait_until(ready: Callable[[], bool], server: HttpServer, process: ServerProcess, timeout_seconds: float) -> None:
    """Return when the started server is ready.

    Raises:
        RuntimeError: it ended, or was not ready in time.
    """
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        code = process.exit_code()
        if code is not None:
            raise process.failure(f"the {server.name} server ended with exit code {code} while starting")
        with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
            if ready():
                return
        time.sleep(POLL_SECONDS)
    raise process.failure(f"the {server.name} server was not ready after {timeout_seconds:g} s")
