"""A patch merged into a GGUF model: one file, for programs that take no adapters (Ollama, LM Studio).

Edited matrices are stored in 16 bits, as rounding them again could take the repair away; all other tensors and what the
file says about itself stay as they are, byte for byte.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aird.models.gguf_file import GGUFFile
from aird.patching.gguf_adapter import edited_matrices, write_gguf


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

    modules, merged = [], {}
    for edit, matrix in edited_matrices(adapter, checkpoint, model):
        modules.append(edit.module)
        merged[model.tensor_of(edit.module).name] = (matrix + edit.matrix()).half().numpy()
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
    write_gguf(writer, output)
    return modules
