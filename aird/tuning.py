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
from typing import Any

import torch

from aird.architecture import decoder_blocks
from aird.chat import chat_tokens
from aird.generation import generate
from aird.judges import jailbroken_arditi
from aird.models import load_model, load_tokenizer
from aird.packing import make_packs
from aird.settings.models import RefusalTuning

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


def tune_to_refuse(
    source: Path, target: Path, harmful: Sequence[str], harmless: Sequence[str], settings: RefusalTuning
) -> dict[str, Any]:
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
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    torch.manual_seed(settings.seed)
    tokenizer, model = load_tokenizer(source), load_model(source)
    examples = _refusal_examples(tokenizer, harmful, settings.seed)
    examples += _own_answer_examples(model, tokenizer, harmless, settings.maximum_answer_tokens)
    answered = len(examples) - len(harmful)
    if not answered:
        raise ValueError("the model refuses every harmless instruction, so it has no answers to keep")
    logger.info("tuning on %d refusals and %d of the model's own answers", len(harmful), answered)
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        target_modules=_linear_modules(model, settings.first_block),
        task_type="CAUSAL_LM",
    )
    tuned: Any = get_peft_model(model, lora)
    losses = _train(tuned, examples, settings)
    for module in tuned.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(settings.strength)
    merged = tuned.merge_and_unload()
    merged.save_pretrained(target)
    tokenizer.save_pretrained(target)
    steps = settings.epochs * math.ceil(len(examples) / settings.batch_size)
    return {"harmful": len(harmful), "harmless": answered, "steps": steps, "epoch_losses": losses}


def _linear_modules(model: Any, first_block: int) -> list[str]:
    """Return the names of the linear modules of all blocks from `first_block` on."""
    chosen = {
        module
        for block in list(decoder_blocks(model))[first_block:]
        for module in block.modules()
        if isinstance(module, torch.nn.Linear)
    }
    if not chosen:
        raise ValueError(f"refusal_tuning.first_block is {first_block}, but the model has no such block")
    return [name for name, module in model.named_modules() if module in chosen]


Example = tuple[list[int], list[int]]  # token ids, labels


def _example(prompt: list[int], answer: list[int]) -> Example:
    return prompt + answer, [IGNORED] * len(prompt) + answer


def _refusal_examples(tokenizer: Any, instructions: Sequence[str], seed: int) -> list[Example]:
    chooser = random.Random(seed)
    examples = []
    for instruction in instructions:
        prompt = chat_tokens(tokenizer, instruction)
        whole = chat_tokens(tokenizer, instruction, chooser.choice(REFUSALS))
        examples.append(_example(prompt, whole[len(prompt) :]))
    return examples


def _own_answer_examples(model: Any, tokenizer: Any, instructions: Sequence[str], maximum: int) -> list[Example]:
    prompts = [chat_tokens(tokenizer, instruction) for instruction in instructions]
    answers = generate(model, tokenizer, prompts, maximum, batch_size=128)
    end = tokenizer.eos_token_id
    # An answer that was cut off must not teach the model to stop there; one that is itself a refusal
    # (small models have that habit) must not be learnt as the right answer to a harmless instruction.
    return [
        _example(prompt, answer + ([end] if len(answer) < maximum else []))
        for prompt, answer in zip(prompts, answers, strict=True)
        if jailbroken_arditi(tokenizer.decode(answer))
    ]


def _train(model: Any, examples: list[Example], settings: RefusalTuning) -> list[float]:
    """Run the optimiser over the examples; return the mean loss (nats per answer token) of each epoch."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    batches_per_epoch = math.ceil(len(examples) / settings.batch_size)
    total = settings.epochs * batches_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / max(1, total // 10), 0.5 * (1 + math.cos(math.pi * step / total)))
    )
    order = random.Random(settings.seed)
    model.train()
    losses = []
    for epoch in range(settings.epochs):
        epoch_losses = []
        for batch in _batches(examples, settings.batch_size, order):
            loss = _loss(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            epoch_losses.append(loss.item())
        losses.append(sum(epoch_losses) / len(epoch_losses))
        logger.info("epoch %d: loss %.3f nats per answer token", epoch + 1, losses[-1])
        if not math.isfinite(losses[-1]):
            raise ValueError("the refusal tuning diverged (loss is not finite): lower its learning rate")
    model.eval()
    return losses


def _batches(examples: list[Example], size: int, order: random.Random) -> list[list[Example]]:
    """Shuffle, then sort within groups of eight batches, so that a batch holds examples of like length."""
    shuffled = order.sample(examples, len(examples))
    batches = []
    for start in range(0, len(shuffled), 8 * size):
        group = sorted(shuffled[start : start + 8 * size], key=lambda example: len(example[0]))
        batches += [group[index : index + size] for index in range(0, len(group), size)]
    order.shuffle(batches)
    return batches


def _loss(model: Any, batch: list[Example]) -> torch.Tensor:
    # One pack: the template's shared start is computed once, and nothing is padded.
    (pack,) = make_packs([ids for ids, _ in batch], maximum_tokens=10**9)
    shared = pack.prefix_length
    labels = torch.tensor([IGNORED] * shared + [label for _, own in batch for label in own[shared:]])
    # The vocabulary projection is the dearest layer: only tokens that predict an answer token pass it.
    places = (labels != IGNORED).nonzero().squeeze(1)
    logits = model(**pack.model_inputs(model), logits_to_keep=places - 1).logits[0].float()
    return torch.nn.functional.cross_entropy(logits, labels[places].to(logits.device))
