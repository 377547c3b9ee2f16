"""Ask a server that has the standard completions interface, and perhaps nothing more: what it can is found out first.

`try_server` asks one short prompt in several ways and returns what worked. Standard are `POST /v1/completions` with
`prompt`, `max_tokens`, `temperature`, `logprobs`, `echo`, and `usage` in the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from aird.evaluation.engine import Abilities, Client, Completion, check_whole, finite
from aird.evaluation.http_server import HttpServer
from aird.prompts.chat import chat_tokens

AT_ONCE = 16  # requests in flight: such servers are shared, and some refuse more
CANDIDATES = 5  # first tokens whose log-probabilities the standard lets one ask for
PATH = "/v1/completions"
GREEDY = {"temperature": 0.0, "top_p": 1.0}
NO_PENALTIES = {"presence_penalty": 0.0, "frequency_penalty": 0.0}
# The standard has no repetition penalty, but servers do, under one of these names, and some follow the checkpoint's.
NO_REPETITION_PENALTY = {"repetition_penalty": 1.0, "repeat_penalty": 1.0}


@dataclass(frozen=True)
class Ways:
    """How a server can be asked.

    Attributes:
        token_ids: it takes prompts as token ids, and reads them as so many tokens.
        logprobs: it tells the first token's log-probabilities.
        echo: it tells the log-probabilities of a prompt of token ids.
        without_start: text goes out without the token that every prompt begins with, which the server adds itself.
        neutral: the penalties that it takes, with the values that turn them off.
    """

    token_ids: bool
    logprobs: bool
    echo: bool
    without_start: bool
    neutral: Mapping[str, float]

    @property
    def abilities(self) -> Abilities:
        """What can be asked of such a server; lm-eval's tasks need more than this proves."""
        return Abilities(
            first_token_logprobs=CANDIDATES if self.logprobs else 0,
            prompt_logprobs=self.echo,
            tasks=False,
            adapters=False,
            token_ids=self.token_ids,
            unpenalised=self.neutral.keys() >= NO_REPETITION_PENALTY.keys(),
        )


def try_server(server: HttpServer, model: str, tokenizer: PreTrainedTokenizerBase) -> Ways:
    """Return how a server can be asked about a model, by asking it.

    Args:
        server: at the user's address.
        model: its name there.
        tokenizer: the checkpoint's own.

    Raises:
        RuntimeError: it completes no text, does not say how many tokens a prompt has, or reads a templated prompt as
            another number of tokens than the checkpoint's tokenizer.
    """
    ids = chat_tokens(tokenizer, "Name a colour.")
    common = {"model": model, "max_tokens": 1, **GREEDY}
    text = _decoded(tokenizer, ids)
    prompts: dict[tuple[bool, bool], Any] = {(True, False): ids, (False, False): text}
    if _starts_with_bos(tokenizer, ids):
        prompts[False, True] = _decoded(tokenizer, ids[1:])
    counts: dict[tuple[bool, bool], int | None] = {}
    problems = []
    for way, prompt in prompts.items():
        try:
            (answer,) = server.post_all(PATH, [{**common, "prompt": prompt}])
            if not _has_text(answer):
                raise RuntimeError(f"an answer of it has no choices[0].text: {str(answer)[:80]}")
            counts[way] = _prompt_count(answer)
        except RuntimeError as error:
            problems.append(str(error))
        if counts.get(way) == len(ids):
            token_ids, without_start = way
            break
    else:
        raise RuntimeError(_unusable(server, len(ids), counts, problems))
    common |= {"prompt": prompts[token_ids, without_start]}
    all_penalties = NO_PENALTIES | NO_REPETITION_PENALTY
    taken = (each for each in (all_penalties, NO_PENALTIES) if _answer(server, {**common, **each}) is not None)
    neutral = next(taken, {})
    asked = {**common, **neutral, "logprobs": CANDIDATES}
    logprobs = bool(_first_token(_answer(server, asked)))
    echoed = _answer(server, {**asked, "echo": True}) if token_ids and logprobs else None
    return Ways(token_ids, logprobs, _echoes(echoed, len(ids)), without_start, neutral)


class StandardClient(Client):
    """Asks a server by the standard completions interface, in the ways that `try_server` found to work."""

    def __init__(
        self, server: HttpServer, model: str, owner: str, tokenizer: PreTrainedTokenizerBase, ways: Ways
    ) -> None:
        """Take the server, the model's name there, who the server says it is, the tokenizer, and how to ask."""
        self.server = server
        self.model = model
        self.name = f"server ({owner})" if owner else "server"
        self._tokenizer = tokenizer
        self._ways = ways

    def complete(
        self, prompts: Sequence[Sequence[int]], maximum_new_tokens: int, *, logprobs: int | None = None
    ) -> list[Completion]:
        """Complete each prompt with temperature 0 (`Client.complete`); a completion's token ids are those of its text.

        The standard has log-probabilities of up to 5 tokens. A prompt that the server reads as another number of tokens
        is a RuntimeError.
        """
        more: dict[str, object] = {"max_tokens": maximum_new_tokens}
        if logprobs is not None:
            if not self._ways.logprobs:
                raise ValueError(f"{self.server.address} tells no log-probabilities")
            more["logprobs"] = min(logprobs, CANDIDATES)
        completions = []
        for prompt, answer in zip(prompts, self._answers(prompts, more), strict=True):
            (choice,) = answer["choices"]
            made = answer["usage"].get("completion_tokens")
            if made is not None:  # the standard has it, and some servers leave it out
                check_whole(self.name, choice["finish_reason"], made, maximum_new_tokens, len(prompt))
            first = None if logprobs is None else self._by_id(_first_token(answer))
            ids = self._tokenizer(choice["text"], add_special_tokens=False)["input_ids"]
            completions.append(Completion(choice["text"], tuple(ids), choice["finish_reason"], first))
        return completions

    def token_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[list[float | None]]:
        """Return the log-probability (nats) of each prompt token (`Client.token_logprobs`)."""
        if not self._ways.echo:
            return super().token_logprobs(prompts)  # refuses
        rows: list[list[float | None]] = []
        answers = self._answers(prompts, {"max_tokens": 1, "logprobs": 1, "echo": True})
        for prompt, answer in zip(prompts, answers, strict=True):
            values = answer["choices"][0]["logprobs"]["token_logprobs"][: len(prompt)]
            rows.append([None, *map(finite, values[1:])])
        return rows

    def _answers(self, prompts: Sequence[Sequence[int]], more: Mapping[str, Any]) -> list[Any]:
        """Post each prompt by itself, since `usage` counts a whole request; return the answers in order."""
        common = {"model": self.model, **GREEDY, **self._ways.neutral, "n": 1, "stream": False}
        answers: list[Any] = []
        for start in range(0, len(prompts), AT_ONCE):
            batch = prompts[start : start + AT_ONCE]
            bodies = [{**common, **more, "prompt": self._written(prompt)} for prompt in batch]
            for prompt, answer in zip(batch, self.server.post_all(PATH, bodies), strict=True):
                count = _prompt_count(answer)
                if count != len(prompt):
                    raise RuntimeError(
                        f"{self.server.address} read a prompt of {len(prompt)} tokens as {count}: its tokenizer is not "
                        "the checkpoint's, or it adds special tokens"
                    )
                answers.append(answer)
        return answers

    def _written(self, prompt: Sequence[int]) -> list[int] | str:
        """Return a prompt as it goes out."""
        if self._ways.token_ids:
            return list(prompt)
        without = self._ways.without_start and _starts_with_bos(self._tokenizer, prompt)
        return _decoded(self._tokenizer, prompt[1:] if without else prompt)

    def _by_id(self, first: Mapping[str, float]) -> dict[int, float]:
        """Return log-probabilities by token id; what no single token writes is left out."""
        vocabulary = self._tokenizer.get_vocab()
        by_id = {}
        for text, value in first.items():
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            named = vocabulary.get(text, vocabulary.get(text.replace(" ", "▁")))
            token = ids[0] if len(ids) == 1 else named
            if token is not None:
                by_id[int(token)] = finite(value)
        return by_id


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of token ids, special tokens and every space included."""
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _starts_with_bos(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def _answer(server: HttpServer, body: Mapping[str, Any]) -> Any:
    """Return a server's answer to one request; None where it refuses."""
    try:
        return server.post_all(PATH, [body])[0]
    except RuntimeError:
        return None


def _has_text(answer: Any) -> bool:
    """Return whether an answer holds one completion and why it ended; it may be empty."""
    try:
        (choice,) = answer["choices"]
        return isinstance(choice["text"], str) and isinstance(choice["finish_reason"], str)
    except (KeyError, ValueError, TypeError):
        return False


def _prompt_count(answer: Any) -> int | None:
    """Return how many tokens the server counted in a prompt; None where it does not say."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    return usage.get("prompt_tokens") if isinstance(usage, dict) else None


def _first_token(answer: Any) -> dict[str, float]:
    """Return the first token's log-probabilities by its text; none where the server tells none.

    Completions have them as {text: value}, chats as a list of {"token", "logprob"}, which some servers use for both.
    """
    try:
        told = answer["choices"][0]["logprobs"]
        if "content" in told:
            return {row["token"]: row["logprob"] for row in told["content"][0]["top_logprobs"]}
        return dict(told["top_logprobs"][0])
    except (KeyError, IndexError, TypeError):
        return {}


def _echoes(answer: Any, count: int) -> bool:
    """Return whether an answer holds a log-probability for each token of a prompt but the first, and the new one."""
    try:
        values = answer["choices"][0]["logprobs"]["token_logprobs"]
        return len(values) == count + 1 and all(isinstance(value, float | int) for value in values[1:])
    except (KeyError, IndexError, TypeError):
        return False


def _unusable(
    server: HttpServer, length: int, counts: Mapping[tuple[bool, bool], int | None], problems: Sequence[str]
) -> str:
    """Return why no way of asking works."""
    if not counts:
        return f"{server.address} completes no text by {PATH}: {problems[-1]}"
    if all(count is None for count in counts.values()):
        return (
            f"{server.address} does not say how many tokens a prompt has (usage.prompt_tokens), so nothing shows that "
            "it reads prompts as the checkpoint's tokenizer does"
        )
    return (
        f"{server.address} reads a templated prompt of {length} tokens as "
        f"{' or '.join(str(count) for count in counts.values())}: its tokenizer is not the checkpoint's, or it reads "
        "special tokens as plain text"
    )
