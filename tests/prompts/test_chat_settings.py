"""Chat settings: what they do to every prompt, which templates are refused without them, and how replies are split."""

from __future__ import annotations

import copy
import time
from datetime import datetime
from typing import Any

import pytest
from pydantic import ValidationError
from thinking_templates import (
    CHANNEL_TOKENS,
    CHANNELS,
    COMMAND,
    COMMAND_TOKENS,
    DATED,
    DEEPSEEK,
    DEFAULT_SYSTEM_PROMPT,
    NO_SYSTEM_ROLE,
    PARTS,
    QWEN,
    TODAYS,
)
from tiny_model import CHAT_TEMPLATE

from aird.evaluation.judges.classifier import Classifier, question
from aird.prompts.chat import (
    THINKING_TAGS,
    chat_record,
    chat_tokens,
    check_chat,
    check_no_thoughts,
    conversation_tokens,
    default_system_prompt,
    opens_thought,
    post_instruction_tokens,
    split_thought,
    with_chat,
)
from aird.settings.models import Chat, Thinking

TAGS = Thinking(start="<think>", end="</think>")
INSTRUCTION = "Is <think> a tag?"  # must not be taken for the template's own


def templated(tokenizer: Any, template: str, **settings: Any) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return with_chat(other, Chat(**settings))


def text(tokenizer: Any, *arguments: Any, **more: Any) -> str:
    return str(tokenizer.decode(chat_tokens(tokenizer, *arguments, **more)))


def turn(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


ASKED = turn("user", INSTRUCTION) + "<|im_start|>assistant\n"


def test_settings_that_say_nothing_change_nothing(tokenizer: Any) -> None:
    plain = with_chat(copy.deepcopy(tokenizer), None)
    for arguments in ((INSTRUCTION,), (INSTRUCTION, "Yes."), (INSTRUCTION, None, "Be kind.")):
        assert chat_tokens(plain, *arguments) == chat_tokens(tokenizer, *arguments)
    assert chat_record(plain) == {}


def test_a_system_prompt_stands_in_every_conversation(tokenizer: Any) -> None:
    chat = templated(tokenizer, CHAT_TEMPLATE, system_prompt="Be kind.")
    assert text(chat, INSTRUCTION) == turn("system", "Be kind.") + ASKED
    assert text(chat, INSTRUCTION, "Yes.") == turn("system", "Be kind.") + ASKED + "Yes.<|im_end|>\n"
    # That of a patch comes behind it.
    assert text(chat, INSTRUCTION, system_prompt="Refuse.") == turn("system", "Be kind.\n\nRefuse.") + ASKED
    assert post_instruction_tokens(chat) == post_instruction_tokens(tokenizer)
    without_role = templated(tokenizer, NO_SYSTEM_ROLE, system_prompt="Be kind.")
    assert text(without_role, INSTRUCTION) == turn("user", f"Be kind.\n\n{INSTRUCTION}") + "<|im_start|>assistant\n"


@pytest.mark.parametrize("written", ["Be kind.\n", "\n Be kind.", "Be kind. "])
def test_a_system_prompt_is_trimmed_by_a_template_and_stays_one(tokenizer: Any, written: str) -> None:
    """As Llama 3's template does; that of a patch stays one as well."""
    template = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
    chat = templated(tokenizer, template, system_prompt=written)
    assert text(chat, INSTRUCTION) == turn("system", "Be kind.") + ASKED
    plain = templated(tokenizer, template)
    assert text(plain, INSTRUCTION, system_prompt=written) == turn("system", "Be kind.") + ASKED
    without_role = templated(tokenizer, NO_SYSTEM_ROLE, system_prompt=" ")
    assert text(without_role, INSTRUCTION).startswith("<|im_start|>user\n")


def test_a_template_of_parts_gets_parts(tokenizer: Any) -> None:
    """Every text stands in the conversation as with a template of texts."""
    plain, parts = (templated(tokenizer, each, system_prompt="Be kind.") for each in (CHAT_TEMPLATE, PARTS))
    check_chat(parts)
    assert default_system_prompt(parts) is None
    for arguments in (
        {},
        {"answer": "Yes."},
        {"system_prompt": "Refuse."},
        {"earlier": [("What is 2 + 2?", "4.")]},
        {"prefill": "Sure"},
    ):
        assert text(parts, INSTRUCTION, **arguments) == text(plain, INSTRUCTION, **arguments), arguments
    assert conversation_tokens(parts, INSTRUCTION, "No.") == conversation_tokens(plain, INSTRUCTION, "No.")
    assert post_instruction_tokens(parts) == post_instruction_tokens(plain)


@pytest.mark.parametrize(
    "content", ["''", "message['content'][:9]", "message['content'] | e", "message['content'].split() | join(' ')"]
)
def test_a_template_that_does_not_write_the_instruction_as_it_is(tokenizer: Any, content: str) -> None:
    with pytest.raises(ValueError, match=r"chat template does not write the instruction .* as it is; mend the model's"):
        check_chat(templated(tokenizer, CHAT_TEMPLATE.replace("message['content']", f"({content})")))
    trimmed = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
    check_chat(templated(tokenizer, trimmed))


def test_template_arguments_reach_the_template(tokenizer: Any) -> None:
    chat = templated(tokenizer, QWEN, template_arguments={"enable_thinking": False})
    assert text(chat, INSTRUCTION) == f"{ASKED}<think>\n\n</think>\n\n"
    # The answered conversation goes on behind the very prompt.
    assert text(chat, INSTRUCTION, "Yes.") == f"{ASKED}<think>\n\n</think>\n\nYes.<|im_end|>\n"


@pytest.mark.parametrize(("template", "opened"), [(QWEN, ""), (DEEPSEEK, "<think>\n")])
def test_an_empty_thought_is_closed_unless_the_model_may_think(tokenizer: Any, template: str, opened: str) -> None:
    chat = templated(tokenizer, template, thinking=TAGS)
    assert text(chat, INSTRUCTION) == f"{ASKED}<think>\n\n</think>\n\n"
    assert text(chat, INSTRUCTION, "Yes.") == f"{ASKED}<think>\n\n</think>\n\nYes.<|im_end|>\n"
    assert text(chat, INSTRUCTION, think=True) == ASKED + opened
    assert opens_thought(chat) == bool(opened)
    assert tokenizer.decode(post_instruction_tokens(chat)).endswith("<think>\n\n</think>\n\n")
    assert chat_record(chat)["closed_thought"] == "<think>\n\n</think>\n\n"
    check_chat(chat)


def test_an_empty_thought_is_not_added_twice(tokenizer: Any) -> None:
    chat = templated(tokenizer, QWEN, template_arguments={"enable_thinking": False}, thinking=TAGS)
    assert text(chat, INSTRUCTION) == f"{ASKED}<think>\n\n</think>\n\n"
    with pytest.raises(ValueError, match="turn thinking off"):
        chat_tokens(chat, INSTRUCTION, think=True)


def test_an_empty_thought_has_the_templates_own_form(tokenizer: Any) -> None:
    chat = templated(tokenizer, QWEN.replace("<think>\\n\\n</think>\\n\\n", "<think></think>\\n"), thinking=TAGS)
    assert text(chat, INSTRUCTION) == f"{ASKED}<think></think>\n"


def test_a_template_that_begins_the_thought_itself_is_refused(tokenizer: Any) -> None:
    chat = templated(tokenizer, DEEPSEEK.replace("<think>\\n", "<think>\\nWell,"), thinking=TAGS)
    with pytest.raises(ValueError, match="words of its own"):
        chat_tokens(chat, INSTRUCTION)


@pytest.mark.parametrize("template", [QWEN, DEEPSEEK, DEEPSEEK.replace("<think>\\n", "")])
def test_a_model_that_thinks_is_refused_until_the_settings_say_so(tokenizer: Any, template: str) -> None:
    with pytest.raises(ValueError, match=r"this model thinks.*write chat\.thinking.*enable_thinking: false"):
        check_chat(templated(tokenizer, template))
    check_chat(templated(tokenizer, template, thinks=False))
    assert text(templated(tokenizer, template, thinks=False), INSTRUCTION).endswith(("assistant\n", "<think>\n"))


def test_templates_that_do_not_think_are_not_refused(tokenizer: Any) -> None:
    for template in (CHAT_TEMPLATE, DEFAULT_SYSTEM_PROMPT, DATED, NO_SYSTEM_ROLE):
        check_chat(templated(tokenizer, template))
    check_chat(templated(tokenizer, QWEN, template_arguments={"enable_thinking": False}))


def test_an_argument_that_the_template_does_not_know_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="does not use `enable_thinkin`"):
        check_chat(templated(tokenizer, QWEN, template_arguments={"enable_thinkin": False}))


def test_tags_that_vanish_from_text_are_refused(tokenizer: Any) -> None:
    special = Thinking(start="<|im_start|>", end="</think>")
    with pytest.raises(ValueError, match="special token"):
        check_chat(templated(tokenizer, CHAT_TEMPLATE, thinking=special))


@pytest.mark.parametrize(
    ("template", "tokens", "tags"),
    [
        (CHANNELS, CHANNEL_TOKENS, {"start": "<|channel|>analysis<|message|>", "end": "<|channel|>final<|message|>"}),
        (COMMAND, COMMAND_TOKENS, {"start": "<|START_THINKING|>", "end": "<|END_THINKING|>"}),
    ],
)
def test_thoughts_between_special_tokens_are_refused_until_they_are_turned_off(
    tokenizer: Any, template: str, tokens: list[str], tags: dict[str, str]
) -> None:
    """A completion's text would run thought and answer together, whatever the settings."""
    special = copy.deepcopy(tokenizer)
    special.add_special_tokens({"additional_special_tokens": tokens})
    with pytest.raises(ValueError, match=r"this model thinks.*special tokens.*chat\.template_arguments.*jinja"):
        check_chat(templated(special, template))
    with pytest.raises(ValueError, match=r"chat\.thinking: .* special tokens.*chat\.template_arguments.*jinja"):
        check_chat(templated(special, template, thinking=tags))
    check_chat(templated(special, template, thinks=False))
    if template == COMMAND:
        check_chat(templated(special, template, template_arguments={"reasoning": False}))
    else:
        closed = template.replace(
            "<|start|>assistant' }}{% endif %}", f"<|start|>assistant{tags['end']}' }}}}{{% endif %}}"
        )
        assert closed != template
        check_chat(templated(special, closed))


@pytest.mark.parametrize("tags", THINKING_TAGS, ids=lambda tags: tags.start)
def test_other_tags_of_thoughts_are_known(tokenizer: Any, tags: Thinking) -> None:
    template = QWEN.replace("</think>", tags.end).replace("<think>", tags.start)
    with pytest.raises(ValueError, match=r"this model thinks.*write chat\.thinking"):
        check_chat(templated(tokenizer, template))
    check_chat(templated(tokenizer, template, template_arguments={"enable_thinking": False}))
    check_chat(templated(tokenizer, template, thinking=tags))


def test_most_replies_with_a_thought_are_refused(tokenizer: Any) -> None:
    check_no_thoughts(tokenizer, ["<think>\nWell", "Yes.", "No: <think>"])
    with pytest.raises(ValueError, match="2 of 3 replies begin with a thought"):
        check_no_thoughts(tokenizer, ["<think>\nWell", "\n<think>", "Yes."])
    check_no_thoughts(templated(tokenizer, QWEN, thinking=TAGS), ["<think>\nWell"])


@pytest.mark.parametrize(
    ("completion", "opened", "answer", "unfinished"),
    [
        ("Yes.", False, "Yes.", False),
        (" Yes.", False, " Yes.", False),
        ("<think>\nI can't.\n</think>\n\nYes.", False, "Yes.", False),
        ("I can't.\n</think>\n\nYes.", True, "Yes.", False),
        ("I can't.", True, "", True),
        ("<think>\nI can't.", False, "", True),
        ("</think>Yes. <think>Or", False, "", True),
        ("a</think>b<think>c</think>Yes.", True, "Yes.", False),
        ("Well</think>", True, "", False),
    ],
)
def test_what_follows_the_thought_is_the_answer(completion: str, opened: bool, answer: str, unfinished: bool) -> None:
    thought, *rest = split_thought(completion, TAGS, opened)
    assert rest == [answer, unfinished]
    assert completion.startswith(thought) and completion.removeprefix(thought).lstrip() == answer.lstrip()


def test_a_system_prompt_of_the_templates_own_is_recorded(tokenizer: Any) -> None:
    inserted = {
        template: default_system_prompt(templated(tokenizer, template))
        for template in (CHAT_TEMPLATE, NO_SYSTEM_ROLE, DEEPSEEK, QWEN, DEFAULT_SYSTEM_PROMPT, DATED)
    }
    assert [text for text in inserted.values() if text] == [
        "You know all about bicycle pumps.",
        "<|im_start|>system\nIt is May.\n",
    ]
    assert inserted[DATED] and inserted[DEFAULT_SYSTEM_PROMPT]
    assert chat_record(templated(tokenizer, DEFAULT_SYSTEM_PROMPT)) == {
        "template_system_prompt": "You know all about bicycle pumps."
    }


def test_a_template_that_asks_for_the_date_gets_the_same_every_day(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dated = templated(tokenizer, TODAYS)
    prompts = [chat_tokens(dated, INSTRUCTION)]
    judge = Classifier(source={"path": "judge"})
    judged = [question(dated, judge, INSTRUCTION, "Yes.")]

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Tomorrow:
            return cls.fromtimestamp(time.time() + 24 * 60 * 60, tz)

    own = dated.apply_chat_template([{"role": "user", "content": INSTRUCTION}], tokenize=False)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Tomorrow)
    assert dated.apply_chat_template([{"role": "user", "content": INSTRUCTION}], tokenize=False) != own
    assert [chat_tokens(dated, INSTRUCTION)] == prompts
    assert [question(dated, judge, INSTRUCTION, "Yes.")] == judged
    assert "Today is 01 Jan 2026." in tokenizer.decode(prompts[0])
    assert chat_record(dated)["date"] == "2026-01-01"


@pytest.mark.parametrize(
    "values",
    [
        {"template_arguments": {"add_generation_prompt": False}},
        {"template_arguments": {"a b": 1}},
        {"template_arguments": {"names": ["x"]}},
        {"thinking": {"start": "<think>"}},
        {"thinking": {"start": "<think>", "end": "<think>"}},
        {"thinking": True},
        {"thinking": {"start": "<think>", "end": "</think>"}, "thinks": False},
        {"system_prompt": ""},
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Chat.model_validate(values)
