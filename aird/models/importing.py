"""Turn any source into a checkpoint folder of safetensors: a folder in Hugging Face format, a wrapper, a GGUF file.

Apart from what loads a checkpoint, on which every job of a model hangs.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from aird.models.blocks import ArchitectureError
from aird.models.checkpoint import read_checkpoint
from aird.models.config_json import config_refusal
from aird.models.generation_settings import ends_of_text
from aird.models.gguf_import import dequantise_gguf
from aird.models.loading import (
    code_is_trusted,
    copy_description,
    load_model,
    load_structure,
    load_tokenizer,
    trust_code,
    write_chat,
)
from aird.models.matrices import check_dense
from aird.models.refusals import ADAPTER, ADAPTER_INSIDE, original_refusal
from aird.models.structure import residual_writers, writer_contributions
from aird.models.text_model import extract_text_model, is_wrapper
from aird.models.tokenizer_file import let_its_file_be_read
from aird.prompts.chat import check_chat
from aird.settings.models import Chat
from aird.support.checkpoint_patterns import CODE, WEIGHTS, matching_files, weight_files
from aird.support.files import read_json

if TYPE_CHECKING:
    pass


def import_model(
    source: Path, target: Path, dtype: str, trust_remote_code: bool = False, chat: Chat | None = None
) -> dict[str, str] | None:
    """Write the model at `source` as a checkpoint folder `target`.

    A folder in Hugging Face format is copied, safetensors only, and its own code only where that is
    trusted. Of a wrapper of vision and language the text model alone is written. A GGUF file is
    dequantised to `dtype`: it then stands in for the original checkpoint. A tokenizer that Transformers would read
    otherwise than its file says gets another class (`aird.models.tokenizer_file.let_its_file_be_read`).
    Chat settings are stored with it; without any, those that the source's own folder holds stay.

    Returns:
        What the wrapper was (`aird.models.text_model.extract_text_model`); None for a plain model.

    Raises:
        ValueError: the source has no safetensors weights, no config or no chat template, is quantised, a weight is
            truncated, missing, NaN or infinite, it needs code that is not trusted, or its blocks lack
            the structure that directions and AIRD need, which is proven on its weights; the chat settings
            do not fit its template, or the template knows of thoughts that none of them is about.
    """
    wrapper = None
    if source.is_dir():
        check_folder_format(source)
        if reason := original_refusal(read_json(source / "config.json")):
            raise ValueError(f"{source}: {reason}")
        check_dense(read_checkpoint(source))
        if holds_wrapper(source, trust_remote_code):
            wrapper = write_text_model(source, target, trust_remote_code)
        else:
            copy_weights(source, target, trust_remote_code)
    else:
        dequantise_gguf(source, target, getattr(torch, dtype))
    check_weights(target, source)
    if trust_remote_code:
        trust_code()
    if chat is not None:
        write_chat(chat, target)
    let_its_file_be_read(target, trust_remote_code)
    check_chat(load_tokenizer(target))
    try:
        prove_structure(target)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{source} needs modelling code of its own; to let it run, write trust_remote_code: true for this model"
        ) from error
    return wrapper


def holds_wrapper(source: Path, trust_remote_code: bool) -> bool:
    """Return whether a model folder holds a wrapper of vision (or sound) and language."""
    from transformers import AutoConfig

    try:
        return is_wrapper(AutoConfig.from_pretrained(str(source), trust_remote_code=trust_remote_code))
    except (ValueError, OSError):
        return False  # what is wrong with its configuration is said where the model is loaded


def write_text_model(source: Path, target: Path, trust_remote_code: bool) -> dict[str, str]:
    """Write the text model of a wrapper with its tokenizer and chat template; return and raise as `extract_text_model`.

    Args:
        source: the wrapper's folder.
        target: an existing, empty folder.
        trust_remote_code: let code that the model brings run.
    """
    copy_description(source, target, trust_remote_code)
    wrapper = extract_text_model(source, target, trust_remote_code)
    _unfold_template(target)
    return wrapper


def _unfold_template(checkpoint: Path) -> None:
    """Give the tokenizer the chat template that a processor stores as JSON."""
    folded, template = checkpoint / "chat_template.json", checkpoint / "chat_template.jinja"
    if folded.is_file() and not template.is_file():
        template.write_text(read_json(folded)["chat_template"], encoding="utf-8")
        folded.unlink()


def prove_structure(checkpoint: Path) -> None:
    """Prove on a checkpoint's own weights what its blocks write to the residual stream, by passes of a few tokens.

    It computes in float32 on every machine, where the bound of the proof is tightest.

    Raises:
        ValueError: a block writes something else (`aird.models.structure.residual_writers`), no matrix can be
            edited, a norm behind one has no gain to edit before, or the matrices are stored under other names than
            their modules have.
    """
    structure = load_structure(checkpoint)
    if not writer_contributions(structure):  # what can be refused for free
        obstacles = [text for block in residual_writers(structure) for text in block.obstacles]
        raise ArchitectureError(f"{checkpoint}: no matrix of this model can be edited: {'; '.join(obstacles[:2])}, ...")
    model = load_model(checkpoint, dtype=torch.float32)
    for read, known in zip(residual_writers(model), residual_writers(structure), strict=True):
        for text in (each for each in read.obstacles if each not in known.obstacles):  # what weights alone show
            raise ArchitectureError(f"{checkpoint}: {text}; no patch of this model is made (`aird direction` works)")
        if read != known:
            raise ArchitectureError(f"{checkpoint}: its block {read.block} is read differently without its weights")
    stored = read_checkpoint(checkpoint).tensors
    for writer, contribution in writer_contributions(model).items():
        for module in (writer, contribution.norm or writer):
            if not any(name.startswith(f"{module}.") for name in stored):
                raise ArchitectureError(
                    f"{checkpoint}: the module {module} has no stored tensor of its name (stored are "
                    f"{', '.join(list(stored)[:3])}, ...), so it could not be edited; load the model with Transformers "
                    "and write it again with save_pretrained(folder, save_original_format=False)"
                )


def check_weights(checkpoint: Path, source: Path) -> None:
    """Read every weight of a checkpoint once: all are there, complete and finite.

    Args:
        checkpoint: a checkpoint folder.
        source: what it was made from, for the message.

    Raises:
        ValueError: names the file or tensor.
    """
    for file in sorted(checkpoint.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as reader:
                for name in reader.keys():  # noqa: SIM118 - it is no dictionary
                    tensor = reader.get_tensor(name)
                    if tensor.is_floating_point() and not _is_finite(tensor):
                        raise ValueError(f"{source}: tensor {name} of {file.name} holds NaN or infinite values")
        except SafetensorError as error:
            raise ValueError(f"{source}: {file.name} is truncated or altered ({error}); fetch it again") from error
    read_checkpoint(checkpoint)  # an index that lists what no shard holds


def _is_finite(tensor: torch.Tensor) -> bool:
    """Return whether no value is NaN or infinite, by the extremes, in which either shows."""
    if tensor.element_size() == 1:  # no extremes of 8-bit floating point
        tensor = tensor.float()
    return tensor.numel() == 0 or all(bool(extreme.isfinite()) for extreme in torch.aminmax(tensor))


def check_folder_format(folder: Path) -> None:
    """Check that a folder holds a model in Hugging Face format with safetensors weights, and no adapter.

    Raises:
        ValueError: says what is missing, what is too much, or which file of settings cannot be.
    """
    if not weight_files(folder):
        raise ValueError(f"{folder} holds no *.safetensors file; convert the model with save_pretrained first")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json: it is not a model folder in Hugging Face format")
    if (folder / ADAPTER).is_file():
        raise ValueError(f"{folder} {ADAPTER_INSIDE}")
    if reason := config_refusal(read_json(folder / "config.json")):
        raise ValueError(f"{folder} {reason}")
    ends_of_text(folder)


def check_same_code(folder: Path, original: Path) -> None:
    """Check that a compressed checkpoint brings no code but its original's, where that is trusted: nobody read another.

    Without trust nothing is checked, as no code runs.

    Args:
        folder: the compressed checkpoint's folder.
        original: the original's.

    Raises:
        ValueError: names the file of code that the original does not have so, or the entry of `auto_map`.
    """
    if not code_is_trusted():
        return
    as_its_own = "or measure the checkpoint by itself, as a model of its own"
    ours, theirs = ({path.name: path for path in place.glob(CODE)} for place in (folder, original))
    for name in sorted(ours):
        if name not in theirs:
            raise ValueError(
                f"{folder} brings the code {name}, and {original}, whose code is trusted, has no such file; read it, "
                f"and remove it, {as_its_own}"
            )
        if ours[name].read_bytes() != theirs[name].read_bytes():
            raise ValueError(
                f"{folder} brings another {name} than {original}, whose code is trusted; read it, and copy the "
                f"original's over it, {as_its_own}"
            )
    named = _named_code(folder)
    for entry in sorted(named - _named_code(original)):
        raise ValueError(
            f"{folder} takes code from {entry[1]} ({entry[0]} in an auto_map), and {original}, whose code is trusted, "
            f"does not; write the original's auto_map, {as_its_own}"
        )
    if named and (absent := sorted(theirs.keys() - ours.keys())):
        raise ValueError(f"{folder} names its original's code and lacks {absent[0]}; copy it from {original}")


def _named_code(folder: Path) -> set[tuple[str, str]]:
    """Return (class of Transformers, where its code is) of every `auto_map` in a model's configuration files."""
    found: set[tuple[str, str]] = set()
    left = [read_json(path) for path in folder.glob("*config.json")]
    while left:
        value = left.pop()
        if not isinstance(value, dict):
            continue
        left += value.values()
        entries = value.get("auto_map")
        # Of a tokenizer there are two: the slow class and the fast one, either of which may be absent.
        for name, code in entries.items() if isinstance(entries, dict) else [("a class", entries)]:
            found |= {(name, str(each)) for each in (code if isinstance(code, list) else [code]) if each is not None}
    return found


def copy_weights(source: Path, target: Path, with_code: bool) -> None:
    """Copy a model folder: safetensors and their index, and what describes them; nothing in Mistral's own format.

    Raises:
        ValueError: as `check_folder_format`.
    """
    check_folder_format(source)
    for path in matching_files(source, *WEIGHTS, "*.index.json"):
        shutil.copyfile(path, target / path.name)
    copy_description(source, target, with_code)
