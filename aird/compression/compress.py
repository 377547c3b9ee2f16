"""Compress a checkpoint by one recipe.

settings = RoundToNearest(weight_bits=4, group_size=64)
measurements = compress(Path("original"), Path("w4"), settings, calibration_token_ids=None)
"""

from __future__ import annotations

import json
import shutil
from math import gcd
from pathlib import Path
from tempfile import TemporaryDirectory

from aird.compression.measure import Measurements, check, measure, take_bits
from aird.compression.recipe import ABSENT, RecipeInputs
from aird.models.checkpoint import Checkpoint, read_checkpoint
from aird.models.experts import fused_parameters, separate_modules, stored_matrices
from aird.models.gguf_file import MODEL_FILE, read_gguf, served_gguf
from aird.models.loading import copy_description, load_structure
from aird.models.matrices import matrix_shape
from aird.plugin import RECIPES
from aird.settings.compressions import CalibrationSettings, RecipeSettings, pattern_counts
from aird.support.files import atomic_folder


def compress(
    source: Path,
    output: Path,
    settings: RecipeSettings,
    calibration_token_ids: list[list[int]] | None,
    python: Path | None = None,
) -> Measurements:
    """Compress every linear module inside the decoder blocks of a checkpoint.

    1. Check settings, calibration prompts and matrix shapes, before anything is loaded.
    2. Run the recipe on the source's weights, into a temporary folder.
    3. Put together a complete checkpoint: the recipe's weights, everything else as in the source,
       with the recipe's `quantization_config` added to config.json.
    4. Measure what was written, and check it against the recipe and the source.

    Args:
        source: a dense checkpoint folder with safetensors; it is only read.
        output: the folder to write; it appears when it is complete and checked.
        settings: of one of the recipes in `aird.compression.recipes`.
        calibration_token_ids: token ids of each calibration prompt, chat template applied, or of each sequence of a
            corpus; None for recipes that need none.
        python: interpreter of the environment of recipes that need one.

    Returns:
        The measurements, for the manifest.

    Raises:
        ValueError: the source is quantised already, or has experts that the recipe does not compress; a needed
            environment is missing; calibration prompts are missing, not as many as the settings say, empty, or not
            needed; the group size or pattern does not fit a matrix; or the result is not what the recipe says.
    """
    original = read_checkpoint(source)
    _check_request(original, settings, calibration_token_ids)
    if settings.environment is not None and python is None:
        raise ValueError(f"this recipe needs the Python of the environment {settings.environment.name}; none is given")
    recipe = RECIPES.of(settings)
    if settings.changes_weights:
        _check_experts(original, settings)
    reference = measure(source)
    with atomic_folder(output) as folder:
        copy_description(original.folder, folder)
        with TemporaryDirectory(prefix=".weights.", dir=folder) as made:
            recipe.write(settings, RecipeInputs(original, calibration_token_ids, python or ABSENT), Path(made))
            _take_weights(Path(made), folder, original)
        measurements = measure(folder, source)
        if calibration_token_ids is not None:
            measurements["calibration_tokens"] = sum(map(len, calibration_token_ids))
        check(measurements, settings, reference)
        gguf = served_gguf(folder)
        if gguf is not None:
            file = read_gguf(gguf)
            stored = {module: file.tensor_of(module) for module in original.block_matrices()}
            take_bits(measurements, {module: (tensor.type, tensor.size) for module, tensor in stored.items()})
            measurements["quantisation_types"] = file.types()
    return measurements


def _take_weights(made: Path, folder: Path, original: Checkpoint) -> None:
    """Move weights and their index from `made`, and take over its `quantization_config`.

    Nothing else of what libraries save is kept: they rewrite tokenizers and generation settings.
    """
    for path in [*made.glob("*.safetensors"), *made.glob("*.safetensors.index.json"), *made.glob(MODEL_FILE)]:
        shutil.move(path, folder / path.name)
    if (made / "config.json").is_file():
        saved = json.loads((made / "config.json").read_text(encoding="utf-8"))
        if "quantization_config" in saved:
            config = {**original.config, "quantization_config": saved["quantization_config"]}
            text = json.dumps(config, indent=2, ensure_ascii=False)
            (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def _check_request(original: Checkpoint, settings: RecipeSettings, calibration: list[list[int]] | None) -> None:
    if original.quantization_config is not None:
        raise ValueError(f"{original.folder} is quantised already; compress the original checkpoint")
    if not settings.needs_calibration and calibration is not None:
        raise ValueError("this recipe sees no calibration prompts; pass None")
    if settings.needs_calibration:
        wanted: CalibrationSettings = getattr(settings, "calibration")  # noqa: B009 (which not all recipes have)
        if calibration is None or len(calibration) != wanted.size:
            found = "none" if calibration is None else len(calibration)
            raise ValueError(f"the settings ask for {wanted.size} calibration prompts or sequences, given: {found}")
        if not all(calibration):
            raise ValueError(f"calibration prompt {calibration.index([])} has no tokens")
        if wanted.length is not None and any(len(sequence) != wanted.length for sequence in calibration):
            raise ValueError(f"the settings ask for calibration sequences of {wanted.length} tokens each")
        context = original.config.get("max_position_embeddings")
        if wanted.length is not None and context is not None and wanted.length > context:
            raise ValueError(
                f"calibration sequences of {wanted.length} tokens are longer than the model's context of {context}; "
                "write a smaller `length`"
            )
    pattern = getattr(settings, "pattern", None)
    if pattern is not None:
        _check_divides(original, pattern_counts(pattern)[1], f"pattern {pattern}")
    group_size = getattr(settings, "group_size", None)
    if group_size is not None:
        _check_divides(original, group_size, f"group_size {group_size}")


def _check_experts(original: Checkpoint, settings: RecipeSettings) -> None:
    """Check that a recipe compresses a mixture's experts, as it would leave them as they are without a word.

    They have to be stored matrix by matrix, as only these are seen and measured. And they are served with inputs
    rounded to eight bits where a recipe says so, while Transformers, whose activations are compared, rounds none there.
    """
    structure = load_structure(original.folder)
    fused = fused_parameters(structure)
    if not fused:
        return
    stored = stored_matrices(structure, original)
    whole = [name for name in fused if name not in stored]
    family = structure.config.model_type
    compressed = settings.compresses_experts
    if whole:
        reason = f"it stores {whole[0]} as one tensor for all experts, which no recipe compresses"
    elif None in original.routers().values():
        reason = "what chooses its experts is stored in no way that is known, and would be compressed as well"
    elif getattr(settings, "activation_bits", None) is not None:
        reason = "Transformers does not round its experts' inputs, as a server would; leave activation_bits out"
    elif not (separate_modules(structure, original) if compressed is None else compressed):
        known = {each: RECIPES.load(each).settings for each in RECIPES.names()}
        works = ", ".join(each for each in known if known[each].compresses_experts is not False)
        reason = f"{settings.recipe} does not compress the experts of {family}; recipes that compress some: {works}"
    else:
        return
    raise ValueError(
        f"{original.folder} is a mixture of experts: {reason}, or import a checkpoint that was compressed elsewhere"
    )


def _check_divides(original: Checkpoint, size: int, what: str) -> None:
    """Check that groups of `size` input weights fill the rows of every matrix."""
    columns = {name: matrix_shape(original, name)[1] for name in original.block_matrices()}
    for name, count in columns.items():
        if count % size:
            common = gcd(*columns.values())
            working = [str(divisor) for divisor in range(16, 257) if common % divisor == 0]
            advice = f"sizes that divide all matrices: {', '.join(working) or 'none between 16 and 256'}"
            raise ValueError(f"{what} does not divide the {count} columns of {name}; {advice}")
