"""Chat templates and the tokens after the instruction."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from aird.prompts.chat import chat_tokens, common_prefix_length, post_instruction_tokens


def test_one_instruction(tokenizer: Any) -> None:
    tokens = chat_tokens(tokenizer, "Name a colour.")
    assert tokenizer.decode(tokens) == "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n"
    # Special tokens are one token each.
    assert tokens.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2
    assert tokens.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1


def test_an_instruction_and_its_answer(tokenizer: Any) -> None:
    tokens = chat_tokens(tokenizer, "Name a colour.", "Blue.")
    expected = "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\nBlue.<|im_end|>\n"
    assert tokenizer.decode(tokens) == expected
    asked = chat_tokens(tokenizer, "Name a colour.")
    assert tokens[: len(asked)] == asked


def test_no_token_is_added_in_front(tokenizer: Any) -> None:
    """A template brings its own beginning-of-text token; the tokenizer must not add a second one."""
    with_start = copy.deepcopy(tokenizer)
    with_start.add_special_tokens({"bos_token": "<|endoftext|>"})
    with_start.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    tokens = chat_tokens(with_start, "Name a colour.")
    start = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert tokens == [start, *chat_tokens(tokenizer, "Name a colour.")]


def test_a_tokenizer_without_a_template(tokenizer: Any) -> None:
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    with pytest.raises(ValueError, match=r"no chat template.*chat \(instruct\) version"):
        chat_tokens(plain, "Hello.")
    with pytest.raises(ValueError, match="no chat template"):
        post_instruction_tokens(plain)


def test_post_instruction_tokens(tokenizer: Any) -> None:
    tokens = post_instruction_tokens(tokenizer)
    assert [tokenizer.decode([token]) for token in tokens] == ["<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"]
    for instruction in ("Name a colour.", "x", "Is it?\n", "<b>"):
        assert chat_tokens(tokenizer, instruction)[-len(tokens) :] == tokens


def test_a_template_that_ends_with_the_instruction(tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ValueError, match="no token after the instruction"):
        post_instruction_tokens(bare)


def test_common_prefix_length() -> None:
    assert common_prefix_length([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2
    assert common_prefix_length([[1, 2, 3], [2, 2, 3]]) == 0
    assert common_prefix_length([[1, 2, 3]]) == 3
    assert common_prefix_length([[1, 9, 3], [1, 8, 3]]) == 1  # nothing counts after a difference
    assert common_prefix_length([[], [1]]) == 0
