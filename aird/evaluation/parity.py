"""The check before anything is measured: an engine and Transformers must agree on a checkpoint.

A server can load a checkpoint without an error and return garbage. So before anything is recorded, both must agree on
the first token's log-probability for a few prompts.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
from transformers import PreTrainedModel

from aird.evaluation.engine import Client, Completion
from aird.models.dense import rounds_activations
from aird.models.loading import load_model

CANDIDATES = 5  # first tokens of each prompt whose log-probabilities are compared
QUANTISED_CACHE_ALLOWANCE = 4.0  # times the tolerance of the check, where only the engine's cache is quantised


class Agreement(TypedDict, total=False):
    """How far two sides agree on the first tokens of prompts.

    Attributes:
        prompts: how many.
        largest_difference, upper_quartile_difference: of log-probabilities, nats; None where it is unknown.
        same_first_token: on how many prompts.
        distance_to_patched, distance_to_unpatched: of a patch: root mean squares over the candidates, nats.
        key_value_cache_dtype, tolerance: of a quantised cache: its type, and what was allowed.
    """

    prompts: int
    largest_difference: float | None
    upper_quartile_difference: float | None
    same_first_token: int
    distance_to_patched: float
    distance_to_unpatched: float
    key_value_cache_dtype: str
    tolerance: float


class Expected(NamedTuple):
    """What Transformers says of the first tokens of prompts: log-probabilities, each [vocabulary] float64, nats.

    Attributes:
        prompts: token ids.
        logprobs: of the checkpoint with its patch.
        unpatched: without the patch; None where there is nothing to tell apart.
    """

    prompts: Sequence[Sequence[int]]
    logprobs: list[torch.Tensor]
    unpatched: list[torch.Tensor] | None


class ParityError(RuntimeError):
    """A server and Transformers disagree about a checkpoint: nothing measured on it would mean anything."""


@torch.no_grad()
def first_token_logprobs(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return the log-probabilities of the token after each prompt, each [vocabulary] float64, nats."""
    device = next(model.parameters()).device
    return [
        model(input_ids=torch.tensor([list(prompt)], device=device), use_cache=False, logits_to_keep=1)
        .logits[0, -1]
        .double()
        .log_softmax(-1)
        .cpu()
        for prompt in prompts
    ]


def expected_logprobs(
    checkpoint: Path, adapter: Path | None, merged: Path | None, prompts: Sequence[Sequence[int]]
) -> Expected:
    """Return what Transformers says of the first tokens, by which an engine is checked.

    Transformers runs base + adapter, a server perhaps the merged checkpoint: agreement checks the merge as well. But a
    module that rounds its inputs does so before an adapter's base matrix, and no more once it is merged.

    Args:
        checkpoint: the base.
        adapter: what is put on it; None leaves it plain.
        merged: what the engine runs, if the adapter is merged there.
        prompts: token ids.
    """
    if adapter is not None and merged is not None and rounds_activations(checkpoint):
        expected, unpatched = first_token_logprobs(load_model(merged), prompts), None
    else:
        model = load_model(checkpoint, adapter)
        expected, unpatched = first_token_logprobs(model, prompts), None
        if adapter is not None:
            from peft import PeftModel

            assert isinstance(model, PeftModel)
            with model.disable_adapter():
                unpatched = first_token_logprobs(model, prompts)
        del model
    if torch.cuda.is_available():
        # PyTorch keeps a freed model's memory, which the server would miss.
        gc.collect()
        torch.cuda.empty_cache()
    return Expected(prompts, expected, unpatched)


def check_served(client: Client, expected: Expected, tolerance: float, cache_dtype: str | None) -> Agreement:
    """Check an engine against Transformers (`check_parity`), whose key/value cache is never quantised.

    A quantised one moves log-probabilities by itself, so more is allowed then, though far less than what a checkpoint
    that is loaded wrongly shows; the record says so.

    Args:
        client: a server of the checkpoint.
        expected: what Transformers says.
        tolerance: as of `check_parity`, nats.
        cache_dtype: type of a quantised key/value cache; None of any other.

    Raises:
        ParityError: they disagree, or the patch is not on what is served.
    """
    if cache_dtype is None:
        return check_parity(client, expected.prompts, expected.logprobs, tolerance, expected.unpatched)
    allowed = QUANTISED_CACHE_ALLOWANCE * tolerance
    try:
        record = check_parity(client, expected.prompts, expected.logprobs, allowed, expected.unpatched)
    except ParityError as error:
        raise ParityError(
            f"{error}; or keys and values in {cache_dtype} alone do this, then raise parity_tolerance"
        ) from error
    return {**record, "key_value_cache_dtype": cache_dtype, "tolerance": allowed}


def check_parity(
    client: Client,
    prompts: Sequence[Sequence[int]],
    expected: Sequence[torch.Tensor],
    tolerance: float,
    unpatched: Sequence[torch.Tensor] | None = None,
) -> Agreement:
    """Compare the server's first tokens with those of Transformers.

    llama.cpp tells no log-probability of a token that is a part of a character. Where the token itself is the likeliest
    of Transformers, the prompt then counts as agreeing, of unknown difference; this holds for half of the prompts at
    most.

    Args:
        client: a server of the checkpoint.
        prompts: token ids.
        expected: Transformers' log-probabilities, one [vocabulary] tensor per prompt, nats.
        tolerance: difference allowed on the likeliest token of either side, nats.
        unpatched: the same as `expected` without the patch, where there is one: a server that leaves it out is found
            even where the patch changes less than the tolerance.

    Raises:
        ParityError: they disagree, or the patch is not on what is served.
    """
    completions = client.complete(prompts, 1, logprobs=CANDIDATES)
    differences, same, untold = [], 0, 0
    for completion, reference in zip(completions, expected, strict=True):
        served = completion.first_token_logprobs
        own = int(reference.argmax())
        if not served:
            if completion.token_ids[:1] == (own,) and untold < len(prompts) // 2:
                same, untold = same + 1, untold + 1
            else:
                differences.append(float("inf"))  # nothing shows that it is right
            continue
        likeliest = max(served, key=lambda token: served[token])
        same += likeliest == own
        compared = {likeliest} | ({own} if own in served else set())
        differences.append(max(abs(served[token] - reference[token].item()) for token in compared))
        if own not in served:
            differences[-1] = float("inf")
    broken = any(math.isnan(difference) for difference in differences)
    # Not the largest: rounding to bfloat16 alone moves one prompt in some dozens by half a nat, while
    # what loads wrongly is wrong on most prompts.
    quartile = _upper_quartile(differences)
    if broken or quartile > tolerance:
        raise ParityError(
            f"{client.name} and Transformers disagree on this checkpoint: on a quarter of {len(prompts)} prompts the "
            f"first token's log-probability differs by {math.nan if broken else quartile:.3f} nats or more (allowed: "
            f"{tolerance}). It is loaded wrongly by one of the two, so no rate is reported for it; compare the stored "
            "types with its quantization_config"
        )
    agreement = _agreement(differences, same, len(prompts))
    if unpatched is None:
        return agreement
    near, far = (_distance(completions, side) for side in (expected, unpatched))
    # Rounding alone leaves both distances alike where a patch changes little, the first small where it changes much.
    if 2 * far < near:
        raise ParityError(
            f"the patch is not on what is served: over {len(prompts)} prompts the first tokens' log-probabilities are "
            f"{far:.3f} nats from those of the checkpoint without it, and {near:.3f} from those with it, so no rate is "
            "reported; see the server's log, or serve the patch merged (`serve: merged`)"
        )
    return {**agreement, "distance_to_patched": near, "distance_to_unpatched": far}


def compare_first_tokens(one: Sequence[Completion], other: Sequence[Completion]) -> Agreement:
    """Compare the first tokens of the same prompts from two servers, with `CANDIDATES` log-probabilities each."""
    differences, same = [], 0
    for completions in zip(one, other, strict=True):
        first, second = (completion.first_token_logprobs or {} for completion in completions)
        if not first or not second:  # llama.cpp tells nothing of a token that is a part of a character
            same += completions[0].token_ids[:1] == completions[1].token_ids[:1]
            differences.append(math.inf)
            continue
        likeliest = {max(side, key=lambda token: side[token]) for side in (first, second)}
        same += len(likeliest) == 1
        known = likeliest <= first.keys() & second.keys()
        differences.append(max(abs(first[token] - second[token]) for token in likeliest) if known else math.inf)
    return _agreement(differences, same, len(differences))


def _agreement(differences: Sequence[float], same: int, prompts: int) -> Agreement:
    """Return a record of the differences on prompts; infinite ones, of unknown size, are null in it."""
    largest, quartile = max(differences), _upper_quartile(differences)
    return {
        "prompts": prompts,
        # Unknown where one side's first token is not among the other's candidates.
        "largest_difference": largest if math.isfinite(largest) else None,
        "upper_quartile_difference": quartile if math.isfinite(quartile) else None,
        "same_first_token": same,
    }


def _upper_quartile(differences: Sequence[float]) -> float:
    return sorted(differences)[math.ceil(0.75 * len(differences)) - 1]


def _distance(completions: Sequence[Completion], reference: Sequence[torch.Tensor]) -> float:
    """Return the root mean square, over prompts and candidates, of served minus reference log-probabilities, nats."""
    differences = [
        value - expected[token].item()
        for completion, expected in zip(completions, reference, strict=True)
        for token, value in (completion.first_token_logprobs or {}).items()
    ]
    return math.sqrt(math.fsum(difference**2 for difference in differences) / len(differences))
