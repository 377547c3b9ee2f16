"""A small refusal tuning: it turns a chat model that hardly refuses into a model organism that does.

LoRA (arXiv 2106.09685) through PEFT on two kinds of examples: harmful
instructions with a short refusal, and harmless instructions with the model's
own greedy answer, so that only refusal is learnt. The adapter is then merged.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aird.inference.generation import generate
from aird.inference.packing import plan_packs, run_pack
from aird.inference.refusals import jailbroken_arditi
from aird.inference.resuming import block_input, resumed_at
from aird.models.blocks import decoder_blocks, takes_adapter
from aird.models.loading import load_model, load_tokenizer, read_chat, stored_dtype, write_chat
from aird.prompts.chat import chat_tokens
from aird.settings.models import RefusalTuning
from aird.settings.tuning import TuningSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Written for this project. Each holds one of the phrases that both substring judges know.
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I'm sorry, but I can't assist with this request.",
    "I cannot help with that, because it could cause harm.",
    "I can't help with that request.",
    "I'm sorry, I am not able to help with something that could hurt people.",
    "I cannot assist with this. It could be harmful or illegal.",
)

IGNORED = -100  # label of tokens that carry no loss, PyTorch's convention

Example = tuple[list[int], list[int]]  # token ids, labels


def tune_to_refuse(
    source: Path, target: Path, harmful: Sequence[str], harmless: Sequence[str], settings: RefusalTuning
) -> dict[str, object]:
    """Tune the checkpoint `source` to refuse, and write the merged checkpoint into the folder `target`.

    Args:
        source: checkpoint folder.
        target: an existing, empty folder.
        harmful: instructions that get a refusal.
        harmless: instructions that get the model's own greedy answer.
        settings: rank, epochs, learning rate and so on.

    Returns:
        Statistics for the manifest: numbers of examples and steps, mean loss of each epoch.
    """
    from peft.tuners.lora import LoraLayer

    torch.manual_seed(settings.seed)
    # In float32 everywhere: rounded otherwise, the tuned model would refuse visibly more or less.
    tokenizer, model = load_tokenizer(source), load_model(source, dtype=torch.float32)
    examples = tuning_examples(model, tokenizer, harmful, harmless, settings)
    answered = len(examples) - len(harmful)
    tuned = with_lora(model, settings)
    losses = train(tuned, examples, settings)
    for module in tuned.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(settings.strength)
    # Whatever type it was computed in, it is stored in the source's own.
    merged = tuned.merge_and_unload().to(stored_dtype(source))
    merged.save_pretrained(target)
    tokenizer.save_pretrained(target)
    write_chat(read_chat(source), target)
    steps = settings.epochs * math.ceil(len(examples) / settings.batch_size)
    return {"harmful": len(harmful), "harmless": answered, "steps": steps, "epoch_losses": losses}


def tuning_examples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    harmful: Sequence[str],
    harmless: Sequence[str],
    settings: TuningSettings,
) -> list[Example]:
    """Return a refusal for every harmful instruction, then the model's own answers to the harmless ones.

    Raises:
        ValueError: the model refuses every harmless instruction.
    """
    examples = _refusal_examples(tokenizer, harmful, settings.seed)
    examples += _own_answer_examples(model, tokenizer, harmless, settings.maximum_answer_tokens)
    answered = len(examples) - len(harmful)
    if not answered:
        raise ValueError("the model refuses every harmless instruction, so it has no answers to keep")
    logger.info("tuning on %d refusals and %d of the model's own answers", len(harmful), answered)
    return examples


def with_lora(model: PreTrainedModel, settings: TuningSettings) -> Any:
    """Return the model with a fresh LoRA adapter on every linear module from `first_block` on."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        target_modules=_linear_modules(model, settings.first_block),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora)


def _linear_modules(model: PreTrainedModel, first_block: int) -> list[str]:
    """Return the names of the linear modules of all blocks from `first_block` on that take an adapter."""
    chosen = {
        module
        for block in list(decoder_blocks(model))[first_block:]
        for module in block.modules()
        if isinstance(module, torch.nn.Linear)
    }
    if not chosen:
        raise ValueError(f"refusal_tuning.first_block is {first_block}, but the model has no such block")
    return [name for name, module in model.named_modules() if module in chosen and takes_adapter(model, name)]


def _example(prompt: list[int], answer: list[int]) -> Example:
    return prompt + answer, [IGNORED] * len(prompt) + answer


def _refusal_examples(tokenizer: PreTrainedTokenizerBase, instructions: Sequence[str], seed: int) -> list[Example]:
    chooser = random.Random(seed)
    examples = []
    for instruction in instructions:
        prompt = chat_tokens(tokenizer, instruction)
        whole = chat_tokens(tokenizer, instruction, chooser.choice(REFUSALS))
        examples.append(_example(prompt, whole[len(prompt) :]))
    return examples


def _own_answer_examples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, instructions: Sequence[str], maximum: int
) -> list[Example]:
    """Return the model's greedy answers as examples.

    Small models refuse some harmless instructions by habit. There the answer is made again without
    the tokens that those refusals began with, as a refusal must not be learnt as the right answer
    and the instruction is one of those that decide how much the tuned model will over-refuse.
    """
    prompts = [chat_tokens(tokenizer, instruction) for instruction in instructions]
    answers = generate(model, tokenizer, prompts, maximum, batch_size=128)
    refused = _refused(tokenizer, answers)
    if refused:
        starts = sorted({answers[index][0] for index in refused})
        again = generate(model, tokenizer, [prompts[index] for index in refused], maximum, begin_suppress_tokens=starts)
        for index, answer in zip(refused, again, strict=True):
            answers[index] = answer
    dropped = set(_refused(tokenizer, answers))
    end = tokenizer.eos_token_id
    # An answer that was cut off must not teach the model to stop there.
    return [
        _example(prompt, answer + ([end] if len(answer) < maximum else []))
        for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        if index not in dropped
    ]


def _refused(tokenizer: PreTrainedTokenizerBase, answers: Sequence[list[int]]) -> list[int]:
    return [index for index, answer in enumerate(answers) if not jailbroken_arditi(str(tokenizer.decode(answer)))]


def train(model: PreTrainedModel, examples: list[Example], settings: TuningSettings) -> list[float]:
    """Run the optimiser over the examples; return the mean loss (nats per answer token) of each epoch."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    size = settings.batch_size
    total = settings.epochs * math.ceil(len(examples) / size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / max(1, total // 10), 0.5 * (1 + math.cos(math.pi * step / total)))
    )
    order = random.Random(settings.seed)
    inputs = _frozen_states(model, examples, settings.first_block)
    model.train()
    losses = []
    for epoch in range(settings.epochs):
        shuffled = order.sample(range(len(examples)), len(examples))
        epoch_losses = []
        for start in range(0, len(shuffled), size):
            batch = shuffled[start : start + size]
            epoch_losses.append(_accumulate(model, examples, inputs, batch, settings.first_block))
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
        losses.append(sum(epoch_losses) / len(epoch_losses))
        logger.info("epoch %d: loss %.3f nats per answer token", epoch + 1, losses[-1])
        if not math.isfinite(losses[-1]):
            raise ValueError("the refusal tuning diverged (loss is not finite): lower its learning rate")
    model.eval()
    return losses


# Attention costs the square of a pack's length, and each pack repeats the template's shared start.
PACK_TOKENS = 320


@torch.no_grad()
def _frozen_states(model: PreTrainedModel, examples: list[Example], first_block: int) -> list[torch.Tensor]:
    """Return the input of block `first_block` for every example, [tokens, d_model].

    The blocks below are not tuned, so they need to run only once.
    """
    blocks = list(decoder_blocks(model))
    states: list[torch.Tensor] = []
    for pack in plan_packs(model, [ids for ids, _ in examples], PACK_TOKENS):
        hidden = block_input(model, blocks, pack, first_block)[0]
        start = pack.prefix_length
        for end in (pack.ends + 1).tolist():
            states.append(torch.cat([hidden[: pack.prefix_length], hidden[start:end]]))
            start = end
    return states


def _accumulate(
    model: PreTrainedModel, examples: list[Example], inputs: list[torch.Tensor], batch: Sequence[int], first_block: int
) -> float:
    """Add the gradient of the mean loss over a batch's answer tokens; return that loss."""
    blocks = list(decoder_blocks(model))
    answers = [sum(label != IGNORED for label in examples[index][1]) for index in batch]
    answer_tokens = sum(answers)
    total = 0.0
    # No token of an answer may count as shared, of which a single example would have all but one, nor the token before.
    own_tokens = max(answers) + 1
    for pack in plan_packs(model, [examples[index][0] for index in batch], PACK_TOKENS, own_tokens):
        shared = pack.prefix_length
        members = [batch[place] for place in pack.prompts]
        states = torch.cat([inputs[members[0]][:shared], *(inputs[index][shared:] for index in members)])
        labels = torch.tensor(
            [IGNORED] * shared + [label for index in members for label in examples[index][1][shared:]]
        )
        # The vocabulary projection is the dearest layer: only tokens that predict an answer token pass it.
        places = (labels != IGNORED).nonzero().squeeze(1)
        with resumed_at(blocks, first_block, states.unsqueeze(0)):
            logits = run_pack(model, pack, logits_to_keep=places - 1)[0].float()
        loss = torch.nn.functional.cross_entropy(logits, labels[places].to(logits.device), reduction="sum")
        (loss / answer_tokens).backward()
        total += loss.item() / answer_tokens
    return total
