"""Fit the row of each rank-1 edit, so that the compressed model writes along r what the original wrote.

Every member of the AIRD family adds r (A x) to the output of a module that writes to
the residual stream (aird/patching/edits.py). Here A is not a combination of the two matrices but
the ridge solution, in closed form, of

    r^T W_c x + A x = target(x)

over the post-instruction tokens of harmful and harmless prompts, where x is the input
that the module gets in the compressed model with all earlier edits in place: the fit
goes module by module through the blocks, and so also repairs what the blocks before did
to x. The target is the original model's own projection r^T W_o x_o for harmless prompts;
for harmful ones its distance from the harmless mean is multiplied by a strength.

Where a norm follows the matrix, "writes" means the contribution behind the norm, u = g * y / rms(y). The edit adds
A x / rms(y) to r . u, so the regression is on x / rms(y); that the edit changes rms(y) as well is left out of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from aird.inference.hooks import hooks
from aird.inference.packing import Pack, plan_packs, run_pack
from aird.inference.resuming import Reached, block_input, resumed_at
from aird.models.blocks import decoder_blocks
from aird.models.structure import residual_writers, writer_contributions, writer_gains
from aird.patching.edited import edited
from aird.patching.edits import Edit, edit_along
from aird.patching.rank_one import Directions, edited_modules
from aird.prompts.chat import post_instruction_tokens
from aird.settings.patches import RankOneSettings
from aird.support import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Projections = dict[str, torch.Tensor]  # module -> [prompts, positions] float64


@torch.no_grad()
def record_projections(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    positions: int,
    direction: torch.Tensor,
    modules: Sequence[str],
) -> Projections:
    """Return what each module contributes along the direction, at the last tokens of every prompt.

    Args:
        prompts: token ids of n templated prompts.
        positions: number of post-instruction tokens, P.
        direction: [d_model] unit vector.
        modules: full names of linear modules.

    Returns:
        module -> [n, P] float64.
    """
    written = {name: torch.empty(len(prompts), positions, dtype=torch.float64) for name in modules}
    contributions = writer_contributions(model)
    outputs = {name: model.get_submodule(contributions[name].module) for name in modules}
    for pack in progress.over(plan_packs(model, prompts, own_tokens=positions), "batches of prompts"):

        def keep(name: str, pack: Pack = pack) -> Callable[..., None]:
            def hook(_: nn.Module, __: Any, output: torch.Tensor) -> None:
                written[name][list(pack.prompts)] = _project(output, direction, pack.last_tokens(positions))

            return hook

        with hooks(forward=[(outputs[name], keep(name)) for name in modules]):
            run_pack(model, pack)
    return written


def targets(original: Projections, harmful: Sequence[bool], strength: float) -> Projections:
    """Return what each module should write along the direction.

    Args:
        original: the original model's own projections, module -> [n, P].
        harmful: for each prompt whether it is harmful.
        strength: 1 asks harmful prompts for the original's own projection; more moves them further
            away from the mean of the harmless prompts, position by position.
    """
    mask = torch.tensor(harmful)
    wanted = {}
    for name, values in original.items():
        harmless_mean = values[~mask].mean(dim=0)
        pushed = harmless_mean + strength * (values - harmless_mean)
        wanted[name] = torch.where(mask[:, None], pushed, values)
    return wanted


def wanted_projections(
    original: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    directions: Directions,
    settings: RankOneSettings,
    alpha: float,
) -> Projections:
    """Run the original and return what the edited modules should write along the direction.

    Prompts are token ids of templated ones, n of them, in this order; P is the number of post-instruction tokens.

    Returns:
        `targets` of strength alpha, module -> [n, P] float64.
    """
    _, modules = edited_modules(original, directions.source, settings, experts=False)
    positions = len(post_instruction_tokens(tokenizer))
    written = record_projections(original, [*harmful, *harmless], positions, directions.unit, modules)
    return targets(written, [True] * len(harmful) + [False] * len(harmless), alpha)


@torch.no_grad()
def fit_edits(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    wanted: Projections,
    direction: torch.Tensor,
    blocks: Sequence[int],
    ridge: float,
) -> list[Edit]:
    """Return one edit for each writer of the given blocks, fitted in the order of the forward pass.

    Args:
        model: the compressed model; it is left as it was.
        prompts: token ids of n templated prompts.
        wanted: module -> [n, P] float64, from `targets`.
        direction: [d_model] unit vector.
        blocks: indices of the blocks to edit.
        ridge: penalty on the row, in units of the mean square of an input feature times n P.
    """
    layers = list(decoder_blocks(model))
    writers = residual_writers(model)
    contributions, gains = writer_contributions(model), writer_gains(model)
    named = dict(model.named_modules())
    positions = next(iter(wanted.values())).shape[1]
    packs = plan_packs(model, prompts, own_tokens=positions)
    first, last = min(blocks), max(blocks)
    states = [block_input(model, layers, pack, first) for pack in packs]
    edits: list[Edit] = []
    with contextlib.ExitStack() as active:
        for index in range(first, last + 1):
            for name in writers[index].names if index in blocks else ():
                behind = named[contributions[name].module]
                features, written = _features(
                    model, layers, packs, index, states, named[name], behind, direction, positions
                )
                missing = wanted[name].reshape(-1) - written
                row = ridge_solution(features, missing, ridge)
                edit = edit_along(name, direction[:, None], row[None], gains.get(name))
                active.enter_context(edited(model, [edit]))
                edits.append(edit)
            if index < last:
                for place, pack in enumerate(packs):
                    with resumed_at(layers, index, states[place]):
                        states[place] = block_input(model, layers, pack, index + 1)
    return edits


def ridge_solution(features: torch.Tensor, wanted: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return a [d] float64 that minimises |X a - y|^2 + ridge * trace(X^T X) / d * |a|^2.

    Args:
        features: X, [n, d] float64.
        wanted: y, [n] float64.
        ridge: above 0.
    """
    count, width = features.shape
    penalty = ridge * features.square().sum() / width
    # The smaller of the two equivalent systems.
    if count < width:
        gram = features @ features.T
        gram.diagonal().add_(penalty)
        solution: torch.Tensor = features.T @ torch.linalg.solve(gram, wanted)
    else:
        gram = features.T @ features
        gram.diagonal().add_(penalty)
        solution = torch.linalg.solve(gram, features.T @ wanted)
    return solution


def _project(output: torch.Tensor, direction: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return _at(output, places) @ direction.double()


def _at(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the states of some tokens of one sequence, [places, width] float64; OPT's have no dimension of rows."""
    return states.reshape(-1, states.shape[-1])[places.to(states.device)].double().cpu()


def _features(
    model: PreTrainedModel,
    layers: list[nn.Module],
    packs: Sequence[Pack],
    block: int,
    states: Sequence[torch.Tensor],
    module: nn.Module,
    behind: nn.Module,
    direction: torch.Tensor,
    positions: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a module's inputs [n P, d_in] and what it contributes along the direction [n P], float64.

    `behind` is the norm that follows the module, and then divides its inputs by rms(y) too; else the module itself.
    """
    count = sum(len(pack.prompts) for pack in packs)
    features: torch.Tensor | None = None
    written = torch.empty(count, positions, dtype=torch.float64)
    for pack, state in zip(packs, states, strict=True):
        kept: list[torch.Tensor] = []

        def keep(_: nn.Module, inputs: Any, output: torch.Tensor, kept: list[torch.Tensor] = kept) -> None:
            kept.extend([inputs[0], output])

        def stop(_: nn.Module, __: Any, output: torch.Tensor, kept: list[torch.Tensor] = kept) -> None:
            kept.append(output)
            raise Reached

        stops = hooks(forward=[(module, keep), (behind, stop)])
        with resumed_at(layers, block, state), stops, contextlib.suppress(Reached):
            run_pack(model, pack)
        places = pack.last_tokens(positions)
        inputs = _at(kept[0], places)
        if behind is not module:
            inputs = inputs / _at(kept[1], places).square().mean(-1, keepdim=True).sqrt()
        if features is None:
            features = torch.empty(count, positions, inputs.shape[-1], dtype=torch.float64)
        features[list(pack.prompts)] = inputs
        written[list(pack.prompts)] = _project(kept[2], direction, places)
    assert features is not None, "no prompt was given"
    return features.flatten(0, 1), written.flatten()
