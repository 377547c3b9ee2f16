"""What every format of quantised checkpoints says of itself. The formats stand in aird/models/formats/."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aird.plugin import FORMATS

if TYPE_CHECKING:
    import torch

    from aird.models.checkpoint import Checkpoint, StoredTensor

# Helps against most formats.
CONVERT = "convert the original with llm-compressor, which writes compressed-tensors"

Quantisation = Mapping[str, Any]  # the `quantization_config` of a config.json
Stored = Mapping[str, "StoredTensor"]  # the tensors of a module's weight by local name


class Repacked(NamedTuple):
    """One matrix as compressed-tensors stores it.

    Attributes:
        tensors: stored tensors by local name.
        scheme: its compressed-tensors scheme.
        form: the packing, such as "pack-quantized".
        order: [d_in] group of each input column, where columns of a group lie apart; None elsewhere.
    """

    tensors: dict[str, torch.Tensor]
    scheme: Any
    form: str
    order: torch.Tensor | None


@dataclass(frozen=True)
class Format:
    """One format, as the `quant_method` of a config.json names it.

    Attributes:
        forms: names of the ways in which it stores a matrix (`aird.models.matrices.stored_format`).
        refusal: says why a checkpoint with this `quantization_config` is not read, and what would help; else None.
        recognise: returns which of its forms stored tensors have; None where they have none.
        shape: returns (d_out, d_in) of stored tensors of one of its forms; None where they do not say.
        matrix: returns the effective matrix [d_out, d_in] of a module, given its loaded tensors; the last argument
            replaces the type of compressed-tensors' scales.
        declared: returns the form that config.json declares for a module, or "dense". None where `repack` is given:
            what is stored then decides, as it does for the programs that serve it.
        scheme: returns the compressed-tensors scheme of a module, None for a dense one. None: it has no such schemes.
        experts_scheme: returns the scheme by which Transformers decodes all experts that it puts together; None: as
            `scheme`.
        repack: returns a matrix as compressed-tensors stores the same numbers, of a format that it does not read.
        needs_decoding: whether Transformers or vLLM cannot read these modules as they are stored (or repacked).
        patch_refusal: says why a checkpoint that can be served cannot be patched; else None.
        rounded: the forms whose inputs are rounded to few bits though no scheme says so.
        served: whether servers load it.
        passes_gradients: whether gradients pass through its matrices where no activations are rounded.
        unpacked_by_pass: whether Transformers makes a module's `weight` in the first forward pass only.
        dense_key: the key of the `quantization_config` that lists modules which are stored dense.
        lists_outside: whether that list, where there is one, must name those outside the decoder blocks as well.
        package: the package that decodes it, where aird does not install it; the extra of that name does.
    """

    forms: tuple[str, ...]
    refusal: Callable[[Quantisation], str | None]
    recognise: Callable[[Stored], str | None]
    shape: Callable[[Stored], tuple[int, int] | None]
    matrix: Callable[[Checkpoint, str, dict[str, torch.Tensor], torch.dtype | None], torch.Tensor]
    declared: Callable[[Checkpoint, str], str] | None = None
    scheme: Callable[[Checkpoint, str], Any] | None = None
    experts_scheme: Callable[[Checkpoint], Any] | None = None
    repack: Callable[[dict[str, torch.Tensor], Quantisation], Repacked] | None = None
    needs_decoding: Callable[[Checkpoint, Sequence[str]], bool] = lambda checkpoint, modules: False
    patch_refusal: Callable[[Quantisation], str | None] = lambda quantisation: None
    rounded: tuple[str, ...] = ()
    served: bool = True
    passes_gradients: bool = True
    unpacked_by_pass: bool = False
    dense_key: str = "ignore"
    lists_outside: bool = False
    package: str | None = None


def format_of(quantisation: Quantisation | None) -> Format | None:
    """Return the format that a `quantization_config` names; None for a dense checkpoint, and where it is not read."""
    name = str((quantisation or {}).get("quant_method")).replace("-", "_")
    if name not in FORMATS.names():
        return None
    found: Format = FORMATS.load(name)
    return found


def formats() -> Iterator[Format]:
    """Yield all formats."""
    yield from map(FORMATS.load, FORMATS.names())


def files_of(form: str | None) -> list[Path]:
    """Return the file of the format that has a form, none for "dense"; the files of all formats for None."""
    return [FORMATS.file(name) for name in FORMATS.names() if form is None or form in FORMATS.load(name).forms]
