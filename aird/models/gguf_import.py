"""Decode a GGUF file into a dense checkpoint folder, with the tokenizer and the configuration that it describes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aird.models.checkpoint import Checkpoint, check_complete, read_checkpoint
from aird.models.generation_settings import ends_of_text
from aird.models.gguf_file import GGUFFile, read_gguf
from aird.models.gguf_reader import shared_header
from aird.models.gguf_tokenizer import (
    WHAT_TO_DO,
    check_read_back,
    check_vocabulary,
    is_default_model,
    is_sentencepiece,
    own_ends,
    own_tokenizer,
)
from aird.models.loading import (
    code_is_trusted,
    configuration_of,
    copy_tokenizer,
    load_tokenizer,
)
from aird.models.tokenizer_file import read_tokenizer
from aird.support.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def dequantise_gguf(
    source: Path, target: Path, dtype: torch.dtype, original: Path | None = None, tokenizer: Path | None = None
) -> None:
    """Write the model of a GGUF file as a dense checkpoint, with a tokenizer and the tokens that end a text.

    Both are the original's where it is known and has the same vocabulary, and so is the configuration, since
    Transformers does not read all of it from a file. The chat template is the file's own where it brings one. Without
    an original all is made of what the file says, as llama.cpp does.

    Args:
        source: the file.
        target: an existing folder without a checkpoint.
        dtype: of the dense weights.
        original: the checkpoint folder of the model that the file was made from.
        tokenizer: without an original, a folder with a tokenizer that is known to be the file's; a SentencePiece
            vocabulary needs one.

    Raises:
        ValueError: it cannot be read, has another vocabulary than its original, asks for a tokenizer that is not
            proven to be llama.cpp's, or, without an original, computes positions in a way that is not read from a file.
    """
    file = read_gguf(source)
    if original is None and tokenizer is None and is_sentencepiece(file):
        raise ValueError(f"{source} has a SentencePiece vocabulary, which only llama.cpp reads surely; {WHAT_TO_DO}")
    config = _own_configuration(file) if original is None else configuration_of(original)
    made: PreTrainedTokenizerBase | None = None
    ends: list[int] = []  # none: those that Transformers reads from the file
    if original is not None:
        theirs = load_tokenizer(original)
        check_vocabulary(file, theirs, config.get_text_config().vocab_size, original)
        ends = ends_of_text(original)
    elif tokenizer is not None:
        _check_stored(read_tokenizer(tokenizer, code_is_trusted()), file, config)
        ends = own_ends(file)
    elif is_default_model(file):
        made = _tokenizer_by_transformers(file)
    else:
        made, ends = own_tokenizer(file), own_ends(file)
        _check_stored(made, file, config)
    dequantise_gguf_weights(source, target, dtype, config)
    _check_biases(file, read_checkpoint(target))
    if made is not None:
        made.save_pretrained(target)
    elif folder := original or tokenizer:
        copy_tokenizer(folder, target)
        if file.chat_template is not None:
            # A template in a file of its own goes before one in the configuration.
            (target / "chat_template.jinja").write_text(file.chat_template, encoding="utf-8")
    if ends:
        settings = read_json(target / "generation_config.json")
        write_json(target / "generation_config.json", {**settings, "eos_token_id": ends})


def _own_configuration(file: GGUFFile) -> Any:
    """Return the configuration that a GGUF file's header describes, with the frequencies of positions of its own.

    Transformers reads no scaling of positions. Llama 3's, factors of the frequencies, is LongRoPE with the same factors
    for short and long texts and none for the attention.

    Raises:
        ValueError: positions are scaled in another way, or turn another part of each head than Transformers reads.
    """
    from transformers import AutoConfig

    with _alone(file.path) as folder:
        config = AutoConfig.from_pretrained(folder, gguf_file=file.path.name)
    advice = (
        "so its decoded weights would not compute what llama.cpp computes; give it the model that it was made from as "
        "its original (in safetensors), whose configuration is then taken"
    )
    other = sorted(name for name in file.tensors if name.startswith("rope_factors"))
    if other or file.rope_scaling not in (None, "none"):
        how = file.rope_scaling or ", ".join(other)
        raise ValueError(f"{file.path} scales positions ({how}) in a way that is not read from a GGUF file, {advice}")
    turned = file.sizes.get("rope.dimension_count")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope and turned is not None:
        width = file.sizes.get("attention.key_length") or config.hidden_size // config.num_attention_heads
        share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
        if turned != int(width * share):
            raise ValueError(
                f"{file.path} turns {turned} features of each head with the position, where Transformers reads "
                f"{int(width * share)} of {width} from it, {advice}"
            )
    scale = getattr(config, "query_pre_attn_scalar", None)
    if scale is not None and scale != file.sizes.get("attention.key_length", scale):
        raise ValueError(
            f"{file.path} does not say by what its attention is scaled; of this size of {file.architecture} it is not "
            f"{scale}, which Transformers takes, {advice}"
        )
    factors = file.frequency_factors()
    if factors is not None:
        scaled = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "factor": 1.0}
        length = config.max_position_embeddings
        config.rope_parameters = {**rope, **scaled, "original_max_position_embeddings": length}
    return config


def _check_biases(file: GGUFFile, decoded: Checkpoint) -> None:
    """Check that no bias of a matrix of the blocks was lost: Transformers leaves out what its configuration has not."""
    for module in decoded.block_matrices():
        try:
            bias = file.tensor_of(module).name.removesuffix("weight") + "bias"
        except ValueError:  # llama.cpp splits or joins this matrix
            continue
        if bias in file.tensors and f"{module}.bias" not in decoded.tensors:
            raise ValueError(
                f"{file.path} holds {bias}, the bias of {module}, which Transformers does not read from a GGUF file of "
                f"the architecture {file.architecture}; give it the model that it was made from as its original (in "
                "safetensors)"
            )


def _check_stored(tokenizer: PreTrainedTokenizerBase, file: GGUFFile, config: Any) -> None:
    """Check that a checkpoint of the file's model would have this tokenizer, as `check_read_back` does."""
    from transformers import AutoTokenizer

    with _alone(file.path) as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        check_read_back(AutoTokenizer.from_pretrained(folder), tokenizer, file)


def _tokenizer_by_transformers(file: GGUFFile) -> Any:
    from transformers import AutoTokenizer

    with _alone(file.path) as folder:
        return AutoTokenizer.from_pretrained(folder, gguf_file=file.path.name)


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[str]:
    """Yield a folder that holds a file alone, its header parsed once for Transformers.

    Transformers would read a checkpoint's other files beside a GGUF file.
    """
    with tempfile.TemporaryDirectory(prefix="aird-gguf-") as folder:
        (Path(folder) / file.name).symlink_to(file.absolute())
        with shared_header():
            yield folder


def dequantise_gguf_weights(source: Path, target: Path, dtype: torch.dtype, config: Any = None) -> None:
    """Write the weights of a GGUF file as a dense checkpoint without a tokenizer.

    Args:
        source: the file.
        target: an existing folder without a checkpoint.
        dtype: of the dense weights.
        config: how the model computes; None is what Transformers reads from the file, which is not all of it, so that
            only the weights may then be used.

    Raises:
        ValueError: it cannot be read.
    """
    import transformers

    try:
        with _alone(source) as folder:
            loading: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=source.name,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        model, loaded = loading
        check_complete(loaded, source)
    except Exception as error:  # as above
        raise ValueError(f"{source} cannot be read as a GGUF model ({error}); fetch it again") from error
    # Transformers keeps the GGUF quantiser on the model and then refuses to save it.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
