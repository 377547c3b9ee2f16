"""compressed-tensors, as llm-compressor writes it: packed integers, and floats of 8 and 4 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aird.models.format import Format, Quantisation, Repacked, Stored

if TYPE_CHECKING:
    import torch

    from aird.models.checkpoint import Checkpoint

PACKINGS = ("pack-quantized", "int-quantized", "float-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized")


def refusal(quantisation: Quantisation) -> str | None:
    """Refuse other packings, and scales of a quantised key/value cache."""
    sparse = (quantisation.get("sparsity_config") or {}).get("format", "dense")
    groups = [group for group in _groups(quantisation).values() if isinstance(group, Mapping)]
    packings = {group.get("format") for group in groups} | {quantisation.get("format"), sparse}
    unread = sorted(str(packing) for packing in packings - {None, "dense", "mixed-precision", *PACKINGS})
    if unread:
        return f"is packed as {', '.join(unread)}, which is not read; save it uncompressed, or as {PACKINGS[0]}"
    if quantisation.get("kv_cache_scheme"):  # vLLM would follow it, and Transformers not
        return (
            "comes with scales of a quantised key/value cache (`kv_cache_scheme`), which are not read; quantise "
            "without them, and give the compression a key_value_cache_dtype"
        )
    return None


def patch_refusal(quantisation: Quantisation) -> str | None:
    """Refuse rotated matrices."""
    if quantisation.get("transform_config"):
        return (
            "its matrices are stored rotated (transform_config: SpinQuant or QuIP), so an edit along the original's "
            "direction would mean another one in them"
        )
    return None


def recognise(stored: Stored) -> str | None:
    """Return the packing by the types of tensors and scales."""
    dtypes = {local: tensor.dtype for local, tensor in stored.items()}
    packed, weight, scale = dtypes.get("weight_packed"), dtypes.get("weight"), dtypes.get("weight_scale")
    if packed is not None:
        if packed == "I32" and scale is not None and dtypes.get("weight_shape") in ("I64", "I32"):
            return "pack-quantized"
        if packed == "U8" and scale == "F8_E4M3" and "weight_global_scale" in dtypes:
            return "nvfp4-pack-quantized"
        return "mxfp4-pack-quantized" if packed == scale == "U8" else None
    if weight in ("I8", "F8_E4M3") and scale is not None and "SCB" not in stored:
        return "int-quantized" if weight == "I8" else "float-quantized"
    return None


def shape(stored: Stored) -> tuple[int, int] | None:
    """Return (d_out, d_in)."""
    if "weight_shape" in stored:
        rows, columns = stored["weight_shape"].load().tolist()
    elif "weight_packed" in stored and recognise(stored) is not None:
        rows, half = stored["weight_packed"].shape  # two 4-bit floats a byte
        columns = 2 * half
    elif "weight" in stored:
        rows, columns = stored["weight"].shape
    else:
        return None
    return rows, columns


def matrix(
    checkpoint: Checkpoint, module: str, loaded: dict[str, torch.Tensor], scale_dtype: torch.dtype | None
) -> torch.Tensor:
    """Decode by compressed-tensors' own functions."""
    from aird.models.packed import decompress, scattered

    made, order = scheme(checkpoint, module), None
    form = str(recognise(checkpoint.module_tensors(module)))
    if form == "pack-quantized":
        order = scattered(loaded.pop("weight_g_idx", None), made.weights.group_size)
    return decompress(Repacked(loaded, made, form, order), scale_dtype)


def declared(checkpoint: Checkpoint, module: str) -> str:
    """Return the packing of the scheme that the module matches."""
    made = scheme(checkpoint, module)
    if made is None:
        return "dense"
    return str(getattr(made.format, "value", made.format) or (checkpoint.quantization_config or {})["format"])


def scheme(checkpoint: Checkpoint, module: str) -> Any:
    """Return the scheme that config.json applies to a linear module, or None."""
    import torch
    from compressed_tensors.utils import match_targets

    parsed = _parsed(checkpoint)
    # Schemes name modules or classes; only the class of this stand-in is looked at.
    linear = torch.nn.Linear(1, 1, device="meta")
    if match_targets(module, linear, parsed.ignore):
        return None
    schemes = {target: made for made in parsed.config_groups.values() for target in made.targets}
    matched = match_targets(module, linear, schemes)
    return schemes[matched[0]] if matched else None


def experts_scheme(checkpoint: Checkpoint) -> Any:
    """Return the scheme of all experts, as Transformers chooses it."""
    from transformers.integrations.compressed_tensors import get_experts_scheme

    return get_experts_scheme(_parsed(checkpoint))


def needs_decoding(checkpoint: Checkpoint, modules: Sequence[str]) -> bool:
    """Return whether Transformers or vLLM does not read packed integers of these bits, or in this order of columns."""
    from aird.models.packed import SERVED_BITS, column_order

    if any(map(_orders_columns, _groups(checkpoint.quantization_config or {}).values())):
        return True
    for module in modules:
        stored = checkpoint.module_tensors(module)
        if recognise(stored) == "pack-quantized":
            made = scheme(checkpoint, module)
            if made.weights.num_bits not in SERVED_BITS or column_order(stored, made) is not None:
                return True
    return False


def _groups(quantisation: Quantisation) -> Mapping[str, Any]:
    return quantisation.get("config_groups") or {}


def _orders_columns(group: Any) -> bool:
    """Return whether one of the `config_groups` has columns in the order of `weight_g_idx`.

    Newer versions of compressed-tensors, and so Transformers, no longer read what older ones wrote so.
    """
    weights = group.get("weights") if isinstance(group, Mapping) else None
    return (weights or {}).get("actorder") in ("group", "dynamic", True)


def _parsed(checkpoint: Checkpoint) -> Any:
    """Return a `quantization_config` as the installed compressed-tensors reads it; ValueError where it does not.

    The order of columns is left out, as `matrix` goes by it itself.
    """
    from compressed_tensors.quantization import QuantizationConfig
    from pydantic import ValidationError

    config = checkpoint.quantization_config or {}
    groups = {
        name: {**group, "weights": {**group["weights"], "actorder": None}} if _orders_columns(group) else group
        for name, group in _groups(config).items()
    }
    try:
        return QuantizationConfig.model_validate({**config, "config_groups": groups})
    except ValidationError as error:
        places = ".".join(map(str, error.errors()[0]["loc"]))
        raise ValueError(
            f"{checkpoint.folder}: the installed compressed-tensors does not read the quantization_config of its "
            f"config.json ({places}: {error.errors()[0]['msg']}); save it with another version of compressed-tensors"
        ) from error


FORMAT = Format(
    forms=PACKINGS,
    refusal=refusal,
    recognise=recognise,
    shape=shape,
    matrix=matrix,
    declared=declared,
    scheme=scheme,
    experts_scheme=experts_scheme,
    needs_decoding=needs_decoding,
    patch_refusal=patch_refusal,
    unpacked_by_pass=True,
)
