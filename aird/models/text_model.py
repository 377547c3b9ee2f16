"""The text model inside a wrapper of vision (or sound) and language, taken out once, when a model is imported.

Everything after the import sees a plain causal language model: one set of module names, the stored names of which are
those of the modules. Transformers maps the wrapper's stored names; here only its modules are read. That the text model
says what the wrapper says about a text is proven on the weights themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aird.inference.cpu_attention import needed_attention
from aird.models.blocks import ArchitectureError
from aird.models.checkpoint import check_complete
from aird.models.refusals import checkpoint_refusal
from aird.support.checkpoint_patterns import PROCESSOR
from aird.support.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Text models that are no causal language model of their own: their class differs from this one only in the positions
# of images, which a text has none of.
SAME_ON_TEXT = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
IMAGE_POSITIONS = ("mrope_section", "mrope_interleaved")  # of a rotary embedding's parameters
TOLERANCE = 1e-3  # of the largest logit; the type's rounding where that is coarser
PROBE = 12  # tokens


def is_wrapper(config: Any) -> bool:
    """Return whether a configuration is one of a model that wraps a text model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and config.get_text_config() is not config


def extract_text_model(source: Path, target: Path, trust_remote_code: bool) -> dict[str, str]:
    """Write the text model of a wrapper as a checkpoint; its tokenizer and chat template are not written here.

    Args:
        source: the wrapper's folder, safetensors.
        target: an existing folder; receives configuration, generation settings and weights, in the stored type.
        trust_remote_code: let code that the model brings run.

    Returns:
        The wrapper's model type, and under which name it holds the text model.

    Raises:
        ArchitectureError: Transformers has no causal language model for the text model, or one with other weights, or
            the two disagree about a text; also where the wrapper is quantised.
        ValueError: a weight of the wrapper is missing, or has another shape than config.json says.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(source), trust_remote_code=trust_remote_code)
    if reason := checkpoint_refusal(read_json(source / "config.json")):
        raise ArchitectureError(f"{source} {reason}")
    attention = needed_attention(config)
    loading: Any = transformers.AutoModelForImageTextToText.from_pretrained(
        str(source),
        dtype="auto",
        attn_implementation=attention,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    wrapper, loaded = loading
    check_complete(loaded, source)
    wrapper.eval()
    inner, head = wrapper.get_decoder(), wrapper.get_output_embeddings()
    held_as = next((name for name, module in wrapper.named_modules() if module is inner), None)
    if head is None or not held_as:
        raise ArchitectureError(f"{source}: Transformers finds no text model in its {type(wrapper).__name__}")
    text = _causal_configuration(config, source)
    text.tie_word_embeddings = head.weight is inner.get_input_embeddings().weight
    model = transformers.AutoModelForCausalLM.from_config(
        text, dtype=wrapper.dtype, attn_implementation=attention
    ).eval()
    try:
        model.base_model.load_state_dict(inner.state_dict())
        model.get_output_embeddings().load_state_dict(head.state_dict())
    except RuntimeError as error:
        raise ArchitectureError(
            f"{source}: the text model of {type(wrapper).__name__} has other weights than {type(model).__name__}: "
            + " ".join(str(error).split())[:300]
        ) from error
    model.tie_weights()
    _prove_same(model, wrapper, source)
    if wrapper.can_generate():
        model.generation_config = wrapper.generation_config
    model.save_pretrained(target)
    for name in PROCESSOR:  # of images: a server would take the checkpoint for the wrapper
        (target / name).unlink(missing_ok=True)
    return {"type": config.model_type, "text_model": held_as}


def _causal_configuration(config: Any, source: Path) -> Any:
    """Return the configuration of the causal language model for a wrapper's text model."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    text = config.get_text_config()
    if text.model_type in SAME_ON_TEXT:
        values = {name: value for name, value in text.to_dict().items() if name != "model_type"}
        rotary = dict(values.get("rope_parameters") or {})
        values["rope_parameters"] = {name: value for name, value in rotary.items() if name not in IMAGE_POSITIONS}
        text = transformers.CONFIG_MAPPING[SAME_ON_TEXT[text.model_type]](**values)
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ArchitectureError(
            f"{source}: Transformers has no causal language model for {text.model_type}, the text model of "
            f"{config.model_type}"
        )
    return text


@torch.no_grad()
def _prove_same(model: PreTrainedModel, wrapper: Any, source: Path) -> None:
    """Compare the logits of the text model and of the wrapper on a few tokens.

    Raises:
        ArchitectureError: they differ by more than `TOLERANCE`, or the type's rounding.
    """
    generator = torch.Generator().manual_seed(0)
    # From the lower half of the vocabulary: placeholders of images stand at the end.
    ids = torch.randint(0, model.config.vocab_size // 2, (1, PROBE), generator=generator)
    ours, theirs = (each(input_ids=ids).logits.float() for each in (model, wrapper))
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    limit = max(TOLERANCE, 4 * torch.finfo(model.dtype).eps)
    if not difference <= limit:
        raise ArchitectureError(
            f"{source}: {type(model).__name__} with the weights of its text model differs from "
            f"{type(wrapper).__name__} by {difference:.1e} of the largest logit (at most {limit:.1e} is accepted)"
        )
