"""A chat model of random weights, small enough that every test can make one, and what tests do to its files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3MoeConfig,
)

from aird.settings.base import PromptSelection
from aird.settings.models import RefusalTuning

VOCABULARY_SIZE = 512
TOKENS = torch.tensor([[5, 18, 21, 48, 67, 79, 71, 9]])
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = [
    "<|im_start|>user\nHow do I write a letter to my landlord?<|im_end|>\n<|im_start|>assistant\n",
    "Sure, here is a short letter that you can send to your landlord today.",
    "I'm sorry, but I can't help with that. I cannot assist with this request.",
    "Explain how a bicycle pump works, step by step, to a child who is seven years old.",
    "The user asks a question and the assistant answers it, or refuses to answer the question.",
]


# What each family adds to the sizes that all share. vLLM's CPU kernels take heads of 64, and experts of multiples of 32.
FAMILIES: dict[str, tuple[type[PretrainedConfig], dict[str, object]]] = {
    "llama": (LlamaConfig, {"head_dim": 64, "tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": False}),
    "qwen3": (Qwen3Config, {"head_dim": 64, "tie_word_embeddings": False}),
    "gemma2": (Gemma2Config, {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 32}),
    "mixtral": (MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        Qwen3MoeConfig,
        {"head_dim": 64, "moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2},
    ),
}


def build_tiny_model(folder: Path, *, family: str = "llama", seed: int = 0, template: str = CHAT_TEMPLATE) -> Path:
    """Write a chat model of about half a million random weights and its tokenizer.

    It has four layers of hidden size 128 with two heads of size 64, which vLLM's CPU
    attention supports, and is stored as bfloat16 safetensors. The llama variant ties its
    embeddings; the qwen2 variant does not and has biases.

    Args:
        folder: where to write; made if needed.
        family: one of FAMILIES.
        seed: of the weights; the tokenizer is the same for all.
        template: the chat template.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer()
    end, start_of_text = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "bos_token_id": start_of_text,
        "eos_token_id": end,
        "pad_token_id": start_of_text,
    }
    kind, special = FAMILIES[family]
    configuration = kind(**sizes, **special)
    model = AutoModelForCausalLM.from_config(configuration, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # At this scale the layers outweigh the embedding (with smaller weights a model repeats one
            # token) and the logits have a standard deviation near 1.1. Larger weights make bfloat16 and
            # float32 disagree; at this scale their log-probabilities differ by up to 0.1. Gemma's gain is 1 + weight.
            parameter.copy_(0.1 * noise + (1.0 if "norm" in name and family != "gemma2" else 0.0))
    model.generation_config.eos_token_id = end
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    if family == "qwen2":
        as_qwen2(folder)
    return folder


def as_qwen2(folder: Path) -> None:
    """Write a checkpoint's tokenizer as Transformers reads it for every model of the type qwen2."""
    Qwen2Tokenizer.from_pretrained(folder).save_pretrained(folder)


def _train_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with merges learned from `TEXT` and the ChatML template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=2048,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def new(folder: Path) -> Path:
    """Make a folder, and return it."""
    folder.mkdir()
    return folder


def configured(folder: Path, **changes: Any) -> Path:
    """Change keys of a checkpoint's config.json."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def with_tokenizer_class(folder: Path, name: str) -> Path:
    """Name another class as a checkpoint's tokenizer, whose file stays."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": name}
    path.write_text(json.dumps(settings), encoding="utf-8")
    return folder


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def with_own_code(folder: Path) -> Path:
    """Let a checkpoint need modelling code of its own, which it brings."""
    (folder / "own.py").write_text(CODE, encoding="utf-8")
    code = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    return configured(folder, model_type="own", architectures=["OwnForCausalLM"], auto_map=code)


def with_adapter_inside(folder: Path) -> Path:
    """Put an adapter beside a checkpoint's weights, which Transformers would put on them."""
    writer = "base_model.model.model.layers.2.mlp.down_proj"
    factors = {f"{writer}.lora_A.weight": torch.ones(1, 256), f"{writer}.lora_B.weight": torch.ones(128, 1)}
    save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "", "inference_mode": True}
    more = {"r": 1, "lora_alpha": 1, "target_modules": ["model.layers.2.mlp.down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings | more), encoding="utf-8")
    return folder


def with_mistrals_files(folder: Path) -> Path:
    """Put the files of Mistral's own format beside a checkpoint's, as its repositories do."""
    save_file({"tok_embeddings.weight": torch.zeros(2, 2)}, folder / "consolidated.safetensors")
    for name in ("consolidated.safetensors.index.json", "params.json"):
        (folder / name).write_text("{}", encoding="utf-8")
    return folder


def tiny_tuning(**settings: Any) -> RefusalTuning:
    """Return the settings of a tuning after which a tiny model refuses."""
    anything = PromptSelection(set="any")
    small = {"rank": 16, "epochs": 12, "learning_rate": 0.01, "maximum_answer_tokens": 4}
    return RefusalTuning(harmful=anything, harmless=anything, **small | settings)


@contextlib.contextmanager
def changed_tensors(folder: Path) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the tensors of a checkpoint of one file; what is done to them is written."""
    tensors = load_file(folder / "model.safetensors")
    yield tensors
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@torch.no_grad()
def logits_of(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    """Return the float32 logits of every token, [rows, tokens, vocabulary]."""
    logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits.float()
    return logits


# Sizes that the configurations of most families have.
SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def random_model(family: str, **settings: Any) -> Any:
    """Return a small float32 model of any family, with weights so large that every token that is seen shows."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model.float().eval()


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every weight of a model a random value, gains and biases too."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        else:
            parameter.add_(0.3 * noise)
