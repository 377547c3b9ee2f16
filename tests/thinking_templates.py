"""Small chat templates that do what those of published models do: think, date themselves, bring a system prompt."""

from __future__ import annotations

from tiny_model import CHAT_TEMPLATE

_TURNS = (
    "{% for message in messages %}"
    "{% set content = message['content'].split('</think>')[-1] %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last and EMPTY %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ content + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
)
# As Qwen3: the model opens the thought itself, and an argument closes an empty one.
QWEN = _TURNS.replace("EMPTY", "true") + (
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)
# As DeepSeek-R1: the template opens the thought.
DEEPSEEK = _TURNS.replace("EMPTY", "false") + (
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\\n' }}{% endif %}"
)
# As SmolVLM and LLaVA: a content is a list of parts, and of a text nothing is written.
PARTS = CHAT_TEMPLATE.replace(
    "+ '\n' + message['content'] + '<|im_end|>'",
    "+ '\n' }}{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>'",
)
# As gpt-oss: the model chooses a channel for its thoughts, and another for its answer; no argument turns that off.
CHANNELS = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] }}"
    "{% if message['thinking'] %}{{ '<|channel|>analysis<|message|>' + message['thinking'] }}"
    "{{ '<|end|><|start|>assistant' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<|channel|>final' }}{% endif %}"
    "{{ '<|message|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
CHANNEL_TOKENS = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>"]
# As Command A, whose argument closes an empty thought.
COMMAND = CHAT_TEMPLATE + (
    "{% if add_generation_prompt %}{% if reasoning is defined and not reasoning %}"
    "{{ '<|START_THINKING|><|END_THINKING|>' }}{% endif %}{% endif %}"
)
COMMAND_TOKENS = ["<|START_THINKING|>", "<|END_THINKING|>"]
# As Qwen2.5 and SmolLM2.
DEFAULT_SYSTEM_PROMPT = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou know all about bicycle pumps.<|im_end|>\n' }}{% endif %}"
) + CHAT_TEMPLATE
# As Llama 3.2, SmolLM3 and gpt-oss.
TODAYS = "{{ '<|im_start|>system\nToday is ' + strftime_now('%d %b %Y') + '.<|im_end|>\n' }}" + CHAT_TEMPLATE
# As Llama 3.1: a system turn that is always there, behind a line that no system prompt replaces.
DATED = (
    "{{ '<|im_start|>system\nIt is May.\n' }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set messages = messages[1:] %}{% endif %}"
    "{{ '<|im_end|>\n' }}"
) + CHAT_TEMPLATE
NO_SYSTEM_ROLE = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHAT_TEMPLATE
