"""Chat templates: an instruction becomes token ids, always with the model's own template.

A tokenizer can carry chat settings (`with_chat`, `aird.models.loading.load_tokenizer`): a system prompt, arguments of
the template, the tags of thoughts. Every use of the template follows them, so no caller can forget them. Without them
no system prompt is added unless one is given. The date is always `TODAY`. Nothing is padded.

The *post-instruction tokens* are those that the template puts after the instruction, up to and including the
generation prompt; candidate directions live on them (Arditi et al.,
arXiv 2406.11717, section 2.3).

A model that thinks is asked behind a *closed empty thought*, as if it had thought already: what follows is its answer.
Only the completions of a suite with `think: true` may think.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from aird.settings.models import Chat, Thinking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Endings that tokenisers treat differently, so that the common suffix of the three
# holds only tokens that no instruction can merge with.
_PROBES = ("Name a colour.", "what is 2 + 2", 'Say "yes"')
# Texts that a template has to write as they are: besides, one with lines, and with characters that markup escapes.
_LITERAL = (*_PROBES, "First: <b>\n\n  it's 2 & 3")
_takes_parts: dict[str, bool] = {}  # by template
# What templates that ask for the date get (Llama 3.2, SmolLM3, gpt-oss), so that a model has the same prompts each day.
TODAY = datetime(2026, 1, 1)
# The tags by which a template that knows of thoughts is recognised.
THINKING_TAGS = (
    Thinking(start="<think>", end="</think>"),
    Thinking(start="[THINK]", end="[/THINK]"),
    Thinking(start="<seed:think>", end="</seed:think>"),
    Thinking(start="<thinking>", end="</thinking>"),
    Thinking(start="<thought>", end="</thought>"),
    Thinking(start="<reasoning>", end="</reasoning>"),
    Thinking(start="◁think▷", end="◁/think▷"),  # Kimi-VL
    Thinking(start="<|START_THINKING|>", end="<|END_THINKING|>"),  # Command A
    Thinking(start="<|inner_prefix|>", end="<|inner_suffix|>"),  # Apertus
    Thinking(start="<|begin_of_thought|>", end="<|end_of_thought|>"),
    Thinking(start="<|channel|>analysis", end="<|channel|>final"),  # gpt-oss: where the answer's channel begins
)
HOW_TO_SAY = (
    "write chat.thinking ({start: ..., end: ...}) for this model, or chat.template_arguments that turn thinking off, "
    "such as {enable_thinking: false}, or chat.thinks: false if it never does; as options of a command, "
    "--thinking START END, --template-argument enable_thinking=false or --no-thinking"
)
# Where the tags are special tokens, which a completion's text never shows.
HOW_TO_CLOSE = (
    "these are special tokens, which vanish from a completion's text, so chat.thinking cannot tell thoughts from "
    "answers; write chat.template_arguments that turn thinking off, or give the model a chat_template.jinja whose "
    "generation prompt ends behind a closed thought, or write chat.thinks: false if it never thinks; as options of a "
    "command, --template-argument NAME=VALUE or --no-thinking"
)


def with_chat(tokenizer: PreTrainedTokenizerBase, chat: Chat | None) -> PreTrainedTokenizerBase:
    """Let a tokenizer carry chat settings; return it."""
    tokenizer.aird_chat = chat or Chat()
    return tokenizer


def chat_settings(tokenizer: PreTrainedTokenizerBase) -> Chat:
    """Return the chat settings that a tokenizer carries; without any, those that change nothing."""
    return getattr(tokenizer, "aird_chat", None) or Chat()


def chat_tokens(
    tokenizer: PreTrainedTokenizerBase,
    instruction: str,
    answer: str | None = None,
    system_prompt: str | None = None,
    think: bool = False,
    earlier: Sequence[tuple[str, str]] = (),
    prefill: str = "",
) -> list[int]:
    """Return the token ids of one templated instruction, or of an instruction and its answer.

    Args:
        tokenizer: a Transformers tokenizer with a chat template, and perhaps with chat settings.
        instruction: the user's text.
        answer: if given, the assistant's turn, ended with the template's own end marker.
        system_prompt: if given, put in front, behind that of the chat settings; a template without a system role gets
            it as the start of the instruction.
        think: let a model that thinks do so, instead of closing an empty thought.
        earlier: turns in front of the instruction, each an instruction and its reply.
        prefill: how the assistant's turn begins; it is left open, and no `answer` goes with it.

    Raises:
        ValueError: as of `chat_text`.
    """
    text = chat_text(tokenizer, instruction, answer, system_prompt, think, earlier)
    return list(tokenizer(text + prefill, add_special_tokens=False)["input_ids"])


def chat_text(
    tokenizer: PreTrainedTokenizerBase,
    instruction: str,
    answer: str | None = None,
    system_prompt: str | None = None,
    think: bool = False,
    earlier: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the text that `chat_tokens` makes tokens of, without `prefill`; arguments as there.

    Raises:
        ValueError: the tokenizer has no chat template, the model is to think though its template arguments turn that
            off, or the template opens a thought with words of its own.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "this model has no chat template, so it cannot be asked to refuse: use the chat (instruct) version "
            "of the model, or put a chat_template.jinja into its folder"
        )
    chat = chat_settings(tokenizer)
    asked = [*(turn[0] for turn in earlier), instruction]
    messages = _messages(tokenizer, asked[0], system_prompt)
    for (_, reply), following in zip(earlier, asked[1:], strict=True):
        messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": following}]
    text = render(tokenizer, messages, True)
    if chat.thinking:
        text = _thoughtful(tokenizer, text, chat.thinking, think)
    if answer is not None:
        whole = render(tokenizer, [*messages, {"role": "assistant", "content": answer}], False)
        # Behind the very prompt: templates write the thought of an answered turn in other ways.
        text = whole if chat == Chat() else text + answer + whole.rpartition(answer.strip())[2]
    return text


def conversation_tokens(tokenizer: PreTrainedTokenizerBase, instruction: str, reply: str) -> list[int]:
    """Return the token ids that ask for what follows an instruction and its reply: so a judge of both is asked.

    One that thinks answers behind a closed empty thought. The tokenizer and the errors are those of `chat_tokens`.
    """
    messages = [*_messages(tokenizer, instruction), {"role": "assistant", "content": reply}]
    text = render(tokenizer, messages, True)
    if thinking := chat_settings(tokenizer).thinking:
        text = _thoughtful(tokenizer, text, thinking, False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def opens_thought(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the generation prompt of a model that thinks ends inside a thought, where a reply then begins."""
    thinking = chat_settings(tokenizer).thinking
    return isinstance(thinking, Thinking) and _thought(_generation_prompt(tokenizer), thinking)[0] == "open"


def split_thought(text: str, thinking: Thinking, opened: bool) -> tuple[str, str, bool]:
    """Split a completion into its thought, the answer behind it, and whether the thought is unfinished.

    Args:
        text: the completion.
        thinking: the model's tags.
        opened: whether the prompt opened a thought already.

    Returns:
        (thought with its tags, answer, unfinished); where the thought is unfinished there is no answer.
    """
    _, ended, answer = text.rpartition(thinking.end)
    if thinking.start in answer or (opened and not ended):
        return text, "", True
    return text[: len(text) - len(answer)], answer.lstrip() if ended else answer, False


def check_chat(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a tokenizer's chat settings fit its template, and that this writes instructions as they are.

    Raises:
        ValueError: the template leaves out or alters an instruction, it does not know an argument, it knows of thoughts
            that no setting is about, or a tag of thoughts is lost when token ids become text.
    """
    chat = chat_settings(tokenizer)
    template = _template_text(tokenizer)
    for probe in _LITERAL:
        if probe not in render(tokenizer, _messages(tokenizer, probe), True):
            raise ValueError(
                f"the chat template does not write the instruction {probe!r} as it is; mend the model's "
                "chat_template.jinja, so that the content of a message stands in the text"
            )
    for name in chat.template_arguments:
        if not re.search(rf"\b{name}\b", template):
            raise ValueError(f"the chat template does not use `{name}`; leave it out of chat.template_arguments")
    if chat.thinking is None and chat.thinks:
        for tags in THINKING_TAGS:
            known = tags.start in template or tags.end in template
            if known and _thought(_generation_prompt(tokenizer), tags)[0] != "closed":
                vanish = _vanishes(tokenizer, tags.start) or _vanishes(tokenizer, tags.end)
                raise ValueError(
                    f"this model thinks: its chat template knows {tags.start} or {tags.end}, and thoughts would be "
                    f"judged as answers; {HOW_TO_CLOSE if vanish else HOW_TO_SAY}"
                )
    elif chat.thinking:
        for tag in (chat.thinking.start, chat.thinking.end):
            if _vanishes(tokenizer, tag):
                raise ValueError(f"chat.thinking: {tag!r} cannot be a tag: {HOW_TO_CLOSE}")
        chat_tokens(tokenizer, _PROBES[0])  # a thought that cannot be closed


def _vanishes(tokenizer: PreTrainedTokenizerBase, tag: str) -> bool:
    """Return whether a tag, or a part of it, is lost when token ids become the text that judges read."""
    ids = tokenizer(f"{tag}\n", add_special_tokens=False)["input_ids"]
    return tag not in tokenizer.decode(ids, skip_special_tokens=True)


def check_no_thoughts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Check that a model of which no setting says that it thinks does not do so in most of its replies.

    Raises:
        ValueError: most begin with a tag of thoughts.
    """
    starts = tuple(tags.start for tags in THINKING_TAGS)
    chat = chat_settings(tokenizer)
    if chat.thinking is None and chat.thinks and texts:
        thoughts = sum(text.lstrip().startswith(starts) for text in texts)
        if 2 * thoughts > len(texts):
            raise ValueError(
                f"this model thinks: {thoughts} of {len(texts)} replies begin with a thought; {HOW_TO_SAY}"
            )


def chat_record(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """Return what a manifest says about the chat: settings, closed thought, the template's own system prompt, its date.

    Each stands there only where there is one, so a plain model's record is empty.
    """
    chat = chat_settings(tokenizer)
    inserted = default_system_prompt(tokenizer)
    return {
        **({} if chat == Chat() else {"settings": chat.model_dump()}),
        **({"closed_thought": _closed_thought(tokenizer, chat.thinking)} if chat.thinking else {}),
        **({"template_system_prompt": inserted} if inserted else {}),
        **({"date": TODAY.date().isoformat()} if "strftime_now" in _template_text(tokenizer) else {}),
    }


def default_system_prompt(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the text that the template puts in front of a conversation that has no system prompt; None if none.

    What stands in front of a first user message is compared with what stands in front of a later one. Where the
    template takes a system prompt at the same place, what is returned is its text, else all of what is in front.
    """
    first, second, mark = _PROBES[0], _PROBES[1], "Mind the step"
    turns = [{"role": "user", "content": first}, {"role": "assistant", "content": "Blue."}]
    alone = render(tokenizer, turns[:1], True).partition(first)[0]
    try:
        whole = render(tokenizer, [*turns, {"role": "user", "content": second}], True)
        between = whole.partition("Blue.")[2].partition(second)[0]
    except Exception:  # a template raises what it likes for turns that it does not allow
        between = alone
    try:
        before, there, after = (
            render(tokenizer, [{"role": "system", "content": mark}, *turns[:1]], True)
            .partition(first)[0]
            .partition(mark)
        )
    except Exception:
        before, there, after = "", "", ""
    if there and alone.startswith(before) and alone.endswith(after) and len(alone) > len(before) + len(after):
        return alone[len(before) : len(alone) - len(after)]
    inserted = alone.removeprefix(getattr(tokenizer, "bos_token", None) or "")
    common = common_prefix_length([inserted[::-1], between[::-1]])
    inserted = inserted[: len(inserted) - common]
    words = inserted
    for token in sorted(tokenizer.get_added_vocab(), key=len, reverse=True):
        words = words.replace(token, "")
    return inserted if any(character.isalpha() for character in words) else None


def _messages(
    tokenizer: PreTrainedTokenizerBase, instruction: str, system_prompt: str | None = None
) -> list[dict[str, str]]:
    prompts = [text for text in (chat_settings(tokenizer).system_prompt, system_prompt) if text is not None]
    if prompts:
        return _with_system_prompt(tokenizer, "\n\n".join(prompts), instruction)
    return [{"role": "user", "content": instruction}]


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], generation: bool, **more: Any
) -> str:
    """Return a conversation as the tokenizer's chat template writes it, by its chat settings, on `TODAY`.

    A template that writes nothing of a text, as those of some models of vision and language, gets a list of one part.

    Args:
        tokenizer: with a chat template.
        messages: each with `role` and `content`, a text.
        generation: whether the model is to go on.
        more: arguments of the template, before those of the chat settings.

    Raises:
        ValueError: the template fails.
    """
    template = _template_text(tokenizer)
    try:
        if template not in _takes_parts:
            _takes_parts[template] = _needs_parts(tokenizer)
        text = _written(tokenizer, messages, _takes_parts[template], generation, **more)
    except Exception as error:  # a template raises what it likes
        raise ValueError(
            f"the model's chat template fails ({type(error).__name__}: {error}); mend its chat_template.jinja, or give "
            "it what it asks for by chat settings"
        ) from error
    return text


def _needs_parts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the template writes an instruction that is a list of parts, and none that is a text."""
    shown = []
    for parts in (False, True):
        try:
            text = _written(tokenizer, [{"role": "user", "content": _PROBES[0]}], parts, True)
        except Exception:  # a template raises what it likes
            text = ""
        shown.append(_PROBES[0] in text)
    return shown == [False, True]


def _written(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    parts: bool,
    generation: bool,
    **more: Any,
) -> str:
    turns: list[Any] = [*messages]
    if parts:
        turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in messages]
    arguments = {"strftime_now": TODAY.strftime, **chat_settings(tokenizer).template_arguments, **more}
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation, **arguments))


def _with_system_prompt(
    tokenizer: PreTrainedTokenizerBase, system_prompt: str, instruction: str
) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system_prompt}, {"role": "user", "content": instruction}]
    try:
        shown = render(tokenizer, messages, True)
    except Exception:  # a template raises what it likes for a role that it does not know
        shown = ""
    # Templates trim it: YAML's `|` ends a text with a new line.
    if shown and system_prompt.strip() in shown:
        return messages
    return [{"role": "user", "content": f"{system_prompt}\n\n{instruction}"}]


def _template_text(tokenizer: PreTrainedTokenizerBase) -> str:
    template = tokenizer.chat_template
    return "\n".join(template.values()) if isinstance(template, dict) else str(template)


def _generation_prompt(tokenizer: PreTrainedTokenizerBase, **more: Any) -> str:
    """Return what the template puts after an instruction that is to be answered."""
    return render(tokenizer, _messages(tokenizer, _PROBES[0]), True, **more).rpartition(_PROBES[0])[2]


def _thought(prompt: str, thinking: Thinking) -> tuple[str, int]:
    """Return whether a generation prompt has a thought that is "open" or "closed", or "none", and where it starts."""
    start, end = prompt.rfind(thinking.start), prompt.rfind(thinking.end)
    return ("none" if start == end == -1 else "closed" if end > start else "open"), start


def _closed_thought(tokenizer: PreTrainedTokenizerBase, thinking: Thinking) -> str:
    """Return an empty thought, in the form that the template itself writes where it turns thinking off."""
    own = _generation_prompt(tokenizer, enable_thinking=False)
    state, start = _thought(own, thinking)
    return own[start:] if state == "closed" and start >= 0 else f"{thinking.start}\n\n{thinking.end}\n\n"


def _thoughtful(tokenizer: PreTrainedTokenizerBase, text: str, thinking: Thinking, think: bool) -> str:
    """Return a prompt that ends behind a closed empty thought, or as the template leaves it for a model that thinks."""
    prompt = _generation_prompt(tokenizer)
    state, start = _thought(prompt, thinking)
    if think and state == "closed":
        raise ValueError(
            "the suite asks with `think: true`, but the model's chat settings or its template turn thinking off; leave "
            "`think` or the template argument out"
        )
    if think or state == "closed":
        return text
    opening = prompt[start:] if state == "open" else ""
    if opening.removeprefix(thinking.start).strip() or not text.endswith(opening):
        raise ValueError(f"the chat template opens a thought with words of its own, {opening!r}; it cannot be closed")
    return text[: len(text) - len(opening)] + _closed_thought(tokenizer, thinking)


def post_instruction_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens after the instruction, up to the generation prompt.

    Raises:
        ValueError: the template puts no token after the instruction.
    """
    suffix = _common_suffix([chat_tokens(tokenizer, probe) for probe in _PROBES])
    if not suffix:
        raise ValueError("the chat template puts no token after the instruction: it lacks a generation prompt")
    return suffix


def template_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens that the template puts in front of every instruction, its system prompt included."""
    probes = [chat_tokens(tokenizer, probe) for probe in _PROBES]
    return probes[0][: common_prefix_length(probes)]


def renders_alike(one: Any, other: Any) -> bool:
    """Return whether two tokenizers make the same tokens of an instruction, its template included."""
    return all(chat_tokens(one, probe) == chat_tokens(other, probe) for probe in _PROBES)


def common_prefix_length(sequences: Sequence[Sequence[Any]]) -> int:
    """Return how many leading tokens, or characters, all sequences share."""
    length = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length


def _common_suffix(sequences: Sequence[Sequence[int]]) -> list[int]:
    length = common_prefix_length([list(reversed(sequence)) for sequence in sequences])
    return list(sequences[0][len(sequences[0]) - length :])
