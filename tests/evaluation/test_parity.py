"""The check of an engine against Transformers, with hand-made answers; the real one is tested with `serving`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from aird.evaluation.engine import Completion
from aird.evaluation.parity import ParityError, check_parity, compare_first_tokens, first_token_logprobs


class Server:
    """Tells first tokens from a list, and remembers what it was asked."""

    name = "vLLM"

    def __init__(self, first_tokens: Sequence[dict[int, float]]) -> None:
        self.first_tokens = first_tokens
        self.asked: list[Any] = []

    def complete(
        self, prompts: Sequence[Sequence[int]], maximum_new_tokens: int, *, logprobs: int | None = None
    ) -> list[Completion]:
        self.asked.append((list(map(list, prompts)), maximum_new_tokens, logprobs))
        return [Completion("", (1,), "stop", logprobs) for logprobs in self.first_tokens]


def parity(
    served: Sequence[dict[int, float]],
    expected: Sequence[Sequence[float]],
    tolerance: float = 0.25,
    unpatched: Sequence[Sequence[float]] | None = None,
) -> Any:
    client: Any = Server(served)
    prompts = [[1]] * len(served)
    sides = [side and [torch.tensor(row) for row in side] for side in (expected, unpatched)]
    return check_parity(client, prompts, sides[0] or [], tolerance, sides[1])


def test_first_token_logprobs(llama: Any, prompts: list[list[int]]) -> None:
    result = first_token_logprobs(llama, prompts)
    for prompt, logprobs in zip(prompts, result, strict=True):
        exponentials = llama(input_ids=torch.tensor([prompt])).logits[0, -1].double().exp()
        assert logprobs.dtype == torch.float64
        torch.testing.assert_close(logprobs, (exponentials / exponentials.sum()).log(), atol=1e-5, rtol=0)


def test_parity_by_hand() -> None:
    result = parity([{0: -0.5, 2: -1.0}, {1: -0.2, 0: -3.0}], [[-0.6, -9.0, -1.0], [-2.0, -0.3, -9.0]])
    assert result == {
        "prompts": 2,
        "largest_difference": pytest.approx(0.1),
        "upper_quartile_difference": pytest.approx(0.1),
        "same_first_token": 2,
    }


def test_parity_allows_a_near_tie() -> None:
    """Two tokens of almost equal probability may change places; both are compared."""
    result = parity([{0: -0.70, 1: -0.71}], [[-0.72, -0.66]])
    assert (result["largest_difference"], result["same_first_token"]) == (pytest.approx(0.05), 0)


def test_parity_forgives_a_quarter_of_the_prompts_and_no_nan() -> None:
    """Rounding moves single prompts far; a checkpoint that is loaded wrongly is wrong on most."""
    right, wrong = ({0: -0.5}, [-0.5, -9.0]), ({0: -0.5}, [-1.5, -9.0])
    cases = [right, right, right, wrong]
    result = parity(*(list(side) for side in zip(*cases, strict=True)))
    assert (result["upper_quartile_difference"], result["largest_difference"]) == (0, 1)
    with pytest.raises(ParityError, match=r"quarter of 4 prompts .* 1.000 nats"):
        parity(*(list(side) for side in zip(*[right, right, wrong, wrong], strict=True)))
    with pytest.raises(ParityError, match="nan nats"):
        parity(*(list(side) for side in zip(*[right, right, right, ({0: -0.5}, [float("nan"), -9.0])], strict=True)))


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        ({0: -0.5, 1: -2.0}, [-0.8, -2.0]),  # the same token, too far off
        ({0: -0.5, 1: -2.0}, [-0.5, -0.1]),  # Transformers' own first token, too far off
        ({0: -0.5}, [-0.5, -0.4]),  # Transformers' first token is not even a candidate
        ({0: -0.5}, [float("nan"), -9.0]),
    ],
)
def test_parity_fails(served: dict[int, float], expected: list[float]) -> None:
    with pytest.raises(ParityError, match="vLLM and Transformers disagree"):
        parity([{0: 0.0}, served], [[0.0, -9.0], expected])


def test_parity_where_half_of_the_first_tokens_have_no_probability() -> None:
    """llama.cpp tells none of a token that is a part of a character: the token itself must then be the likeliest."""
    likeliest, other, told = [-9.0, -0.1], [-0.1, -9.0], ({0: -0.2}, [-0.1, -9.0])
    result = parity([{}, {}, told[0], told[0]], [likeliest, likeliest, told[1], told[1]])  # token 1 is served
    assert (result["prompts"], result["same_first_token"]) == (4, 4)
    assert result["largest_difference"] == pytest.approx(0.1)
    for expected in ([other, other], [likeliest, other, other]):
        rows = [{} for _ in expected], expected
        with pytest.raises(ParityError, match="inf nats"):
            parity([*rows[0], told[0]], [*rows[1], told[1]])
    with pytest.raises(ParityError, match="inf nats"):
        parity([{}, {}, told[0]], [likeliest, likeliest, told[1]])  # more than half


def test_parity_finds_a_patch_that_is_left_out() -> None:
    """Even one that changes less than the tolerance; one that changes less than rounding does cannot be told apart."""
    patched, plain = [[-0.50, -1.50], [-0.80, -1.20]], [[-0.60, -1.40], [-0.70, -1.30]]

    def near(rows: list[list[float]], rounding: float) -> list[dict[int, float]]:
        return [{0: row[0] + rounding, 1: row[1] - rounding} for row in rows]

    result = parity(near(patched, 0.01), patched, unpatched=plain)
    assert result["distance_to_patched"] == pytest.approx(0.01)
    assert 0.08 < result["distance_to_unpatched"] < 0.12
    assert "distance_to_patched" not in parity(near(patched, 0.01), patched)
    with pytest.raises(ParityError, match="the patch is not on what is served"):
        parity(near(plain, 0.01), patched, unpatched=plain)
    # Rounding of twice the patch's effect.
    assert parity(near(patched, 0.2), patched, unpatched=plain)["prompts"] == 2


def test_first_tokens_of_two_servers_by_hand() -> None:
    def completions(*first: dict[int, float]) -> list[Completion]:
        return [Completion("", (1,), "length", logprobs) for logprobs in first]

    one = completions({0: -0.1, 1: -2.0}, {0: -0.7, 1: -0.8}, {0: -0.1, 1: -3.0}, {0: -0.1, 1: -3.0})
    two = completions({0: -0.2, 1: -2.0}, {0: -0.9, 1: -0.6}, {0: -0.1, 1: -3.5}, {2: -0.1, 1: -3.0})
    assert compare_first_tokens(one, two) == {
        "prompts": 4,
        "largest_difference": None,  # the last prompt's first token of one side is unknown to the other
        "upper_quartile_difference": pytest.approx(0.2),
        "same_first_token": 2,
    }
    assert compare_first_tokens(one[:3], two[:3])["largest_difference"] == pytest.approx(0.2)
    untold = completions({}, {0: -0.7}, {0: -0.1}, {0: -0.1})
    assert compare_first_tokens(untold, untold)["largest_difference"] is None
    assert compare_first_tokens(untold, untold)["same_first_token"] == 4


def test_parity_asks_for_one_token() -> None:
    server: Any = Server([{0: 0.0}])
    check_parity(server, [[5, 6]], [torch.tensor([0.0, -9.0])], 0.1)
    assert server.asked == [([[5, 6]], 1, 5)]
