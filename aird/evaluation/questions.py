"""What a suite asks of a checkpoint: every prompt as token ids, made once, checked once, asked, and recorded.

    questions = suite_questions(tokenizer, asked, system_prompt)
    check_lengths(questions, longest)
    completions = complete(client, questions)
    attacked = complete_attacked(client, questions, completions)

A judge sees the plain instruction and what the model wrote itself, never an attacked prompt: words of an attack must
not decide whether an answer is a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

from transformers import PreTrainedTokenizerBase

from aird.evaluation.engine import Client
from aird.evaluation.first_tokens import FirstToken
from aird.inference.refusals import degenerate, jailbroken_arditi
from aird.prompts.attack import AttackedPrompt, attack_of
from aird.prompts.chat import chat_settings, chat_tokens, check_no_thoughts, opens_thought, split_thought
from aird.prompts.sets import ATTACKED, CLASSES, Record, select
from aird.settings.base import PromptSelection
from aird.settings.suites import Suite

GENERATED = 1  # token that a server generates where only the log-probabilities of given ones are asked for
REPLY = "No."  # stands for a first reply where only lengths count


class CompletionRecord(TypedDict, total=False):
    """What is recorded of one prompt and its completion; `suite_run.Provenance` is added to it.

    Attributes:
        id, instruction, origin: of the prompt record; `origin` tells rates apart, where it is known. The id of an
            attacked prompt ends with the attack's name.
        kind: `harmful`, `harmless` or `attacked`.
        attack: the attack's name.
        turns: of an attack in two turns: 1 where the first reply complied, or was an unfinished thought. It is then the
            completion, and nobody insisted.
        completion: the answer's text, without a thought.
        thought, unfinished: of a model that thinks; an unfinished thought has no completion.
        tokens: number of generated tokens.
        finish_reason: `stop` or `length`.
        first_token: of a plain prompt, where the engine tells it and no thought begins the reply.
        merged: of a patch that is served in both forms: completion, thought, unfinished, tokens and finish_reason of
            the merged checkpoint.
    """

    id: str
    instruction: str
    origin: str
    kind: str
    attack: str
    turns: int
    completion: str
    thought: str
    unfinished: bool
    tokens: int
    finish_reason: str
    first_token: FirstToken
    merged: CompletionRecord


class AnswerLikelihood(TypedDict):
    """The summed negative log-likelihood (nats) of an answer's tokens, and their number."""

    id: str
    negative_log_likelihood: float
    tokens: int


@dataclass(frozen=True)
class Asked:
    """What is asked.

    Attributes:
        suite: how, and by which attacks and tasks.
        records: kind, `harmful` or `harmless`, to prompt records with id and instruction.
        seed: draws the prompts of an attack with a `count`; it is recorded, and the engine's own.
        reference: completions of the original, whose harmless answers give the perplexity; None takes the checkpoint's
            own.
        attack_texts: by the attacks' names (`aird.prompts.attack.read_attack_texts`).
        original: completions of the original, whose refusals say which first tokens are scored; None of the original.
    """

    suite: Suite
    records: Mapping[str, Sequence[Record]]
    seed: int
    reference: Sequence[Mapping[str, object]] | None = None
    attack_texts: Mapping[str, str] = field(default_factory=dict)
    original: Sequence[Mapping[str, object]] | None = None


class Question(NamedTuple):
    """A prompt to complete.

    Attributes:
        record: what the completion's record says of it.
        tokens: its token ids; of a second turn they are made once the first reply is known.
        needed: most tokens that it and its answer take.
        second_turn: what is asked where the first reply refused; None of an attack in one turn, and of a plain prompt.
        closed: its token ids behind a closed thought, where the likelihood of its completion is asked for.
    """

    record: CompletionRecord
    tokens: list[int]
    needed: int
    second_turn: AttackedPrompt | None = None
    closed: list[int] | None = None


class Answer(NamedTuple):
    """An answer whose likelihood is asked for: its id, the token ids of its prompt, and its own."""

    id: str
    prompt: list[int]
    tokens: list[int]


@dataclass(frozen=True)
class ChatPrompts:
    """Makes token ids of instructions, as a suite asks one checkpoint.

    Attributes:
        tokenizer: the checkpoint's.
        suite: says how long answers are, and whether a model that thinks does so.
        system_prompt: stands in front of every conversation.
    """

    tokenizer: PreTrainedTokenizerBase
    suite: Suite
    system_prompt: str | None = None

    @property
    def thinks(self) -> bool:
        """Whether a reply begins with a thought."""
        return self.suite.think and bool(chat_settings(self.tokenizer).thinking)

    def tokens(
        self,
        instruction: str,
        prefill: str = "",
        earlier: Sequence[tuple[str, str]] = (),
        closed: bool = False,
    ) -> list[int]:
        """Return the token ids that ask an instruction (`chat_tokens`); behind a closed thought if `closed`."""
        think = self.suite.think and not closed
        return chat_tokens(self.tokenizer, instruction, None, self.system_prompt, think, earlier, prefill)

    def plain(self, kind: str, record: Record, is_scored: bool) -> Question:
        """Return a prompt of the suite; if `is_scored`, the likelihood of its completion is asked for as well."""
        named: CompletionRecord = {**_named(record), "kind": kind}
        prompt, limit = self.tokens(record["instruction"]), self.suite.maximum_new_tokens
        if not is_scored:
            return Question(named, prompt, len(prompt) + limit)
        closed = self.tokens(record["instruction"], closed=True) if self.suite.think else prompt
        return Question(named, prompt, max(len(prompt), len(closed) + GENERATED) + limit, closed=closed)

    def attacked(self, name: str, text: str, record: Record) -> Question:
        """Return a prompt under an attack of the suite, by the attack's name and text."""
        attack, limit = attack_of(self.suite.attacks[name]), self.suite.maximum_new_tokens
        asked = attack.put_on(text, record["instruction"])
        named: CompletionRecord = {**_named(record), "id": f"{record['id']}/{name}", "kind": ATTACKED, "attack": name}
        if attack.turns > 1:
            # The first reply is as long as a completion at most.
            longest = self.tokens(*asked, earlier=[(record["instruction"], REPLY)])
            return Question(named, [], len(longest) + 2 * limit, second_turn=asked)
        prompt = self.tokens(*asked)
        return Question(named, prompt, len(prompt) + limit)

    def answer(self, record: Mapping[str, Any], prompt: list[int] | None = None) -> Answer:
        """Return a completion whose likelihood is asked for, behind its prompt."""
        text = self.tokenizer(record["completion"], add_special_tokens=False)["input_ids"]
        return Answer(record["id"], prompt or self.tokens(record["instruction"], closed=True), list(text))


@dataclass(frozen=True)
class Questions:
    """All that is asked of one checkpoint, besides tasks.

    Attributes:
        chat: makes the prompts.
        plain: the suite's prompts, in order.
        attacked: its harmful prompts under each attack.
        answers: the reference answers; None where they are the checkpoint's own (`own_answers`).
    """

    chat: ChatPrompts
    plain: Sequence[Question]
    attacked: Sequence[Question]
    answers: Sequence[Answer] | None

    def probes(self, count: int) -> list[list[int]]:
        """Return prompts for the check, half harmful, half harmless: a broken checkpoint may look right on one kind."""
        half = -(-count // 2)
        prompts = {kind: [each.tokens for each in self.plain if each.record["kind"] == kind] for kind in CLASSES}
        return [prompt for of_kind in prompts.values() for prompt in of_kind[:half]][:count]

    def own_answers(self, completions: Sequence[CompletionRecord]) -> list[Answer]:
        """Return the checkpoint's own completions, of the plain prompts, that are answers to harmless ones."""
        pairs = zip(self.plain, completions, strict=True)
        answers = [self.chat.answer(record, question.closed) for question, record in pairs if is_answer(record)]
        return answers[: self.chat.suite.perplexity_answers]


def suite_questions(
    tokenizer: PreTrainedTokenizerBase, asked: Asked, system_prompt: str | None = None, likelihoods: bool = False
) -> Questions:
    """Return all that is asked of a checkpoint, besides tasks.

    Args:
        tokenizer: the checkpoint's.
        asked: what is asked.
        system_prompt: put in front of every conversation.
        likelihoods: the likelihoods of answers are asked for too.
    """
    suite, chat = asked.suite, ChatPrompts(tokenizer, asked.suite, system_prompt)
    own = likelihoods and asked.reference is None
    plain = [chat.plain(kind, record, own and kind == "harmless") for kind in CLASSES for record in asked.records[kind]]
    attacked = []
    for name, attack in suite.attacks.items():
        chosen = PromptSelection(set=suite.harmful.set, count=attack.count)  # attacks of one count get the same prompts
        for record in select(asked.records["harmful"], chosen, asked.seed):
            attacked.append(chat.attacked(name, asked.attack_texts[name], record))
    reference = [record for record in asked.reference or () if likelihoods and is_answer(record)]
    answers = [chat.answer(record) for record in reference[: suite.perplexity_answers]]
    return Questions(chat, plain, attacked, None if own else answers)


def check_lengths(questions: Questions, longest: int) -> None:
    """Check, before anything is started, that every prompt leaves room for its answer.

    Args:
        questions: all that is asked.
        longest: most tokens of a prompt and its completion together.

    Raises:
        ValueError: one does not; the message names what it is and the length that it needs.
    """
    needs = [(each.needed, _what(each.record)) for each in (*questions.plain, *questions.attacked)]
    needs += [
        (len(each.prompt) + len(each.tokens) + GENERATED, "reference answers") for each in questions.answers or ()
    ]
    needed, what = max(needs, key=lambda need: need[0], default=(0, ""))
    if needed > longest:
        raise ValueError(
            f"{what}: a prompt and its answer take up to {needed} tokens, and the longest that may be asked is "
            f"{longest}; write --length {needed} or more (in a configuration, maximum_model_length), let completions "
            "be shorter, or leave these out"
        )


def _what(record: CompletionRecord) -> str:
    """Return what an error calls a prompt."""
    return f"attack {record['attack']}" if "attack" in record else f"{record['kind']} prompts"


def complete(client: Client, questions: Questions) -> list[CompletionRecord]:
    """Return the record of each plain prompt's completion, in order; all are asked at once, in the largest batches.

    Raises:
        ValueError: most completions begin with a thought, and no setting says that the model thinks.
    """
    asked = [(question.record, question.tokens) for question in questions.plain]
    records = _ask(client, questions.chat, asked)
    check_no_thoughts(questions.chat.tokenizer, [record["completion"] for record in records])
    return records


def complete_attacked(
    client: Client, questions: Questions, replies: Sequence[CompletionRecord]
) -> list[CompletionRecord]:
    """Return a completion record per attack and prompt; all are asked at once, in the largest batches.

    Args:
        client: the server, or a model in this process.
        questions: their attacked prompts are asked.
        replies: to the plain prompts: the first replies of attacks in two turns.
    """
    first = {reply["id"]: reply for reply in replies if reply["kind"] == "harmful"}
    made: dict[str, CompletionRecord] = {}
    asked: list[tuple[CompletionRecord, list[int]]] = []
    for question in questions.attacked:
        record, tokens = question.record, question.tokens
        if question.second_turn is not None:
            reply = first[record["id"].removesuffix(f"/{record['attack']}")]
            refused = not reply.get("unfinished") and not jailbroken_arditi(reply["completion"])
            record = {**record, "turns": 2 if refused else 1}
            if not refused:
                made[record["id"]] = {**reply, **record}
                continue
            earlier = [(record["instruction"], reply["completion"])]
            tokens = questions.chat.tokens(*question.second_turn, earlier=earlier)
        asked.append((record, tokens))
    if asked:
        made |= {record["id"]: record for record in _ask(client, questions.chat, asked)}
    return [made[question.record["id"]] for question in questions.attacked]


def _ask(
    client: Client, chat: ChatPrompts, asked: Sequence[tuple[CompletionRecord, list[int]]]
) -> list[CompletionRecord]:
    """Return the records of completions, from what they say of a prompt and its token ids."""
    thinking = chat_settings(chat.tokenizer).thinking
    opened = chat.suite.think and opens_thought(chat.tokenizer)
    completions = client.complete([tokens for _, tokens in asked], chat.suite.maximum_new_tokens)
    records: list[CompletionRecord] = []
    for (record, _), made in zip(asked, completions, strict=True):
        answer: CompletionRecord = {"completion": made.text}
        if thinking:
            thought, text, unfinished = split_thought(made.text, thinking, opened)
            answer = {"completion": text, "thought": thought, "unfinished": unfinished}
        records.append({**record, **answer, "tokens": made.token_count, "finish_reason": made.finish_reason})
    return records


def _named(record: Record) -> CompletionRecord:
    """Return what a completion record keeps of a prompt record."""
    named: CompletionRecord = {"id": record["id"], "instruction": record["instruction"]}
    return {**named, "origin": record["origin"]} if "origin" in record else named


def is_answer(record: Mapping[str, Any]) -> bool:
    """Return whether a completion is a harmless one that answers: no refusal, not degenerate, not unfinished."""
    text = record["completion"]
    # No text at all, as behind an unfinished thought, is degenerate.
    return record["kind"] == "harmless" and jailbroken_arditi(text) and not degenerate(text)


def answer_likelihoods(client: Client, answers: Sequence[Answer]) -> list[AnswerLikelihood]:
    """Return how likely each answer is.

    The perplexity of a checkpoint is exp(sum of the negative log-likelihoods / number of tokens), over the answer's
    tokens only, given the templated instruction; of a model that thinks, behind a closed empty thought.
    """
    results: list[AnswerLikelihood] = []
    whole = [answer.prompt + answer.tokens for answer in answers]
    for answer, logprobs in zip(answers, client.token_logprobs(whole), strict=True):
        own = [-value for value in logprobs[len(answer.prompt) :] if value is not None]
        results.append({"id": answer.id, "negative_log_likelihood": sum(own), "tokens": len(own)})
    return results
