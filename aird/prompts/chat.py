"""Chat templates: an instruction becomes token ids, always with the model's own template.

No system prompt is added unless one is given, and nothing is padded. The *post-instruction tokens*
are those that the template puts after the instruction, up to and including the
generation prompt; candidate directions live on them (Arditi et al.,
arXiv 2406.11717, section 2.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Endings that tokenisers treat differently, so that the common suffix of the three
# holds only tokens that no instruction can merge with.
_PROBES = ("Name a colour.", "what is 2 + 2", 'Say "yes"')


def chat_tokens(
    tokenizer: Any, instruction: str, answer: str | None = None, system_prompt: str | None = None
) -> list[int]:
    """Return the token ids of one templated instruction, or of an instruction and its answer.

    Args:
        tokenizer: a Transformers tokenizer with a chat template.
        instruction: the user's text.
        answer: if given, the assistant's turn, ended with the template's own end marker.
        system_prompt: if given, put in front; a template without a system role gets it as the start of the instruction.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "this model has no chat template, so it cannot be asked to refuse: use the chat (instruct) version "
            "of the model, or put a chat_template.jinja into its folder"
        )
    messages = [{"role": "user", "content": instruction}]
    if system_prompt is not None:
        messages = _with_system_prompt(tokenizer, system_prompt, instruction)
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer is None)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _with_system_prompt(tokenizer: Any, system_prompt: str, instruction: str) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system_prompt}, {"role": "user", "content": instruction}]
    try:
        shown = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception:  # a template raises what it likes for a role that it does not know
        shown = ""
    if system_prompt in shown:
        return messages
    return [{"role": "user", "content": f"{system_prompt}\n\n{instruction}"}]


def post_instruction_tokens(tokenizer: Any) -> list[int]:
    """Return the ids of the tokens after the instruction, up to the generation prompt.

    Raises:
        ValueError: the template puts no token after the instruction.
    """
    suffix = _common_suffix([chat_tokens(tokenizer, probe) for probe in _PROBES])
    if not suffix:
        raise ValueError("the chat template puts no token after the instruction: it lacks a generation prompt")
    return suffix


def common_prefix_length(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many leading tokens all sequences share."""
    length = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length


def _common_suffix(sequences: Sequence[Sequence[int]]) -> list[int]:
    length = common_prefix_length([list(reversed(sequence)) for sequence in sequences])
    return list(sequences[0][len(sequences[0]) - length :])
