"""Measure a checkpoint on disk, and check that it is what its recipe says.

Compression libraries fail silently: a target that matches nothing prunes nothing,
and a compressed model that is loaded, edited and saved has other dtypes than its
config.json declares. So numbers come from the written safetensors only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from operator import mul
from pathlib import Path
from typing import NotRequired, TypedDict

import torch

from aird.models.checkpoint import FLOAT_BITS, Checkpoint, read_checkpoint
from aird.models.matrices import declared_format, matrix_of, matrix_shape, stored_format
from aird.models.rescaling import relation
from aird.settings.compressions import RecipeSettings, pattern_counts

PATTERNS = ("2:4", "4:8")
SPARSITY_TOLERANCE = 0.01


class Matrix(TypedDict):
    """Measurements of one matrix; null where its format cannot be read."""

    shape: list[int]  # d_out, d_in
    sparsity: float | None  # share of exact zeros of the effective matrix, decompressed where it is quantised
    patterns: list[str]  # those of `PATTERNS` that hold in every group
    # 8 x stored bytes of the matrix, its scales, zero points and other tables, without bias, per weight.
    bits_per_weight: float
    # Dense ones only: what a 1-bit mask and the non-zeros would take, or the stored bits where that is less.
    sparse_bits_per_weight: float | None
    stored_dtypes: dict[str, str]  # by local tensor name, in safetensors' names
    stored_format: str  # what the tensors are
    declared_format: str  # what config.json says they are
    given_format: NotRequired[str]  # of the file that it was decoded from
    # With an original: "same", "rescaled" or "unrelated" (`aird.models.rescaling`).
    relation: NotRequired[str]
    # Frobenius norm of W_c - W_o relative to that of W_o; null unless the relation is "same".
    relative_error: NotRequired[float | None]


class Total(TypedDict):
    """Counts and weighted means of all matrices, as of `Matrix`."""

    weights: int
    stored_bytes: int
    sparsity: float | None
    bits_per_weight: float
    sparse_bits_per_weight: float | None
    formats: list[str]  # the stored formats
    relative_error: NotRequired[float | None]


class Measurements(TypedDict):
    """What a checkpoint's files hold: measured matrices of the decoder blocks, and SHA-256 of everything else.

    The rest are embeddings, output head, norms and biases. Blocks behind the model's last one are left out: nothing
    computes with them, and not everything that writes checkpoints keeps them.
    """

    matrices: dict[str, Matrix]
    total: Total
    other_tensors: dict[str, str]
    quantisation_types: NotRequired[dict[str, int]]  # of a GGUF file
    calibration_tokens: NotRequired[int]  # that the recipe saw


def measure(checkpoint: Path, original: Path | None = None) -> Measurements:
    """Measure every linear matrix of the decoder blocks from the safetensors files.

    Args:
        checkpoint: a checkpoint folder.
        original: the checkpoint that it was compressed from, to measure what that changed.

    Raises:
        ValueError: the folder is no complete checkpoint, or has no recognisable decoder blocks.
    """
    found = read_checkpoint(checkpoint)
    reference = read_checkpoint(original) if original is not None else None
    matrices: dict[str, Matrix] = {}
    measured_tensors: set[str] = set()
    stored_bytes = 0
    for module in found.block_matrices():
        stored = found.module_tensors(module)
        matrices[module] = _measure_matrix(found, module, reference)
        measured_tensors.update(tensor.name for tensor in stored.values())
        stored_bytes += sum(tensor.size for tensor in stored.values())
    others = sorted(found.tensors.keys() - measured_tensors - found.further_tensors())
    return {
        "matrices": matrices,
        "total": _total(matrices, stored_bytes),
        "other_tensors": {name: found.tensors[name].sha256() for name in others},
    }


def check(measurements: Measurements, settings: RecipeSettings, reference: Measurements) -> None:
    """Check that a compressed checkpoint is what its recipe says.

    Args:
        measurements: `measure` of the compressed checkpoint.
        settings: the recipe.
        reference: `measure` of the original.

    Raises:
        ValueError: other matrices than the original's; stored dtypes that disagree with config.json
            or the recipe; a sparsity more than 0.01 off, but for zeros of the original that an N:M pattern
            keeps, or that pattern broken; bits per weight
            not below the original's, or not those of the recipe; a changed embedding, output head,
            bias or, unless the recipe rescales them, norm. The message names every kind of failure and its first case.
    """
    failures = [
        *_check_names(measurements, reference),
        *_check_declared(measurements),
        *(_check_format(measurements, settings) if settings.changes_weights else _check_unchanged(measurements)),
        *_check_sparsity(measurements, settings, reference),
        *_check_bits(measurements, settings, reference),
        *_check_others(measurements, settings, reference),
    ]
    if failures:
        raise ValueError(f"the {settings.recipe} checkpoint is not what its recipe says: " + "; ".join(failures))


def check_stored_formats(measurements: Measurements) -> None:
    """Check that every matrix is stored as config.json says, whatever made the checkpoint.

    Transformers loads a checkpoint where they disagree; vLLM does too, and answers with nonsense.

    Raises:
        ValueError: they disagree for a matrix; the message names the first.
    """
    failures = _check_declared(measurements)
    if failures:
        raise ValueError("; ".join(failures))


def take_bits(measurements: Measurements, given: dict[str, tuple[str, int]]) -> None:
    """Put bits and bytes of the files that a checkpoint was decoded from in the place of those of its decoded weights.

    Args:
        measurements: of `measure`; they are changed.
        given: each matrix's format and stored bytes.
    """
    matrices, total = measurements["matrices"], measurements["total"]
    for module, (form, size) in given.items():
        rows, columns = matrices[module]["shape"]
        matrices[module]["given_format"], matrices[module]["bits_per_weight"] = form, 8 * size / (rows * columns)
        if form != matrices[module]["stored_format"]:
            matrices[module]["sparse_bits_per_weight"] = None
    stored = sum(size for _, size in given.values())
    total["stored_bytes"], total["bits_per_weight"] = stored, 8 * stored / total["weights"]
    if any(matrix["sparse_bits_per_weight"] is None for matrix in matrices.values()):
        total["sparse_bits_per_weight"] = None
    total["formats"] = sorted({form for form, _ in given.values()})


def fulfils_pattern(weight: torch.Tensor, pattern: str) -> bool:
    """Whether each group of M consecutive input weights of [d_out, d_in] holds at least N zeros."""
    zeros, size = pattern_counts(pattern)
    if weight.shape[1] % size:
        return False
    zero = (weight == 0).to(torch.uint8).flatten()
    # Adding strided slices is twenty times faster than summing over a dimension of four.
    counts = zero[0::size].clone()
    for offset in range(1, size):
        counts += zero[offset::size]
    return bool((counts >= zeros).all())


def _measure_matrix(checkpoint: Checkpoint, module: str, reference: Checkpoint | None) -> Matrix:
    stored = checkpoint.module_tensors(module)
    form, declared = stored_format(checkpoint, module), declared_format(checkpoint, module)
    rows, columns = matrix_shape(checkpoint, module)
    result: Matrix = {
        "shape": [rows, columns],
        "bits_per_weight": 8 * sum(tensor.size for tensor in stored.values()) / (rows * columns),
        "stored_format": form,
        "declared_format": declared,
        "stored_dtypes": {local: tensor.dtype for local, tensor in sorted(stored.items())},
        "sparsity": None,
        "patterns": [],
        "sparse_bits_per_weight": None,
    }
    # A format that disagrees with config.json has no reading; `check` reports it.
    if form == declared:
        weight = matrix_of(checkpoint, module)
        zeros = weight.numel() - int(torch.count_nonzero(weight))
        sparsity = result["sparsity"] = zeros / weight.numel()
        # Both patterns need half of the weights to be zero, which spares looking at most matrices.
        if 2 * zeros >= weight.numel():
            result["patterns"] = [pattern for pattern in PATTERNS if fulfils_pattern(weight, pattern)]
        if reference is not None and f"{module}.weight" in reference.tensors:
            original = matrix_of(reference, module)
            if original.shape == weight.shape:  # else `check` reports it, or the import of a ready-made checkpoint
                known = relation(original, weight)
                word = "rescaled" if known.rescaled else "unrelated" if known.unrelated else "same"
                result["relation"], result["relative_error"] = word, known.error if word == "same" else None
        if form == "dense":
            bits = FLOAT_BITS[stored["weight"].dtype]
            result["sparse_bits_per_weight"] = min(bits, 1 + bits * (1 - sparsity))
    return result


def _total(matrices: dict[str, Matrix], stored_bytes: int) -> Total:
    weights = [found["shape"][0] * found["shape"][1] for found in matrices.values()]
    count = sum(weights)

    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(map(mul, weights, known)) / count if len(known) == len(weights) else None

    total: Total = {
        "weights": count,
        "stored_bytes": stored_bytes,
        "sparsity": mean(found["sparsity"] for found in matrices.values()),
        "bits_per_weight": 8 * stored_bytes / count,
        "sparse_bits_per_weight": mean(found["sparse_bits_per_weight"] for found in matrices.values()),
        "formats": sorted({found["stored_format"] for found in matrices.values()}),
    }
    if any("relation" in found for found in matrices.values()):
        total["relative_error"] = mean(found.get("relative_error") for found in matrices.values())
    return total


def _check_names(measurements: Measurements, reference: Measurements) -> list[str]:
    different = sorted(measurements["matrices"].keys() ^ reference["matrices"].keys())
    return _failure("has other matrices than the original", different)


def _check_declared(measurements: Measurements) -> list[str]:
    wrong = [
        f"{_stored(module, found)}, config.json says {found['declared_format']}"
        for module, found in measurements["matrices"].items()
        if found["stored_format"] != found["declared_format"]
    ]
    return _failure("stored dtypes disagree with config.json", wrong)


def _check_format(measurements: Measurements, settings: RecipeSettings) -> list[str]:
    wanted = settings.storage_format
    wrong = [
        f"{_stored(module, found)}, the recipe says {wanted}"
        for module, found in measurements["matrices"].items()
        if found["stored_format"] != wanted
    ]
    return _failure("was not stored as the recipe says", wrong)


def _check_unchanged(measurements: Measurements) -> list[str]:
    changed = [module for module, found in measurements["matrices"].items() if found.get("relative_error") != 0]
    return _failure("changed weights that it must leave as they are", changed)


def _stored(module: str, found: Matrix) -> str:
    dtypes = ", ".join(f"{local} {dtype}" for local, dtype in found["stored_dtypes"].items())
    return f"{module} is stored {found['stored_format']} ({dtypes})"


def _check_sparsity(measurements: Measurements, settings: RecipeSettings, reference: Measurements) -> list[str]:
    target = settings.target_sparsity
    if target is None:
        return []
    pattern = getattr(settings, "pattern", None)

    def is_off(found: Matrix | Total, original: Matrix | Total, tolerance: float) -> bool:
        # A group that held more zeros than the pattern asks for keeps them, as in weights decoded from few bits.
        kept = (original["sparsity"] or 0.0) if pattern else 0.0
        return found["sparsity"] is None or not -tolerance <= found["sparsity"] - target <= tolerance + kept

    off, broken = [], []
    for module in sorted(measurements["matrices"].keys() & reference["matrices"].keys()):
        found = measurements["matrices"][module]
        # Recipes that work row by row can only zero a whole number of a row's weights.
        if is_off(found, reference["matrices"][module], SPARSITY_TOLERANCE + 1 / found["shape"][1]):
            off.append(f"{module} ({found['sparsity']} instead of {target})")
        if pattern is not None and pattern not in found["patterns"]:
            broken.append(module)
    total = measurements["total"]
    if is_off(total, reference["total"], SPARSITY_TOLERANCE):
        off.insert(0, f"all matrices together ({total['sparsity']} instead of {target})")
    return _failure("sparsity is off", off) + _failure(f"pattern {pattern} is broken", broken)


def _check_bits(measurements: Measurements, settings: RecipeSettings, reference: Measurements) -> list[str]:
    nominal = settings.storage_bits
    if nominal is None:
        return []
    off = []
    for module in measurements["matrices"].keys() & reference["matrices"].keys():
        bits = measurements["matrices"][module]["bits_per_weight"]
        original = reference["matrices"][module]["bits_per_weight"]
        # Scales and tables come on top of the nominal bits, but never double them.
        if not nominal <= bits < min(2 * nominal, original):
            off.append(f"{module} ({bits:.3f}, nominally {nominal}, originally {original:.3f})")
    return _failure("bits per weight are off", sorted(off))


def _check_others(measurements: Measurements, settings: RecipeSettings, reference: Measurements) -> list[str]:
    here, there = measurements["other_tensors"], reference["other_tensors"]
    matrices = measurements["matrices"]
    blocks = {re.split(r"\.\d+\.", module)[0] for module in matrices}

    def may_change(name: str) -> bool:
        if settings.rounds_embeddings:  # the recipe has compared them
            return name in here and name in there
        # Of a block, what is no matrix's bias.
        in_block = re.split(r"\.\d+\.", name)[0] in blocks and name in here and name in there
        return settings.rescales_norms and in_block and name.rpartition(".")[0] not in matrices

    different = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    touched = [name for name in different if not may_change(name)]
    return _failure("touched what it must leave as it is", touched)


def _failure(what: str, cases: list[str]) -> list[str]:
    if not cases:
        return []
    more = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
    return [f"{what}: {cases[0]}{more}"]
