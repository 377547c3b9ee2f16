"""Attacks: each harmful prompt of a suite once more, changed in a way that is known to break refusals.

Texts of attacks come from aird/prompts/attack_texts.py. They are put together with the prompts when a checkpoint is
asked. A judge sees the plain instruction and what the model wrote itself, never the attacked prompt: words of an attack
must not decide whether an answer is a refusal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aird.evaluation.engines.engine import Client
from aird.evaluation.judges.judge import ATTACKED
from aird.evaluation.measurements import completion_record
from aird.inference.refusals import jailbroken_arditi
from aird.prompts.attacked import attacked_prompt
from aird.prompts.chat import chat_tokens, opens_thought
from aird.prompts.sets import Record, select
from aird.settings.attacks import AttackSettings, FollowUp
from aird.settings.base import PromptSelection
from aird.settings.suites import Suite

REPLY = "No."  # stands for a first reply where only lengths count


def check_attack_lengths(
    tokenizer: Any,
    records: Sequence[Record],
    suite: Suite,
    texts: Mapping[str, str],
    seed: int,
    longest: int,
    system_prompt: str | None = None,
) -> None:
    """Check, before anything is started, that every attacked prompt leaves room for a completion.

    Args:
        tokenizer, records, suite, texts, seed, system_prompt: as of `attacked_records`.
        longest: most tokens of a prompt and its completion together.

    Raises:
        ValueError: one does not; the message names its attack and the length that it needs.
    """
    for name, attack in suite.attacks.items():
        needed = 0
        for record in _chosen(attack, suite, records, seed):
            needed = max(needed, _longest(tokenizer, attack, texts[name], record, suite, system_prompt))
        if needed > longest:
            raise ValueError(
                f"attack {name}: a prompt and its completion take up to {needed} tokens, and the server is started for "
                f"{longest}; write maximum_model_length: {needed} or more for this suite, or leave the attack out"
            )


def _longest(
    tokenizer: Any, attack: AttackSettings, text: str, record: Record, suite: Suite, system_prompt: str | None
) -> int:
    asked: dict[str, Any] = {"system_prompt": system_prompt, "think": suite.think}
    if isinstance(attack, FollowUp):
        # The first reply is as long as a completion at most.
        prompt = chat_tokens(tokenizer, text, earlier=[(record["instruction"], REPLY)], **asked)
        return len(prompt) + 2 * suite.maximum_new_tokens
    return len(chat_tokens(tokenizer, **attacked_prompt(attack, text, record["instruction"]), **asked)) + (
        suite.maximum_new_tokens
    )


def attacked_records(
    client: Client,
    tokenizer: Any,
    records: Sequence[Record],
    plain: Sequence[dict[str, Any]],
    suite: Suite,
    texts: Mapping[str, str],
    seed: int,
    system_prompt: str | None = None,
) -> list[dict[str, Any]]:
    """Return a completion record per attack and prompt; all are asked at once, in the largest batches.

    A record has `kind` attacked, the attack's name as `attack`, an id of its own, and the plain instruction. That of
    a `follow_up` also has `turns`: where the first reply complied, or was an unfinished thought, it is the completion,
    and nobody insisted.

    Args:
        client: the server, or a model in this process.
        tokenizer: the checkpoint's tokenizer.
        records: the suite's harmful prompts.
        plain: their completions without an attack, in order: the first replies of two-turn attacks.
        suite: its attacks, and how it asks.
        texts: of `aird.prompts.attack_texts.read_attack_texts`.
        seed: draws the prompts of an attack with a `count`.
        system_prompt: put in front of every conversation.
    """
    first = {record["id"]: record for record in plain}
    asked: dict[str, Any] = {"system_prompt": system_prompt, "think": suite.think}
    made: list[dict[str, Any]] = []
    waiting: list[tuple[int, dict[str, Any], list[int]]] = []  # place in `made`, record without its completion, prompt
    for name, attack, record in _attempts(suite, records, seed):
        reply = first[record["id"]]
        named: dict[str, Any] = {key: record[key] for key in ("instruction", "origin") if key in record}
        named |= {"id": f"{record['id']}/{name}", "kind": ATTACKED, "attack": name}
        if isinstance(attack, FollowUp):
            refused = not reply.get("unfinished") and not jailbroken_arditi(reply["completion"])
            named["turns"] = 2 if refused else 1
            if not refused:
                made.append({**reply, **named})
                continue
            earlier = [(record["instruction"], reply["completion"])]
            prompt = chat_tokens(tokenizer, texts[name], earlier=earlier, **asked)
        else:
            prompt = chat_tokens(tokenizer, **attacked_prompt(attack, texts[name], record["instruction"]), **asked)
        waiting.append((len(made), named, prompt))
        made.append(named)
    completions = client.complete([prompt for _, _, prompt in waiting], suite.maximum_new_tokens) if waiting else []
    opened = suite.think and opens_thought(tokenizer)
    for (place, named, _), completion in zip(waiting, completions, strict=True):
        made[place] = completion_record(tokenizer, named, completion, opened)
    return made


def _attempts(suite: Suite, records: Sequence[Record], seed: int) -> Iterator[tuple[str, AttackSettings, Record]]:
    for name, attack in suite.attacks.items():
        for record in _chosen(attack, suite, records, seed):
            yield name, attack, record


def _chosen(attack: AttackSettings, suite: Suite, records: Sequence[Record], seed: int) -> list[Record]:
    """Return the prompts of one attack: attacks of the same count get the same ones."""
    return select(records, PromptSelection(set=suite.harmful.set, count=attack.count), seed)
