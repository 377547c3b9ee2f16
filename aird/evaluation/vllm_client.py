"""Ask a server in vLLM's own extensions of the completions interface: token ids in and out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from aird.evaluation.engine import NO_PENALTIES, Client, Completion, check_whole, finite
from aird.evaluation.http_server import HttpServer

PATH = "/v1/completions"
Choice = Mapping[str, Any]  # one completion, as the server tells it
PROMPTS_PER_REQUEST = 32  # bounds the size of a body; vLLM batches across requests anyway


class VllmClient(Client):
    """Asks one vLLM server by the completions interface, with vLLM's own extensions for token ids."""

    name = "vLLM"

    def __init__(self, server: HttpServer, model: str) -> None:
        """Take the server and the name of what is asked there."""
        self.server = server
        self.model = model

    def versions(self) -> dict[str, str]:
        """Return the server's vLLM version."""
        return {"vllm": str(self.server.get("/version")["version"])}

    def task_model(self) -> dict[str, object]:
        """Return how lm-eval asks the same."""
        # Without any header lm-eval would send the key of another service, OPENAI_API_KEY.
        header = {"Accept": "application/json", **self.server.key_header()}
        return {"model": self.model, "base_url": f"{self.server.address}/v1/completions", "header": header}

    def complete(
        self, prompts: Sequence[Sequence[int]], maximum_new_tokens: int, *, logprobs: int | None = None
    ) -> list[Completion]:
        """Complete each prompt greedily (`Client.complete`)."""
        parameters: dict[str, object] = {"max_tokens": maximum_new_tokens}
        if logprobs is not None:
            parameters |= {"logprobs": logprobs, "return_tokens_as_token_ids": True}
        completions = [_read_completion(choice) for choice in self._choices(prompts, parameters)]
        for prompt, made in zip(prompts, completions, strict=True):
            check_whole(self.name, made.finish_reason, made.token_count, maximum_new_tokens, len(prompt))
        return completions

    def token_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[list[float | None]]:
        """Return the log-probability (nats) of each prompt token (`Client.token_logprobs`)."""
        choices = self._choices(prompts, {"max_tokens": 1, "prompt_logprobs": 0})
        values: list[list[float | None]] = []
        for prompt, choice in zip(prompts, choices, strict=True):
            pairs = zip(prompt[1:], choice["prompt_logprobs"][1:], strict=True)
            values.append([None, *(finite(entry[str(token)]["logprob"]) for token, entry in pairs)])
        return values

    def _choices(self, prompts: Sequence[Sequence[int]], parameters: Mapping[str, object]) -> list[Choice]:
        """Post all prompts to /v1/completions; return the choices in the order of `prompts`."""
        greedy = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "n": 1, "stream": False}
        common = {"model": self.model, "return_token_ids": True, **greedy, **NO_PENALTIES}
        bodies: list[dict[str, Any]] = []
        for start in range(0, len(prompts), PROMPTS_PER_REQUEST):
            batch = [list(prompt) for prompt in prompts[start : start + PROMPTS_PER_REQUEST]]
            bodies.append({**common, **parameters, "prompt": batch})
        try:
            answers = self.server.post_all(PATH, bodies)
        except RuntimeError as error:
            if "not JSON compliant" in str(error):  # how the server's JSON encoder refuses NaN
                finite(math.nan)
            raise
        choices: list[Choice] = []
        for body, answer in zip(bodies, answers, strict=True):
            if len(answer["choices"]) != len(body["prompt"]):
                raise RuntimeError("the server answered with another number of completions than prompts")
            choices.extend(sorted(answer["choices"], key=lambda choice: int(choice["index"])))
        return choices


def _read_completion(choice: Choice) -> Completion:
    first: dict[int, float] | None = None
    if choice["logprobs"] is not None:
        top = choice["logprobs"]["top_logprobs"][0]
        first = {int(name.removeprefix("token_id:")): finite(value) for name, value in top.items()}
    return Completion(choice["text"], tuple(choice["token_ids"]), choice["finish_reason"], first)
