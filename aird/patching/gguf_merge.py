"""A patch merged into a GGUF model: one file, for programs that take no adapters (Ollama, LM Studio).

Edited matrices are stored in 16 bits, as rounding them again could take the repair away; all other tensors and what the
file says about itself stay as they are, byte for byte.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from aird.models.gguf_file import GGUFFile
from aird.models.matrices import dense_matrix
from aird.patching.adapters import load_adapter
from aird.support.files import atomic_file


def write_merged_gguf(adapter: Path, checkpoint: Path, model: GGUFFile, output: Path) -> list[str]:
    """Write a GGUF model with a LoRA adapter merged into it.

    Args:
        adapter: a PEFT adapter folder, plain LoRA of any rank.
        checkpoint: the decoded checkpoint of the GGUF model, in Transformers' names and order of rows.
        model: the GGUF model.
        output: the file to write; it appears when it is complete.

    Returns:
        the edited modules, in Transformers' names.

    Raises:
        ValueError: the adapter edits experts, fits other shapes, or edits a matrix that llama.cpp has no name for, or
            whose rows or columns it holds in another order.
    """
    import gguf

    edits = {edit.module: edit for edit in load_adapter(adapter)}
    merged = {}
    for module, matrix in model.matrices(edits):
        decoded, change = dense_matrix(checkpoint, module), edits[module].matrix()
        if change.shape != matrix.shape:
            raise ValueError(
                f"{adapter} is for another model: it adds {list(change.shape)} to {module}, which is "
                f"{list(matrix.shape)} in {model.path}"
            )
        if not torch.equal(matrix.to(decoded.dtype), decoded):
            raise ValueError(
                f"{model.path} holds the rows or columns of {module} in another order than Transformers, so "
                "the patch cannot be merged into it; merge it into the checkpoint (`aird patch --merged`), and convert "
                "that to GGUF"
            )
        merged[model.tensor_of(module).name] = (matrix + change).half().numpy()
    reader = gguf.GGUFReader(model.path)
    writer: Any = gguf.GGUFWriter(None, model.architecture)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != gguf.Keys.General.ARCHITECTURE:
            kind, *inner = field.types
            writer.add_key_value(name, field.contents(), kind, *inner[-1:])
    for tensor in reader.tensors:
        if tensor.name in merged:
            writer.add_tensor(tensor.name, merged[tensor.name])
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    with atomic_file(output) as temporary:
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return list(edits)
