"""Edits: low-rank changes of matrices, and AIRD as rank-1 edits of those that write to the residual stream.

With r the unit refusal direction, W_c and W_o the compressed and the original
matrix [d_model, d_in], every reading of AIRD (arXiv 2504.04215) is

    W' = W_c + r r^T (a W_c + b W_o) = W_c + column . row,
    column = r [d_model],  row = r^T (a W_c + b W_o) [d_in],

a rank-1 edit that does not depend on the sign of r, and so exactly a LoRA of
rank 1 with B = column and A = row. A bias of the matrix is left as it is.

Where a norm stands between the matrix and the residual stream (Gemma 2 and 3, OLMo 2, EXAONE 4), what is added to the
stream is the contribution u = g * y / rms(y) of the matrix's output y, with g the gain of the norm and * elementwise.
The same change of u, u' = u + r (a r . u), then takes

    column = r / g,  row = (r * g)^T (a W_c + b W_o),

because g * (y + column (row x)) = g * y + r (row x). Such an edit also changes rms(y), so the whole contribution is
rescaled: u' = s (u + r (row x) / rms(y)), s = rms(y) / rms(y'). Nothing but r and that rescaling is in the effect.
Seen as one change, u' - u, its cosine with r is 1 - 1 / (2 d_model) for outputs in general position: .9999 at 4096.

A mixture's experts have one matrix each, and what they write is weighted by the router and added up. All get the same
column, and each its own row r^T (a W_c + b W_o). So the block's output changes along r alone, whoever is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from aird.models.rescaling import check_comparable, relation
from aird.patching.records import EditRecord
from aird.settings.patches import FormulaSettings, RankOneSettings

ROWS = 64  # rows of a matrix that are converted to float64 at once: they stay in the processor's cache


@dataclass(frozen=True)
class Edit:
    """A low-rank change of one matrix, W' = W + up down; of a mixture's experts, one for each.

    Attributes:
        module: full name of the linear module, or of the parameter with the matrices of a mixture's experts.
        up: what it writes, [d_out, rank] float32, an adapter's scale included; of experts, [experts, d_out, rank].
        down: what it reads, [rank, d_in] float32; of experts, [experts, rank, d_in].
        gain: [d_out] float64, g of the norm behind the module; None without one, or where it is not known.
    """

    module: str
    up: torch.Tensor
    down: torch.Tensor
    gain: torch.Tensor | None = None

    @classmethod
    def rank_one(cls, module: str, column: torch.Tensor, row: torch.Tensor, gain: torch.Tensor | None = None) -> Edit:
        """Return the edit column . row: a column [d_out], and a row [d_in], or one for each expert, [experts, d_in]."""
        up = column[:, None]
        return cls(module, up if row.ndim == 1 else up.expand(len(row), -1, -1), row[..., None, :], gain)

    @property
    def rank(self) -> int:
        """The number of directions that it writes."""
        return self.down.shape[-2]

    @property
    def of_experts(self) -> bool:
        """Whether it changes the matrices of experts."""
        return self.down.ndim == 3

    @property
    def column(self) -> torch.Tensor:
        """What a rank-1 edit writes, [d_out]; experts share it."""
        assert self.rank == 1, f"{self.module} has {self.rank} columns"
        return self.up[..., 0][0] if self.of_experts else self.up[:, 0]

    @property
    def row(self) -> torch.Tensor:
        """What a rank-1 edit reads, [d_in]; of experts, [experts, d_in]."""
        assert self.rank == 1, f"{self.module} has {self.rank} rows"
        return self.down[..., 0, :]

    def matrix(self) -> torch.Tensor:
        """Return the dense change, [d_out, d_in] float32; of experts, [experts, d_out, d_in]."""
        return self.up @ self.down

    def scaled(self, strength: float) -> Edit:
        """Return the edit multiplied by a strength."""
        return replace(self, down=strength * self.down)


def edit_along(module: str, units: torch.Tensor, down: torch.Tensor, gain: torch.Tensor | None = None) -> Edit:
    """Return the edit that makes a module add units (down x) to its contribution, up to the factor that a norm brings.

    Args:
        module: full name of the linear module, or of the experts' parameter.
        units: [d_out, rank], r in a rank-1 edit; experts share them.
        down: [rank, d_in], or [experts, rank, d_in].
        gain: g, [d_out], of the norm behind the module (`aird.models.structure.writer_gains`); None without one.
    """
    up = (units if gain is None else units.double() / gain[:, None]).float()
    return Edit(module, up if down.ndim == 2 else up.expand(len(down), -1, -1), down.float(), gain)


def contributed(edit: Edit) -> torch.Tensor:
    """Return what an edit adds to a contribution, g * up, [d_out, rank] float64; experts share it."""
    up = (edit.up[0] if edit.of_experts else edit.up).double()
    return up if edit.gain is None else up * edit.gain[:, None]


def reader(unit: torch.Tensor, gain: torch.Tensor | None = None) -> torch.Tensor:
    """Return the vector whose product with a module's output is what it contributes along r: r, or r * g, float64."""
    return unit.double() if gain is None else unit.double() * gain


def rank_one_edit(
    module: str,
    direction: torch.Tensor,
    compressed: torch.Tensor,
    original: torch.Tensor,
    settings: FormulaSettings,
    gain: torch.Tensor | None = None,
    original_gain: torch.Tensor | None = None,
) -> Edit:
    """Return the edit of one matrix.

    Args:
        module: full name of the linear module, or of the experts' parameter.
        direction: [d_out], unit norm.
        compressed, original: [d_out, d_in], or [experts, d_out, d_in], any floating type.
        settings: method and strength.
        gain, original_gain: [d_out], of the norm behind the module in either model; None without one.

    Raises:
        ValueError: shapes that do not fit, or a direction that is not a unit vector.
    """
    if compressed.shape != original.shape or direction.shape != compressed.shape[-2:-1]:
        raise ValueError(
            f"{module}: direction {tuple(direction.shape)}, compressed {tuple(compressed.shape)} and original "
            f"{tuple(original.shape)} do not fit together"
        )
    unit = direction.double()
    if not torch.isclose(unit.norm(), torch.ones((), dtype=torch.float64), atol=1e-4):
        raise ValueError(f"{module}: the direction has norm {unit.norm().item():.4f}, not 1")
    a, b = settings.coefficients
    row = a * along(reader(unit, gain), compressed)
    if b:
        row = row + b * along(reader(unit, original_gain), original)
    return edit_along(module, unit[:, None], row[..., None, :], gain)


def edited_blocks(settings: RankOneSettings, source_layer: int, layers: int) -> list[int]:
    """Return the indices of the blocks that a patch edits.

    The site at layer l is the input of block l, so the block that writes it is l - 1 (the last of
    `depth` blocks); the input of block 0 is the embedding, which no block writes, and block 0 is then
    the first that can act on it.

    Args:
        settings: the patch.
        source_layer: layer of the site that `source` and `own_source` blocks hang on.
        layers: number of blocks.

    Raises:
        ValueError: a configured block does not exist.
    """
    if settings.blocks == "all":
        return list(range(layers))
    if settings.blocks == "upper":
        return list(range(layers // 2, layers))
    if isinstance(settings.blocks, str):  # source, own_source
        last = max(0, source_layer - 1)
        return list(range(max(0, last + 1 - settings.depth), last + 1))
    beyond = [block for block in settings.blocks if block >= layers]
    if beyond:
        raise ValueError(f"blocks {beyond} do not exist: the model has blocks 0 to {layers - 1}")
    return list(settings.blocks)


def random_direction(like: torch.Tensor, seed: int) -> torch.Tensor:
    """Return a random unit vector of the same shape, uniform on the sphere, float64."""
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    unit: torch.Tensor = vector / vector.norm()
    return unit


def patch_direction(settings: RankOneSettings, original: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Return the unit direction that a patch uses: the original's, the compressed model's own, or a random one.

    Columns that are learnt begin with a random one too.
    """
    if settings.direction in ("random", "free"):
        return random_direction(original, settings.seed)
    return own if settings.direction == "own" else original


def make_edits(
    modules: Iterable[str],
    direction: torch.Tensor,
    read_compressed: Callable[[str], torch.Tensor],
    read_original: Callable[[str], torch.Tensor],
    settings: FormulaSettings,
    gains: Mapping[str, torch.Tensor] = MappingProxyType({}),
    original_gains: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> tuple[list[Edit], list[EditRecord]]:
    """Return one edit per module, and `edit_statistics` of each.

    Args:
        modules: full names of the modules to edit, or of experts' parameters.
        direction: [d_model] unit vector.
        read_compressed, read_original: return one module's dense matrix [d_out, d_in], or that of every expert.
        settings: the patch.
        gains, original_gains: of the norms behind modules in either model, module -> [d_model]; none for most models.

    Raises:
        ValueError: as `rank_one_edit`, or the formula has both matrices and one was rescaled against the other.
    """
    edits, statistics = [], []
    for module in modules:
        compressed, original = read_compressed(module), read_original(module)
        if settings.coefficients[1]:
            for pair in zip(_matrices(original), _matrices(compressed), strict=True):
                check_comparable(*pair, module)
        gain, original_gain = gains.get(module), original_gains.get(module)
        edit = rank_one_edit(module, direction, compressed, original, settings, gain, original_gain)
        statistics.append(edit_statistics(edit, compressed, original))
        edits.append(edit)
    return edits, statistics


def edit_statistics(edit: Edit, compressed: torch.Tensor, original: torch.Tensor) -> EditRecord:
    """Return what a rank-1 edit along r changes; where compression rescaled the matrix, its row norms are None."""
    column = edit.column.double()
    # r is column * g, and what reads along it r * g.
    unit = column if edit.gain is None else column * edit.gain.square()
    before, target = along(unit, compressed), along(unit, original).norm()
    stacked = compressed.flatten(0, -2)
    norm = torch.stack([rows.double().square().sum() for rows in stacked.split(ROWS)]).sum().sqrt()
    size = edit.row.double().norm() * (1.0 if edit.gain is None else column.norm())
    kinds = [relation(*pair) for pair in zip(_matrices(original), _matrices(compressed), strict=True)]
    comparable = not any(kind.rescaled or kind.unrelated for kind in kinds)
    return {
        "module": edit.module,
        "relative_change": (size / norm).item(),
        "row_norm_before": (before.norm() / target).item() if comparable else None,
        "row_norm_after": ((before + edit.row.double()).norm() / target).item() if comparable else None,
    }


def size_record(edit: Edit, matrix: torch.Tensor) -> EditRecord:
    """Return how much an edit of any rank changes a matrix; it has no direction to say more about."""
    change = (edit.matrix().norm() / matrix.float().norm()).item()
    return {"module": edit.module, "relative_change": change, "row_norm_before": None, "row_norm_after": None}


def along_direction(edit: Edit, unit: torch.Tensor) -> float:
    """Return the cosine of a direction with what a rank-1 edit adds to a contribution; its sign depends on the row's.

    Args:
        edit: of any column.
        unit: [d_out] unit direction.
    """
    column = contributed(edit)[:, 0]
    return float((column @ unit.double() / column.norm()).abs())


def along(unit: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return r^T W, [d_in] float64, without a float64 copy of the whole matrix; of experts, [experts, d_in].

    Args:
        unit: r, [d_out] float64.
        matrix: W, [d_out, d_in], or [experts, d_out, d_in], any floating type.
    """
    if matrix.ndim == 3:
        return torch.stack([along(unit, each) for each in matrix])
    parts = zip(unit.split(ROWS), matrix.split(ROWS), strict=True)
    return torch.stack([part @ rows.double() for part, rows in parts]).sum(0)


def _matrices(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(matrix) if matrix.ndim == 3 else (matrix,)
