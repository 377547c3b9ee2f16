"""A patch as a GGUF LoRA, which llama.cpp adds to a GGUF model while it runs.

Format: `general.type` is "adapter" and `adapter.type` "lora"; each edited tensor NAME of the model has NAME.lora_a
[rank, d_in] and NAME.lora_b [d_out, rank]. llama.cpp adds alpha / rank x B A, as PEFT does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from aird.models.gguf_file import GGUFFile
from aird.models.matrices import dense_matrix
from aird.patching.adapters import load_adapter
from aird.patching.edits import Edit
from aird.support.files import atomic_file

if TYPE_CHECKING:
    from gguf import GGUFWriter


def write_gguf_adapter(adapter: Path, checkpoint: Path, model: GGUFFile, output: Path) -> list[str]:
    """Write a LoRA adapter as a GGUF file.

    Args:
        adapter: a PEFT adapter folder, plain LoRA of any rank.
        checkpoint: the decoded checkpoint of the GGUF model, in Transformers' names and order of rows.
        model: the GGUF model.
        output: the file to write; it appears when it is complete.

    Returns:
        the edited modules, in Transformers' names.

    Raises:
        ValueError: the adapter is no plain LoRA, fits other shapes, or edits a matrix that llama.cpp has no name for,
            or whose rows or columns it holds in another order.
    """
    import gguf

    writer = gguf.GGUFWriter(None, model.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    edits = [edit for edit, _ in edited_matrices(adapter, checkpoint, model)]
    (rank,) = {edit.rank for edit in edits}
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))  # the edits hold their scale
    for edit in edits:
        name = model.tensor_of(edit.module).name
        writer.add_tensor(f"{name}.lora_a", edit.down.contiguous().numpy())
        writer.add_tensor(f"{name}.lora_b", edit.up.contiguous().numpy())
    write_gguf(writer, output)
    return [edit.module for edit in edits]


def edited_matrices(adapter: Path, checkpoint: Path, model: GGUFFile) -> Iterator[tuple[Edit, torch.Tensor]]:
    """Yield the edits of an adapter with the matrices of a GGUF model that they change, [d_out, d_in] float32.

    Arguments and errors as of `write_gguf_adapter`.
    """
    edits = {edit.module: edit for edit in load_adapter(adapter)}
    if any(edit.of_experts for edit in edits.values()):
        raise ValueError(
            f"{adapter} edits routed experts, for which llama.cpp has no LoRA here; merge the patch (`aird patch "
            "--merged`) and convert the merged checkpoint to GGUF"
        )
    for module, matrix in model.matrices(edits):
        decoded, edit = dense_matrix(checkpoint, module), edits[module]
        shape = (edit.up.shape[0], edit.down.shape[1])
        if tuple(matrix.shape) != shape:
            raise ValueError(
                f"{adapter} is for another model: it adds {list(shape)} to {module}, which is {list(matrix.shape)} "
                f"in {model.path}"
            )
        if not torch.equal(matrix.to(decoded.dtype), decoded):
            raise ValueError(
                f"{model.path} holds the rows or columns of {module} in another order than Transformers, so a GGUF "
                "LoRA cannot edit it; merge the patch and convert the merged checkpoint to GGUF"
            )
        yield edit, matrix


def write_gguf(writer: GGUFWriter, output: Path) -> None:
    """Write what a writer was given to a file, which appears when it is complete."""
    with atomic_file(output) as temporary:
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
