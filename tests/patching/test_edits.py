"""AIRD's edits by hand, and their algebra."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from models.families import tiny_family, tokens
from patches import saved_direction, unit_vector
from peft import PeftModel

from aird.inference.hooks import hooks
from aird.patching.edits import along, edit_statistics, edited_blocks, make_edits, random_direction, rank_one_edit
from aird.patching.method import PatchInputs
from aird.patching.methods import parse_patch
from aird.patching.patch_files import make_patch

R = torch.tensor([0.6, 0.8], dtype=torch.float64)
COMPRESSED = torch.tensor([[1.0, 2.0, 0.0], [3.0, -1.0, 5.0]])
ORIGINAL = torch.tensor([[2.0, 2.0, 1.0], [4.0, -1.0, 5.0]])
# r^T W_c = (0.6 + 2.4, 1.2 - 0.8, 4.0), r^T W_o = (1.2 + 3.2, 1.2 - 0.8, 0.6 + 4.0)


def patch(method: Literal["scale", "project"], alpha: float = 1.0, **more: Any) -> Any:
    return parse_patch({"method": method, "alpha": alpha, **more})


def random_case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a unit direction [16] and two matrices [16, 24], all float64."""
    generator = torch.Generator().manual_seed(seed)
    matrices = torch.randn(2, 16, 24, generator=generator, dtype=torch.float64)
    return unit_vector(seed, 16), matrices[0], matrices[1]


@pytest.mark.parametrize(
    ("settings", "row"),
    # 0.5 r^T W_c, and 2 x (r^T W_o - r^T W_c) = 2 x (1.4, 0, 0.6)
    [(patch("scale", 0.5), [1.5, 0.2, 2.0]), (patch("project", 2.0), [2.8, 0.0, 1.2])],
)
def test_edits_by_hand(settings: Any, row: list[float]) -> None:
    edit = rank_one_edit("m", R, COMPRESSED, ORIGINAL, settings)
    assert (edit.module, edit.rank, edit.of_experts) == ("m", 1, False)
    assert edit.column.tolist() == pytest.approx([0.6, 0.8])
    assert edit.row.tolist() == pytest.approx(row, abs=1e-6)
    torch.testing.assert_close(edit.matrix(), torch.outer(R.float(), torch.tensor(row)))
    assert edit.column.dtype == edit.row.dtype == edit.matrix().dtype == torch.float32


@pytest.mark.parametrize("method", ["scale", "project"])
def test_the_sign_of_the_direction_does_not_matter(method: Literal["scale", "project"]) -> None:
    unit, compressed, original = random_case()
    one = rank_one_edit("m", unit, compressed, original, patch(method, 0.7))
    other = rank_one_edit("m", -unit, compressed, original, patch(method, 0.7))
    assert torch.equal(one.matrix(), other.matrix())
    assert one.matrix().norm() > 0.1


def test_project_puts_back_the_originals_component() -> None:
    unit, compressed, original = random_case(1)
    edited = compressed + rank_one_edit("m", unit, compressed, original, patch("project")).matrix().double()
    torch.testing.assert_close(unit @ edited, unit @ original, atol=1e-6, rtol=0)
    # Nothing orthogonal to r moves.
    keep = torch.eye(16, dtype=torch.float64) - torch.outer(unit, unit)
    torch.testing.assert_close(keep @ edited, keep @ compressed, atol=1e-6, rtol=0)


def test_scale_by_minus_one_is_ablation() -> None:
    unit, compressed, original = random_case(2)
    edited = compressed + rank_one_edit("m", unit, compressed, original, patch("scale", -1.0)).matrix().double()
    ablated = compressed - torch.outer(unit, unit) @ compressed
    torch.testing.assert_close(edited, ablated, atol=1e-6, rtol=0)
    assert (unit @ edited).abs().max() < 1e-6


def test_before_a_norm_by_hand() -> None:
    gain = torch.tensor([2.0, 0.5], dtype=torch.float64)
    edit = rank_one_edit("m", R, COMPRESSED, ORIGINAL, patch("scale", 0.5), gain)
    # column r / g = (0.6 / 2, 0.8 / 0.5), row 0.5 (r * g)^T W_c with r * g = (1.2, 0.4)
    assert edit.column.tolist() == pytest.approx([0.3, 1.6])
    assert edit.row.tolist() == pytest.approx([1.2, 1.0, 1.0])
    other = torch.tensor([1.0, 3.0], dtype=torch.float64)
    # 2 x ((0.6, 2.4) W_o - (1.2, 0.4) W_c) = 2 x ((10.8, -1.2, 12.6) - (2.4, 2.0, 2.0))
    row = rank_one_edit("m", R, COMPRESSED, ORIGINAL, patch("project", 2.0), gain, other).row
    assert row.tolist() == pytest.approx([16.8, -6.4, 21.2])


def test_before_a_norm_the_effect_is_the_direction_and_a_rescaling() -> None:
    """u' = s (u + alpha r (r . u)), with s = rms(y) / rms(y')."""
    unit, matrix, _ = random_case(6)
    generator = torch.Generator().manual_seed(7)
    gain = 1 + 0.5 * torch.randn(16, generator=generator, dtype=torch.float64)
    inputs = torch.randn(5, 24, generator=generator, dtype=torch.float64)

    def contribution(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = inputs @ weights.T
        size = output.square().mean(-1, keepdim=True).sqrt()
        return gain * output / size, size

    edit = rank_one_edit("m", unit, matrix, matrix, patch("scale", 0.3), gain)
    (before, size), (after, new_size) = contribution(matrix), contribution(matrix + edit.matrix().double())
    expected = size / new_size * (before + 0.3 * torch.outer(before @ unit, unit))
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-5)
    # Taken away once, nothing of it is left.
    ablated, _ = contribution(matrix + rank_one_edit("m", unit, matrix, matrix, patch("scale", -1.0), gain).matrix())
    assert (ablated @ unit).abs().max() < 1e-5 < (before @ unit).abs().max()


def test_statistics_before_a_norm() -> None:
    """They speak of (r * g)^T W, what is contributed along r."""
    unit, compressed, original = related_case()
    gain = torch.linspace(0.5, 2, 64, dtype=torch.float64)
    edit = rank_one_edit("m", unit, compressed, original, patch("project"), gain, gain)
    statistics = edit_statistics(edit, compressed, original)
    before, target = (unit * gain) @ compressed, (unit * gain) @ original
    assert statistics["row_norm_before"] == pytest.approx((before.norm() / target.norm()).item(), rel=1e-5)
    assert statistics["row_norm_after"] == pytest.approx(1, rel=1e-5)
    assert statistics["relative_change"] == pytest.approx((edit.matrix().norm() / compressed.norm()).item(), rel=1e-5)


@torch.no_grad()
def test_an_adapter_before_a_norm_adds_the_direction(tmp_path: Path) -> None:
    """A patch of files, made without running them, loaded by PEFT into a model whose gains are 1 + weight."""
    model = tiny_family("gemma2")
    model.save_pretrained(tmp_path / "model")
    unit = unit_vector(width=64)
    inputs = PatchInputs("base", tmp_path / "model", tmp_path / "model", saved_direction(tmp_path, unit))
    settings = patch("scale", 0.5, blocks=[1])
    record = make_patch(settings, inputs, tmp_path / "adapter", tmp_path / "statistics.json")
    names = [f"model.layers.1.{name}" for name in ("self_attn.o_proj", "mlp.down_proj")]
    assert [edit["module"] for edit in record["edits"]] == names

    def contributed(model: Any) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        norm = model.get_submodule("model.layers.1.post_attention_layernorm")
        with hooks(forward=[(norm, lambda *each: kept.append(each[2].double()))]):
            model(input_ids=tokens(model), use_cache=False)
        return kept[0]

    before = contributed(model)
    after = contributed(PeftModel.from_pretrained(model, str(tmp_path / "adapter")).base_model.model)
    expected = before + 0.5 * (before @ unit).unsqueeze(-1) * unit
    assert (after - before).norm() > 0.02 * before.norm()
    cosine = torch.nn.functional.cosine_similarity(after, expected, dim=-1)  # equal up to the norm's rescaling
    torch.testing.assert_close(cosine, torch.ones_like(cosine), atol=1e-6, rtol=0)


def test_scale_does_not_read_the_original() -> None:
    unit, compressed, _ = random_case(3)
    broken = torch.full_like(compressed, torch.nan)
    assert rank_one_edit("m", unit, compressed, broken, patch("scale")).row.isfinite().all()


def test_edit_of_an_unchanged_matrix_is_nothing() -> None:
    unit, compressed, _ = random_case(4)
    assert rank_one_edit("m", unit, compressed, compressed, patch("project", 5.0)).matrix().abs().max() == 0


def test_matrices_of_sixteen_bits_are_multiplied_in_float64() -> None:
    unit, compressed, original = random_case(5)
    low = compressed.bfloat16()
    edit = rank_one_edit("m", unit.float(), low, original.bfloat16(), patch("scale"))
    torch.testing.assert_close(edit.row.double(), unit @ low.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shapes", [((2,), (2, 3), (2, 4)), ((3,), (2, 3), (2, 3)), ((2, 1), (2, 3), (2, 3))])
def test_shapes_that_do_not_fit(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"some\.module.*do not fit"):
        rank_one_edit("some.module", *map(torch.ones, shapes), patch("scale"))


@pytest.mark.parametrize("direction", [[1.2, 1.6], [0.0, 0.0], [math.nan, 1.0], [0.6, 0.81]])
def test_a_direction_that_is_not_a_unit_vector(direction: list[float]) -> None:
    with pytest.raises(ValueError, match=r"some\.module.*not 1"):
        rank_one_edit("some.module", torch.tensor(direction), COMPRESSED, ORIGINAL, patch("scale"))


def test_edited_blocks() -> None:
    assert edited_blocks(patch("scale"), 17, 30) == [16]
    assert edited_blocks(patch("scale"), 1, 30) == [0]
    # Nothing writes the input of block 0 but the embedding.
    assert edited_blocks(patch("scale"), 0, 30) == [0]
    assert edited_blocks(patch("scale", blocks="own_source", depth=3), 17, 30) == [14, 15, 16]
    assert edited_blocks(patch("scale", blocks="all"), 2, 4) == [0, 1, 2, 3]
    assert edited_blocks(patch("scale", blocks=[3, 1]), 2, 4) == [3, 1]
    with pytest.raises(ValueError, match=r"blocks \[4, 9\] do not exist.*0 to 3"):
        edited_blocks(patch("scale", blocks=[4, 1, 9]), 2, 4)


def test_random_direction() -> None:
    like = torch.zeros(1000, dtype=torch.float32)
    one = random_direction(like, 0)
    assert one.dtype == torch.float64 and one.shape == (1000,)
    assert one.norm().item() == pytest.approx(1)
    assert torch.equal(one, random_direction(like, 0))
    # Two random directions in 1000 dimensions are nearly orthogonal (standard deviation 0.03).
    assert abs((one @ random_direction(like, 1)).item()) < 0.15
    assert abs(one.mean().item()) < 0.005


def related_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a unit direction [64], a compressed matrix [64, 96] and the original's, which differ by noise."""
    original, noise = torch.randn(2, 64, 96, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return unit_vector(width=64), original + 0.3 * noise, original


def test_make_edits_records_what_it_changes() -> None:
    unit, compressed, original = related_case()
    read = {"a": compressed, "b": 0.9 * compressed}.__getitem__
    edits, statistics = make_edits(["a", "b"], unit, read, lambda _: original, patch("project", 0.5))
    assert [edit.module for edit in edits] == [row["module"] for row in statistics] == ["a", "b"]
    for module, edit, row in zip("ab", edits, statistics, strict=True):
        before, target = unit @ read(module), unit @ original
        torch.testing.assert_close(edit.row.double(), 0.5 * (target - before), atol=1e-6, rtol=1e-5)
        assert row == {
            "module": module,
            "relative_change": pytest.approx(((target - before).norm() / 2 / read(module).norm()).item(), rel=1e-5),
            "row_norm_before": pytest.approx((before.norm() / target.norm()).item(), rel=1e-5),
            "row_norm_after": pytest.approx(((before + target).norm() / 2 / target.norm()).item(), rel=1e-5),
        }


def test_nothing_is_computed_across_a_rescaling() -> None:
    """AWQ divides input channels by scales that the norm takes over: the matrices speak of different inputs."""
    unit, compressed, original = related_case()
    rescaled = compressed / torch.linspace(0.3, 3, 96, dtype=torch.float64)
    with pytest.raises(ValueError, match="m was rescaled against what stands before it"):
        make_edits(["m"], unit, lambda _: rescaled, lambda _: original, patch("project"))
    (edit,), (row,) = make_edits(["m"], unit, lambda _: rescaled, lambda _: original, patch("scale"))
    torch.testing.assert_close(edit.row.double(), unit @ rescaled, atol=1e-6, rtol=1e-5)
    assert row["row_norm_before"] is None and row["row_norm_after"] is None and row["relative_change"] > 0


def test_the_product_along_a_direction_is_that_of_the_whole_matrix() -> None:
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(150, 40, generator=generator).bfloat16()  # not a multiple of what is read at once
    unit = unit_vector(width=150)
    torch.testing.assert_close(along(unit, matrix), unit @ matrix.double(), atol=1e-12, rtol=0)
