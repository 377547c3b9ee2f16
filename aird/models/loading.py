"""Load chat models and their tokenizers from checkpoint folders.

A *checkpoint* is a folder in Hugging Face format: config.json, safetensors
weights, tokenizer, chat template and generation configuration.
"""

from __future__ import annotations

import contextlib
import copy
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aird.inference.cpu_attention import needed_attention
from aird.models.block_proof import norm_gain, written_size
from aird.models.blocks import ArchitectureError, decoder_blocks
from aird.models.checkpoint import check_complete, read_checkpoint
from aird.models.experts import fused_parameters
from aird.models.format import format_of
from aird.models.placement import spread
from aird.models.structure import writer_contributions
from aird.models.tokenizer_file import read_tokenizer
from aird.prompts.chat import chat_tokens, with_chat
from aird.settings.models import Chat
from aird.support.checkpoint_patterns import CODE, DESCRIPTION, TOKENIZER, matching_files
from aird.support.files import check_folder, read_json, write_json
from aird.support.gpus import own_gpus
from aird.support.processor import computes_in

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TRUST = "trust_remote_code"  # key of a manifest
CHAT_FILE = "aird_chat.json"  # in a checkpoint folder: its chat settings, where it has any
# Names of tensors without which a matrix is another one: packed values and scales, of all formats that are read.
DECODING = re.compile(
    r"\.(weight_(packed|scale|scale_inv|global_scale)|qweight|qzeros|scales|SCB|weight\.(absmax|quant_\w+|quant_state\..+))$"
)
_trusted: list[bool] = []
_chat: list[Chat] = []


def open_checkpoint(folder: Path, manifest: Path) -> Mapping[str, Any]:
    """Check a checkpoint's files against its manifest; return the manifest.

    Where it says that the user trusts the model's own code, that code may run from now on in this
    process, which handles checkpoints of one model.

    Raises:
        ValueError: a file is missing, was added or altered.
    """
    record: Mapping[str, Any] = read_json(manifest)
    check_folder(folder, record["files"])
    if record.get(TRUST):
        trust_code()
    return record


def trust_code() -> None:
    """From now on, modelling code that comes with a checkpoint may run in this process."""
    _trusted.append(True)


def code_is_trusted() -> bool:
    """Return whether modelling code that comes with a checkpoint may run; off unless the user turned it on."""
    return bool(_trusted)


def use_chat(chat: Chat) -> None:
    """From now on, every checkpoint of this process has these chat settings; no folder may say anything else."""
    _chat[:] = [chat]


@contextlib.contextmanager
def settings_of_a_call() -> Iterator[None]:
    """Let chat settings and trust in code hold until the context ends, and not for the whole process."""
    before = list(_chat), list(_trusted)
    try:
        yield
    finally:
        _chat[:], _trusted[:] = before


@contextlib.contextmanager
def another_model(chat: Chat | None) -> Iterator[None]:
    """Let another model, such as a judge, have chat settings of its own, and run no code, until the context ends."""
    with settings_of_a_call():
        _chat[:], _trusted[:] = [] if chat is None else [chat], []
        yield


def read_chat(checkpoint: Path) -> Chat | None:
    """Return the chat settings of a checkpoint; None where it has none.

    Raises:
        ValueError: its file of them is altered, or says something else than `use_chat`.
    """
    path = checkpoint / CHAT_FILE
    stored = Chat.model_validate(read_json(path)) if path.is_file() else None
    if _chat and stored not in (None, _chat[0]):
        raise ValueError(
            f"{checkpoint} has chat settings of its own ({stored.in_words()}), with which it was made, and options "
            f"of the command say something else ({_chat[0].in_words()}); leave those out"
        )
    return _chat[0] if _chat else stored


def write_chat(chat: Chat | None, checkpoint: Path) -> None:
    """Store chat settings in a checkpoint folder, from where `copy_description` takes them; none is no file."""
    if chat is None or chat == Chat():
        (checkpoint / CHAT_FILE).unlink(missing_ok=True)
    else:
        write_json(checkpoint / CHAT_FILE, chat.model_dump())


def load_tokenizer(checkpoint: Path) -> PreTrainedTokenizerBase:
    """Return the checkpoint's tokenizer, which carries its chat settings.

    Raises:
        ValueError: it has no chat template, or Transformers reads it otherwise than its file says (`read_tokenizer`).
    """
    tokenizer = with_chat(read_tokenizer(checkpoint, code_is_trusted()), read_chat(checkpoint))
    chat_tokens(tokenizer, "Hello.")
    return tokenizer


def compute_dtype(checkpoint: Path) -> torch.dtype | str:
    """Return the type to load a checkpoint in: "auto", its own, or float32 where a processor is faster in that."""
    if torch.cuda.is_available() or computes_in(str(stored_dtype(checkpoint)).removeprefix("torch.")) != "float32":
        return "auto"
    return torch.float32


def load_model(
    checkpoint: Path,
    adapter: Path | None = None,
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """Return the checkpoint as a Transformers model in evaluation mode, on a GPU where there is one.

    On a machine's only visible GPU, what does not fit there stays in main memory or on the disk. Over several that are
    this process's own (aird/support/gpus.py) the model is spread (aird/models/placement.py); of several that are not it
    takes the first. It computes in the checkpoint's type, except on a processor that is
    faster in float32 (aird/support/processor.py), and by an attention that does all that the model asks of one.

    Args:
        checkpoint: a checkpoint folder, dense or quantised.
        adapter: a PEFT adapter folder to put on top.
        dtype: the type to compute in, instead of that.

    Returns:
        The model; with an adapter, PEFT's wrapper of it, which passes on what the model has.

    Raises:
        ValueError: a weight is missing, or has another shape than config.json says; what decodes a matrix was not
            read; or the adapter holds none for a module that it says it changes.
    """
    from transformers import AutoModelForCausalLM

    chosen = dtype or compute_dtype(checkpoint)
    loading: Any = AutoModelForCausalLM.from_pretrained(
        str(checkpoint),
        dtype=chosen,
        device_map=_device_map(checkpoint),
        attn_implementation=attention(checkpoint),
        trust_remote_code=code_is_trusted(),
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    model: PreTrainedModel
    model, loaded = loading
    check_complete(loaded, checkpoint)
    _check_scales(loaded["unexpected_keys"], model, checkpoint)
    if isinstance(chosen, torch.dtype) and fused_parameters(model):
        # Of a quantised mixture, Transformers leaves experts and routers in the type that they were stored in.
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.element_size() > 1:
                parameter.data = parameter.data.to(chosen)
    if adapter is not None:
        from peft import PeftModel

        form = format_of(read_checkpoint(checkpoint).quantization_config)
        if form is not None and form.unpacked_by_pass:
            # PEFT looks for `weight`. Other formats must not run before: on a CPU, the first pass of some rearranges
            # weights that PEFT then reads.
            with torch.no_grad():
                model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device), use_cache=False)
        with warnings.catch_warnings():
            # PEFT leaves a module that it finds no weights for as it was, and says so in a warning alone.
            warnings.filterwarnings("error", "Found missing adapter keys")
            try:
                adapted: Any = PeftModel.from_pretrained(model, str(adapter))
            except UserWarning as warning:
                raise ValueError(
                    f"{adapter} holds no weights for some modules that it says it changes, so it would be measured "
                    f"without them: it was made for a model with other names of modules than {checkpoint} has, such "
                    "as a model of vision and language whose text model this is; rename its tensors, or make it again "
                    f"for this checkpoint ({str(warning)[:300]})"
                ) from None
        model = adapted
    model.eval()
    model.requires_grad_(False)
    return model


def _check_scales(unread: Iterable[str], model: PreTrainedModel, checkpoint: Path) -> None:
    """Check that Transformers has read all that decodes a model's matrices; it only reports what it leaves aside.

    Zero points are no part of this: a symmetric matrix may have some, which are all zero.

    Args:
        unread: names of stored tensors that belong to no parameter.
        model: the loaded model; a block that is stored beside its own is not used.
        checkpoint: its folder, for the message.

    Raises:
        ValueError: scales or packed values of one of its blocks were not read, so that it would compute with others.
    """
    blocks = decoder_blocks(model)
    prefixes = tuple(f"{name}." for name, module in model.named_modules() if any(module is block for block in blocks))
    lost = sorted(name for name in unread if name.startswith(prefixes) and DECODING.search(name))
    if lost:
        raise ValueError(
            f"{checkpoint} stores {lost[0]} (and {len(lost) - 1} more), which Transformers does not read, so its "
            "matrices would be others than the stored ones; import it as a ready-made checkpoint, which decodes them"
        )


def attention(checkpoint: Path) -> str | None:
    """Return the attention to load a checkpoint with, as `aird.inference.cpu_attention.needed_attention` does."""
    return needed_attention(configuration_of(checkpoint))


def _device_map(checkpoint: Path) -> dict[str, int] | str | None:
    if not torch.cuda.is_available():
        return None
    if own_gpus() > 1:
        return spread(load_structure(checkpoint), own_gpus())
    # "auto" deals a model to all visible GPUs, its head to the last one, where nobody here looks for logits.
    return "auto" if torch.cuda.device_count() == 1 else {"": 0}


def stored_dtype(checkpoint: Path) -> torch.dtype:
    """Return the type that the checkpoint's configuration names; float32 where it names none."""
    return getattr(configuration_of(checkpoint), "dtype", None) or torch.float32


def configuration_of(checkpoint: Path) -> PreTrainedConfig:
    """Return a checkpoint's configuration as Transformers reads it."""
    from transformers import AutoConfig

    config: PreTrainedConfig = AutoConfig.from_pretrained(str(checkpoint), trust_remote_code=code_is_trusted())
    return config


def stored_gains(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the gain of the norm behind each writer that has one, as `writer_gains` does, from a checkpoint's files.

    Raises:
        ValueError: a norm is not stored under its module's name, or is no RMS norm.
    """
    structure = load_structure(checkpoint)
    stored = read_checkpoint(checkpoint).tensors
    gains = {}
    for writer, contribution in writer_contributions(structure).items():
        if contribution.norm is None:
            continue
        norm = copy.deepcopy(structure.get_submodule(contribution.norm)).to_empty(device="cpu")
        names = {local: f"{contribution.norm}.{local}" for local in norm.state_dict()}
        absent = [name for name in names.values() if name not in stored]
        if absent:
            raise ArchitectureError(f"{checkpoint} stores no tensor {absent[0]}, the norm behind {writer}")
        norm.load_state_dict({local: stored[name].load() for local, name in names.items()}, assign=True)
        gains[writer] = norm_gain(contribution.norm, norm, written_size(structure, writer))
    return gains


def copy_description(source: Path, target: Path, with_code: bool = True) -> None:
    """Copy configuration, tokenizer, chat template and own code of a checkpoint, but no weights or their index.

    A checkpoint of this project holds code only where the user trusts it (`import_model`).
    """
    for path in matching_files(source, *DESCRIPTION, *([CODE] if with_code else [])):
        if not path.name.endswith(".index.json"):
            shutil.copyfile(path, target / path.name)


def load_structure(checkpoint: Path) -> PreTrainedModel:
    """Return the checkpoint's architecture with empty weights (meta device): its modules, for free.

    Raises:
        ArchitectureError: it is no causal language model, such as a wrapper of vision and language.
    """
    import transformers

    config = configuration_of(checkpoint)
    model: PreTrainedModel
    try:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                config, attn_implementation=needed_attention(config), trust_remote_code=code_is_trusted()
            )
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        inner = config.get_text_config()
        advice = (
            "" if inner is config else f"; save its text model ({inner.model_type}) alone, as a causal language model"
        )
        raise ArchitectureError(
            f"{checkpoint}: Transformers has no causal language model of the type {config.model_type}{advice}"
        ) from None
    model.eval()
    return model


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy tokenizer and chat template of a checkpoint folder."""
    for path in (path for pattern in TOKENIZER for path in source.glob(pattern)):
        shutil.copyfile(path, target / path.name)
