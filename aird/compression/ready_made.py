"""Import a compressed checkpoint that somebody else made, tied to the original that it was made from.

    record = import_given(Path("downloaded"), Path("original"), Path("imported"))

Weights that Transformers, PEFT and vLLM read as they are stay byte for byte. GPTQ, AWQ and
DeepSeek's FP8 keep their numbers in compressed-tensors' packing. What none of
them reads (GGUF, reordered columns, GPTQ's 2 and 3 bits, most quantised experts)
becomes a dense checkpoint of the decoded matrices, and the record says so. A GGUF
file stays beside its decoded matrices, for llama.cpp. Formats: docs/checkpoints.md.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from aird.compression.given_tokenizer import gguf_tokenizer, settle_tokenizer
from aird.compression.measure import check_stored_formats, measure, take_bits
from aird.models.blocks import outside_blocks
from aird.models.checkpoint import Checkpoint, natural_order, read_checkpoint
from aird.models.config_json import Config
from aird.models.dense import write_dense_copy
from aird.models.experts import decodes_experts
from aird.models.format import format_of
from aird.models.gguf_file import MODEL_FILE, GGUFFile, read_gguf
from aird.models.gguf_import import dequantise_gguf
from aird.models.importing import (
    check_folder_format,
    check_same_code,
    check_weights,
    copy_weights,
    prove_structure,
)
from aird.models.loading import (
    code_is_trusted,
    copy_description,
    load_structure,
    stored_dtype,
)
from aird.models.matrices import check_dense, matrix_of, matrix_shape, stored_format
from aird.models.packed import repacked_config
from aird.models.refusals import checkpoint_refusal, patch_refusal, refusal
from aird.models.rescaling import relation
from aird.settings.weights import WeightForm
from aird.support.files import atomic_folder, read_json, sha256_of, write_json

logger = logging.getLogger(__name__)

# What must be the original's: keys of config.json.
SIZES = ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class _Given:
    """What is said of the files that were given.

    Attributes:
        record: of the manifest.
        bits: each matrix's format and stored bytes.
        patch_refusal: why it cannot be patched.
        tokenizer: what it is, of a GGUF file.
    """

    record: dict[str, object]
    bits: dict[str, tuple[str, int]]
    patch_refusal: str | None = None
    tokenizer: str | None = None


def import_given(source: Path, original: Path, output: Path) -> dict[str, object]:
    """Write the ready-made checkpoint at `source` as a checkpoint folder of this project, and measure it.

    1. Refuse, before anything is copied: a format that is not read, code, sizes, matrices or a vocabulary that are
       not the original's, matrices that cannot be decoded.
    2. Write the folder: as given, repacked, or dequantised.
    3. Settle the tokenizer: its own, or the original's where it brings none or is a GGUF file.
    4. Measure it against the original.

    Args:
        source: a folder in Hugging Face format, or a GGUF file.
        original: the checkpoint folder of the model that it was made from.
        output: the folder to write; it appears when it is complete and checked.

    Returns:
        What `aird.compression.measure.measure` says, with the bits and bytes of the given files, and:
        `format` (the formats of the given matrices), `served_as` (a `WeightForm`: that of
        the checkpoint's weights, which Transformers and vLLM read),
        `given_files` {name: SHA-256}, `given_bytes`, `tokenizer` (equal to the original's, or how it differs),
        `changed_norms` and `rescaled` (names), `patchable`, and where that is false `not_patchable_because`.

    Raises:
        ValueError: it cannot be read, or does not fit its original.
    """
    with atomic_folder(output) as folder:
        bring = _import_gguf if source.is_file() else _import_folder
        given = bring(source, original, folder)
        check_weights(folder, source)
        tokenizer = given.tokenizer or settle_tokenizer(folder, original)
        measurements = measure(folder, original)
        check_stored_formats(measurements)
        changed = _changed_norms(folder, original)
    take_bits(measurements, given.bits)
    related = {
        word: [module for module, matrix in measurements["matrices"].items() if matrix.get("relation") == word]
        for word in ("rescaled", "unrelated")
    }
    reason = given.patch_refusal or _unrelated(related["unrelated"])
    return {
        **measurements,
        **given.record,
        "tokenizer": tokenizer,
        "changed_norms": changed,
        "rescaled": related["rescaled"],
        "patchable": reason is None,
        **({} if reason is None else {"not_patchable_because": reason}),
    }


def readable_form(source: Path) -> WeightForm:
    """Return in which form a ready-made checkpoint is read: as stored, repacked, or as a dense copy.

    Headers say so; of every format that it holds, one matrix is decoded.

    Args:
        source: a folder in Hugging Face format, or a GGUF file.

    Raises:
        ValueError: it is of a format that is not read.
    """
    if source.is_file():
        read_gguf(source)
        return WeightForm.DENSE_COPY
    given = read_checkpoint(source)
    if given.quantization_config is None:
        check_dense(given)
        return WeightForm.AS_STORED
    if reason := refusal(given.quantization_config):
        raise ValueError(f"{source} {reason}")
    forms = _forms(given)
    for form in sorted(set(forms.values())):
        matrix_of(given, next(module for module in forms if forms[module] == form))
    return _served_as(given, forms)


def write_readable(
    source: Path, folder: Path, form: WeightForm, original: Path | None = None, tokenizer: Path | None = None
) -> None:
    """Write a ready-made checkpoint as Transformers, PEFT and vLLM read it.

    Args:
        source: a folder in Hugging Face format, or a GGUF file.
        folder: an existing, empty folder.
        form: what `readable_form` says of it.
        original: the checkpoint folder of the model that it was made from, where that is known: a GGUF file's decoded
            weights take its type, else bfloat16, and its tokenizer (`aird.models.gguf_import.dequantise_gguf`).
        tokenizer: of a GGUF file without an original, the folder of its tokenizer, as there.
    """
    if source.is_file():
        dtype = torch.bfloat16 if original is None else stored_dtype(original)
        dequantise_gguf(source, folder, dtype, original, tokenizer)
    elif form == WeightForm.AS_STORED:
        copy_weights(source, folder, code_is_trusted())
    elif form == WeightForm.REPACKED:
        _write_repacked(read_checkpoint(source), folder)
    else:
        write_dense_copy(source, folder, _dtype(read_checkpoint(source)))


def patch_obstacle(source: Path, readable: Path, original: Path) -> str | None:
    """Return why a ready-made checkpoint cannot be patched; None for one that can. Every matrix is read.

    Args:
        source: a folder in Hugging Face format, or a GGUF file.
        readable: the folder that `write_readable` wrote of it, or the same folder.
        original: the checkpoint folder of the model that it was made from.

    Raises:
        ValueError: it has none of the original's matrices, or one in another shape.
    """
    quantisation = None if source.is_file() else read_checkpoint(source).quantization_config
    return patch_refusal(quantisation) or _unrelated(_unrelated_matrices(readable, original))


def _unrelated_matrices(readable: Path, original: Path) -> list[str]:
    ours, theirs = read_checkpoint(readable), read_checkpoint(original)
    # A mixture's experts may be stored as one tensor by one of the two.
    shared = set(theirs.block_matrices())
    modules = [module for module in ours.block_matrices() if module in shared]
    shapes = {module: [matrix_shape(each, module) for each in (theirs, ours)] for module in modules}
    different = [module for module, (wanted, found) in shapes.items() if wanted != found]
    if different or not modules:
        first = f"{different[0]} has another shape" if different else "it has none of the original's matrices"
        raise ValueError(f"{readable} was not made from {original}: {first}; name the checkpoint's own original")
    return [module for module in modules if relation(matrix_of(theirs, module), matrix_of(ours, module)).unrelated]


def check_config(config: Config, original: Path, name: str) -> None:
    """Check, from its config.json alone, that a checkpoint is of a format that is read and has its original's sizes.

    Args:
        config: its config.json.
        original: the original's checkpoint folder.
        name: what a message calls it.

    Raises:
        ValueError: names the format or the first difference.
    """
    if reason := checkpoint_refusal(config):
        raise ValueError(f"{name} {reason}")
    theirs = read_json(original / "config.json")
    ours, theirs = (values.get("text_config", values) for values in (config, theirs))
    for key in SIZES:
        sizes = ours.get(key), theirs.get(key)
        # GPTQ and AWQ are padded where their groups would not fill a matrix, as Qwen's own of 72B are.
        if key == "intermediate_size" and "quantization_config" in config and None not in sizes and sizes[0] > sizes[1]:
            raise ValueError(
                f"{name} has wider matrices than {original}: its {key} is {sizes[0]}, the original's {sizes[1]}; where "
                "it was padded for its packing it is not read, so take one of the original's sizes, such as a GGUF "
                "file; else name the checkpoint's own original as the model"
            )
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{name} was not made from {original}: its {key} is {sizes[0]}, the original's {sizes[1]}; name the "
                "checkpoint's own original as the model"
            )


def check_fits(given: Checkpoint, original: Checkpoint) -> None:
    """Check, from headers alone, that a checkpoint has the matrices of its original.

    Raises:
        ValueError: names the first difference.
    """
    shapes = {module: matrix_shape(given, module) for module in given.block_matrices()}
    wanted = {module: matrix_shape(original, module) for module in original.block_matrices()}
    for module in sorted(shapes.keys() ^ wanted.keys()):
        side = "lacks" if module in wanted else "adds"
        raise ValueError(f"{given.folder} {side} the matrix {module}; the original's names are needed")
    for module, shape in shapes.items():
        if shape != wanted[module]:
            raise ValueError(f"{given.folder}: {module} is {shape}, the original's is {wanted[module]}")


def _check_others(given: Checkpoint, original: Checkpoint) -> None:
    """Check, from headers alone, that a checkpoint has its original's norms and biases, embedding and output head."""
    known = {name for name, _ in load_structure(original.folder).named_parameters()}
    compared = set(original.block_matrices())
    for name, tensor in original.tensors.items():
        module, _, _ = name.rpartition(".")
        missing = name not in given.tensors
        if len(tensor.shape) == 2:  # it may be stored packed
            missing = module not in compared and not given.module_tensors(module)
        if name in known and len(tensor.shape) <= 2 and missing:
            raise ValueError(f"{given.folder} lacks the tensor {name}; fetch it again, or take a complete checkpoint")


def _import_folder(source: Path, original: Path, folder: Path) -> _Given:
    check_folder_format(source)
    check_same_code(source, original)
    given = read_checkpoint(source)
    check_config(given.config, original, str(source))
    served_as = readable_form(source)  # before shapes, which a packing that is not read does not tell
    theirs = read_checkpoint(original)
    check_fits(given, theirs)
    _check_others(given, theirs)
    forms = _forms(given)
    logger.info("%s holds %s; it is served as %s", source, ", ".join(sorted(set(forms.values()))), served_as)
    write_readable(source, folder, served_as)
    stored = {module: given.module_tensors(module).values() for module in forms}
    files = {path.name: sha256_of(path) for path in given.weight_files}
    record = {
        "format": sorted(set(forms.values())),
        "served_as": served_as,
        "given_files": files,
        "given_bytes": sum(path.stat().st_size for path in given.weight_files),
    }
    bits = {module: (forms[module], sum(tensor.size for tensor in tensors)) for module, tensors in stored.items()}
    return _Given(record, bits, patch_refusal(given.quantization_config))


def _import_gguf(source: Path, original: Path, folder: Path) -> _Given:
    file = read_gguf(source)
    theirs = read_checkpoint(original)
    _check_gguf_fits(file, theirs)
    dequantise_gguf(source, folder, stored_dtype(original), original)
    prove_structure(folder)
    decoded = read_checkpoint(folder)
    check_fits(decoded, theirs)
    _check_others(decoded, theirs)
    shutil.copyfile(source, folder / MODEL_FILE)  # for llama.cpp
    stored = {module: file.tensor_of(module) for module in theirs.block_matrices()}
    record = {
        "format": ["gguf"],
        "served_as": WeightForm.DENSE_COPY,
        "quantisation_types": file.types(),
        "given_files": {source.name: sha256_of(source)},
        "given_bytes": source.stat().st_size,
    }
    bits = {module: (tensor.type, tensor.size) for module, tensor in stored.items()}
    return _Given(record, bits, tokenizer=gguf_tokenizer(file, folder, original))


def _check_gguf_fits(file: GGUFFile, original: Checkpoint) -> None:
    """Check a GGUF file's sizes before it is dequantised, which takes memory and minutes."""
    config = original.config.get("text_config", original.config)
    keys = {"block_count": "num_hidden_layers", "embedding_length": "hidden_size"}
    for key, name in (keys | {"feed_forward_length": "intermediate_size"}).items():
        if file.sizes.get(key) != config.get(name):
            raise ValueError(
                f"{file.path} was not made from {original.folder}: its {key} is {file.sizes.get(key)}, the original's "
                f"{name} {config.get(name)}; name the file's own original as the model"
            )


def _forms(given: Checkpoint) -> dict[str, str]:
    """Return the stored format of each matrix of the blocks."""
    return {module: stored_format(given, module) for module in given.block_matrices()}


def _served_as(given: Checkpoint, forms: dict[str, str]) -> WeightForm:
    """Return how a readable checkpoint gets into the workflow."""
    if given.routers() and not decodes_experts(load_structure(given.folder), given):
        return WeightForm.DENSE_COPY
    found = format_of(given.quantization_config)
    if found is None or found.needs_decoding(given, list(forms)):
        return WeightForm.DENSE_COPY
    return WeightForm.AS_STORED if found.repack is None or set(forms.values()) == {"dense"} else WeightForm.REPACKED


def _write_repacked(given: Checkpoint, folder: Path) -> None:
    """Write a checkpoint in compressed-tensors' packing, shard by shard."""
    config = given.quantization_config or {}
    found = format_of(config)
    assert found is not None and found.repack is not None and found.scheme is not None, "`readable_form` says REPACKED"
    forms = {module: stored_format(given, module) for module in given.matrix_modules()}
    quantised = [module for module, form in forms.items() if form in found.forms]
    places = {module: min(tensor.file for tensor in given.module_tensors(module).values()) for module in quantised}
    packed = {tensor.name for module in quantised for tensor in given.module_tensors(module).values()}
    weight_map: dict[str, str] = {}
    for file in given.weight_files:
        kept = (tensor for tensor in given.tensors.values() if tensor.file == file and tensor.name not in packed)
        tensors = {tensor.name: tensor.load() for tensor in kept}
        for module in (module for module, place in places.items() if place == file):
            stored = {local: tensor.load() for local, tensor in given.module_tensors(module).items()}
            made = found.repack(stored, config)
            if made.form == "pack-quantized":
                # vLLM keeps scales of integers in the model's type, whatever type they are stored in.
                made.tensors["weight_scale"] = made.tensors["weight_scale"].to(_dtype(given))
            tensors |= {f"{module}.{local}": tensor for local, tensor in made.tensors.items()}
        save_file(tensors, folder / file.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file.name)
    if len(given.weight_files) > 1:
        write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    copy_description(given.folder, folder, code_is_trusted())
    outside = outside_blocks(load_structure(given.folder))
    dense = sorted({module for module in [*forms, *outside] if module not in quantised})
    config = {**given.config, "quantization_config": repacked_config(found.scheme(given, ""), dense)}
    write_json(folder / "config.json", config)


def _dtype(given: Checkpoint) -> torch.dtype:
    """Return the type that a checkpoint computes in, by its configuration."""
    text = given.config.get("text_config", given.config)
    dtype: torch.dtype = getattr(torch, str(text.get("dtype") or text.get("torch_dtype") or "bfloat16"))
    return dtype


def _changed_norms(folder: Path, original: Path) -> list[str]:
    """Return the names of the norms whose weights are not the original's: what a packer's scales went into."""
    ours, theirs = read_checkpoint(folder).tensors, read_checkpoint(original).tensors
    norms = [name for name in theirs if len(theirs[name].shape) == 1 and name.endswith(".weight") and name in ours]
    # Another float type rounds them; a packer's scales move them further.
    return [
        name
        for name in sorted(norms, key=natural_order)
        if not torch.allclose(ours[name].load().float(), theirs[name].load().float(), rtol=0.01, atol=1e-6)
    ]


def _unrelated(modules: list[str]) -> str | None:
    if not modules:
        return None
    return (
        f"{len(modules)} matrices, {modules[0]} first, are no compressed form of the original's: they were rotated "
        "(SpinQuant, QuaRot), or belong to another model"
    )
