"""Prove by values what was read of a model: that its blocks add just that, and that edits of matrices do what is meant.

Hooks on the very modules that were found, on a few tokens, must give every block's output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from aird.inference.hooks import Arguments, Keywords, hooks
from aird.inference.resuming import resumed_at
from aird.models.blocks import ArchitectureError, Contribution, Writers, some_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-3  # relative error of a block's change of a token, besides the rounding of its type


def prove_writers(model: PreTrainedModel, blocks: list[nn.Module], writers: Sequence[Writers]) -> None:
    """Compare every block's output with its input plus its contributions, by hooks on the modules that were named.

    For every token alone, and besides a relative error of `TOLERANCE` only the rounding of its own states is allowed.

    Then, as directions are found in passes that begin at some block, that such a pass ends where a whole one does.

    Raises:
        ArchitectureError: says which block, how far off, and what was found.
    """
    modules = dict(model.named_modules())
    states: list[tuple[torch.Tensor, torch.Tensor]] = []
    outputs: list[dict[str, torch.Tensor]] = []
    inputs: list[torch.Tensor] = []

    def enter(_: nn.Module, args: Arguments, kwargs: Keywords) -> None:
        inputs.append((args[0] if args else kwargs["hidden_states"]).clone())
        outputs.append({})

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if outputs:
                outputs[-1][name] = (output[0] if isinstance(output, tuple) else output).clone()

        return hook

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        states.append((inputs[-1], output[0] if isinstance(output, tuple) else output))

    named = dict.fromkeys(each.module for block in writers for each in block.contributions)
    with hooks(
        before=[(block, enter) for block in blocks],
        forward=[(modules[name], keep(name)) for name in named] + [(block, leave) for block in blocks],
    ):
        logits = model(**some_tokens(model)).logits
    if bool(logits.isnan().any()):
        raise ArchitectureError(f"{type(model).__name__} returns values that are no numbers: the checkpoint is broken")
    for block, (before, after), found in zip(writers, states, outputs, strict=True):
        start, end = before.double().cpu(), after.double().cpu()
        added = [each.scale * found[each.module].double().cpu().reshape(end.shape) for each in block.contributions]
        # Token by token, as the states of one may be a thousand times those of the others.
        missing = (end - start - torch.stack(added).sum(0)).norm(dim=-1)
        largest = torch.stack([each.norm(dim=-1) for each in (start, end, *added)]).amax(0)
        change = (end - start).norm(dim=-1)
        allowed = TOLERANCE * change + 4 * torch.finfo(after.dtype).eps * largest
        if not bool((missing <= allowed).all()):
            worst = (missing / change.clamp(min=1e-30)).max().item()
            seen = ", ".join(f"{each.scale:.4g} x {each.module}" for each in block.contributions)
            raise ArchitectureError(
                f"{block.block}: its output is not its input plus what was found ({seen}): "
                f"up to {worst:.2g} of a token's change is something else"
            )
    with resumed_at(blocks, len(blocks) - 1, states[-1][0]):
        again = model(**some_tokens(model)).logits
    error = ((again - logits).double().norm() / logits.double().norm()).item()
    if not error <= max(TOLERANCE, 4 * torch.finfo(logits.dtype).eps):
        raise ArchitectureError(
            f"{type(model).__name__}: a pass that begins at {writers[-1].block} ends with other logits "
            f"(relative error {error:.2g}), so blocks depend on more than their input"
        )


def prove_experts(model: PreTrainedModel, writers: Sequence[Writers]) -> None:
    """Prove that experts' matrices write to the residual stream: edited along a random r, they must add r alone.

    A weak edit would drown in the rounding of 16 bits; this one adds about as much as all of the contribution.

    Raises:
        ArchitectureError: names the parameter, and how much of the change is something else.
    """
    chosen = {each.module: each.experts for block in writers for each in block.contributions if each.experts}
    calls: dict[str, tuple[Arguments, Keywords]] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: Arguments, kwargs: Keywords) -> None:
            calls[name] = tuple(each.clone() if isinstance(each, torch.Tensor) else each for each in args), kwargs

        return hook

    if not chosen:
        return
    with hooks(before=[(model.get_submodule(name), keep(name)) for name in chosen]):
        model(**some_tokens(model))
    for name, parameter in chosen.items():
        module = model.get_submodule(name)

        def output(module: nn.Module = module, name: str = name) -> torch.Tensor:
            args, kwargs = calls[name]
            value = module(*(each.clone() if isinstance(each, torch.Tensor) else each for each in args), **kwargs)
            made: torch.Tensor = value[0] if isinstance(value, tuple) else value
            return made

        plain = output()
        precision = torch.finfo(plain.dtype).eps
        plain = plain.double().cpu()
        width = plain.shape[-1]
        unit = torch.nn.functional.normalize(torch.randn(width, generator=torch.Generator().manual_seed(0)), dim=0)
        matrices = model.get_parameter(parameter).detach().float()
        if model.get_submodule(parameter.rpartition(".")[0]).is_transposed:
            matrices = matrices.transpose(1, 2)
        row = unit.to(matrices.device) @ matrices
        up = (width**0.5 * unit)[:, None].expand(len(row), -1, -1)
        with edited_experts(model, parameter, up, row[:, None, :]):
            change = (output().double().cpu() - plain).reshape(-1, width)
        other = (change - torch.outer(change @ unit.double(), unit.double())).norm().item()
        rounding = 4 * precision * (plain.norm() + change.norm()).item()
        if not other <= TOLERANCE * change.norm().item() + rounding or not change.norm() > rounding:
            raise ArchitectureError(
                f"{parameter}: an edit of the experts' matrices along a direction changes what {name} adds to the "
                f"residual stream in other ways too ({other / max(change.norm().item(), 1e-30):.2g} of the change)"
            )


@contextlib.contextmanager
def edited_experts(model: PreTrainedModel, parameter: str, up: torch.Tensor, down: torch.Tensor) -> Iterator[None]:
    """Add up down to the matrix of every expert of a mixture while the context is open.

    The parameter itself stays as it is; gradients reach both factors. One block's matrices are made at a time.

    Args:
        model: the model.
        parameter: full name of the experts' parameter (`Contribution.experts`).
        up: [experts, d_out, rank].
        down: [experts, rank, d_in].
    """
    owner, _, local = parameter.rpartition(".")
    module = model.get_submodule(owner)
    original = module.get_parameter(local)

    def put(*_: Any) -> None:
        parts = up.to(original.device), down.to(original.device)
        added = torch.einsum("eor,eri->eio" if module.is_transposed else "eor,eri->eoi", *parts)
        # Not as an attribute: under this name the module takes parameters only.
        module._parameters[local] = original + added.to(original.dtype)  # type: ignore[assignment]

    def take_back(*_: Any) -> None:
        module._parameters[local] = original

    try:
        with hooks(before=[(module, put)], forward=[(module, take_back)]):
            yield
    finally:
        take_back()


def with_proven_norms(model: PreTrainedModel, block: Writers) -> Writers:
    """Take the writers away that something else than a norm follows: no edit of theirs has a known effect."""
    changed = []
    for each in block.contributions:
        try:
            if each.writer is not None and each.norm is not None:
                norm_gain(each.norm, model.get_submodule(each.norm), written_size(model, each.writer))
        except ArchitectureError as error:
            each = Contribution(each.part, each.module, each.scale, obstacle=str(error))
        changed.append(each)
    return Writers(block.block, tuple(changed))


def written_size(model: PreTrainedModel, writer: str) -> int:
    """Return how many features a linear module writes."""
    linear = model.get_submodule(writer)
    assert isinstance(linear, nn.Linear)
    return linear.out_features


@torch.no_grad()
def norm_gain(name: str, norm: nn.Module, width: int) -> torch.Tensor:
    """Return the gain g of a norm, [width] float64, on the CPU: norm(y) = g * y / rms(y).

    The module is asked, not its parameter: Gemma's gain is 1 + weight.

    Raises:
        ArchitectureError: the module does something else, or a gain is zero, so that no edit of the matrix before it
            can write along every direction.
    """
    parameter = next(norm.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    # Far above the norm's epsilon.
    probe = 100 * torch.randn(1, 1, width, generator=torch.Generator().manual_seed(0)).to(device)
    gain: torch.Tensor = norm(torch.full_like(probe, 100.0)).double().flatten()
    expected = gain * probe.double() / probe.double().square().mean().sqrt()
    error = ((norm(probe).double() - expected).norm() / expected.norm()).item()
    if not error < TOLERANCE:
        raise ArchitectureError(
            f"{name} ({type(norm).__name__}) stands between a matrix and the residual stream and is no RMS norm "
            f"(relative error {error:.1g}), so an edit of that matrix would write something else than meant"
        )
    if not bool((gain.abs() > 1e-6 * gain.abs().max()).all()):
        raise ArchitectureError(f"{name}: its gain is zero for some features, so no edit before it can write there")
    return gain.cpu()
