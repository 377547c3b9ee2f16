"""Low-rank compensation of what compression did to a matrix, in closed form (LQER 2402.02446, EoRA 2410.21271).

With D = W_o - W_c the error of a matrix, and C = E[x x^T] the covariance of its inputs in the compressed model, the
change A of rank k that leaves least of the error in the outputs minimises

    E |D x - A x|^2 = |(D - A) C^(1/2)|_F^2,

so A = U_k U_k^T D, with U S V^T the singular value decomposition of D C^(1/2). U and S^2 are the eigenvectors and
eigenvalues of D C D^T, which take a part of the time of that decomposition. No gradient, no label and no refusal
direction is in it. It says how much of the error lies along how few inputs: where one singular direction holds most of
it, rank 1 undoes most of what compression did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from aird.inference.hooks import hooks
from aird.inference.packing import Pack, plan_packs, run_pack
from aird.models.rescaling import check_comparable
from aird.patching.edits import Edit
from aird.support import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BYTES = 2 * 10**9  # of covariances that are held at once; more modules take more passes
FLOOR = 1e-6  # of the mean eigenvalue: no input direction counts less, so that all singular directions are told apart
SHARES = 8  # first singular directions whose shares of the error are told

# Takes the name of a module, its inputs [tokens, d_in] float32, how many prompts each token of the pack belongs to
# [tokens], and the pack.
InputReader = Callable[[str, torch.Tensor, torch.Tensor, Pack], None]


@dataclass(frozen=True)
class Compensation:
    """The compensation of one matrix.

    Attributes:
        edit: the change, up [d_out, rank] and down [rank, d_in].
        left: share of the covariance-weighted squared error that it leaves, 0 to 1.
        shares: shares that the first singular directions hold, each alone, largest first; as many as `SHARES`, fewer of
            a small matrix, and zeros where there is no error.
    """

    edit: Edit
    left: float
    shares: list[float]


@torch.no_grad()
def input_covariances(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], modules: Sequence[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield modules with the mean of x x^T over all tokens of all prompts, [d_in, d_in] float32.

    Args:
        model: the compressed model.
        prompts: token ids of prompts with their replies.
        modules: full names of linear modules; as many at once as `BYTES` hold.
    """
    named = dict(model.named_modules())
    packs = plan_packs(model, prompts)
    for group in _groups(modules, named):
        yield from _covariances(model, packs, {name: named[name] for name in group}, sum(map(len, prompts)))


def _covariances(
    model: PreTrainedModel, packs: Sequence[Pack], modules: Mapping[str, nn.Module], tokens: int
) -> Iterator[tuple[str, torch.Tensor]]:
    sums = {name: torch.zeros(_inputs(module), _inputs(module)) for name, module in modules.items()}

    def add(name: str, rows: torch.Tensor, counts: torch.Tensor, _: Pack) -> None:
        sums[name] += rows.T @ (rows * counts[:, None])

    read_inputs(model, packs, modules, add)
    yield from ((name, total / tokens) for name, total in sums.items())


def read_inputs(
    model: PreTrainedModel, packs: Sequence[Pack], modules: Mapping[str, nn.Module], reader: InputReader
) -> None:
    """Run packs through a model, and give the inputs of linear modules, by their names, to a reader."""
    for pack in progress.over(packs, "batches of prompts"):
        counts = _token_counts(pack)

        def read(name: str, counts: torch.Tensor = counts, pack: Pack = pack) -> Callable[..., None]:
            def hook(_: nn.Module, arguments: tuple[torch.Tensor, ...], __: Mapping[str, torch.Tensor]) -> None:
                reader(name, arguments[0].reshape(-1, arguments[0].shape[-1]).float().cpu(), counts, pack)

            return hook

        with hooks(before=[(module, read(name)) for name, module in modules.items()]):
            run_pack(model, pack)


def _inputs(module: nn.Module) -> int:
    """Return d_in of a linear module, dense or quantised."""
    return int(module.in_features)  # type: ignore[arg-type]  # whatever class a format's linear module has


def _token_counts(pack: Pack) -> torch.Tensor:
    """Return how many prompts each token of a pack belongs to, [tokens]: what they all begin with runs once."""
    weights = torch.ones(int(pack.ends[-1]) + 1)
    weights[: pack.prefix_length] = len(pack.prompts)
    return weights


def _groups(modules: Sequence[str], named: Mapping[str, nn.Module]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for name in modules:
        more = 4 * _inputs(named[name]) ** 2
        if group and size + more > BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += more
    if group:
        yield group


def compensations(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    modules: Sequence[str],
    original: Callable[[str], torch.Tensor],
    compressed: Callable[[str], torch.Tensor],
    rank: int,
) -> list[Compensation]:
    """Return the compensation of each module.

    Args:
        model, prompts, modules: as of `input_covariances`.
        original, compressed: return one module's dense matrix [d_out, d_in].
        rank: k.

    Raises:
        ValueError: inputs are not finite, or compression rescaled a matrix against what stands before it.
    """
    made = []
    for name, covariance in input_covariances(model, prompts, modules):
        pair = original(name), compressed(name)
        check_comparable(*pair, name)
        made.append(compensate(name, *pair, covariance, rank))
    return made


def compensate(
    module: str, original: torch.Tensor, compressed: torch.Tensor, covariance: torch.Tensor, rank: int
) -> Compensation:
    """Return the compensation of one matrix.

    Args:
        module: its full name.
        original, compressed: W_o and W_c, [d_out, d_in], any floating type.
        covariance: [d_in, d_in], of `input_covariances`.
        rank: k; what the matrix has not is zeros.

    Raises:
        ValueError: the covariance is not finite.
    """
    if not covariance.isfinite().all():
        raise ValueError(f"{module} gets inputs that are not finite, so nothing can be compensated")
    error = original.double() - compressed.double()
    if error.shape[0] <= error.shape[1]:
        squares, left = torch.linalg.eigh(error @ covariance.double() @ error.T)
    else:  # that of the smaller product, V and S^2; then D C^(1/2) V = U S
        values, vectors = torch.linalg.eigh(covariance.double())
        weighted = error @ (vectors * values.clamp(min=FLOOR * values.mean().item()).sqrt())
        squares, right = torch.linalg.eigh(weighted.T @ weighted)
        left = nn.functional.normalize(weighted @ right, dim=0)
    squares = squares.flip(0).clamp_min(0)
    kept = min(rank, len(squares))
    left = left.flip(1)[:, :kept]
    total = squares.sum().item()
    shares = squares / total if total > 0 else torch.zeros_like(squares)
    # A rank that the matrix has not is filled with zeros: an adapter has one rank.
    up = nn.functional.pad(left, (0, rank - kept)).float()
    down = nn.functional.pad(left.T @ error, (0, 0, 0, rank - kept)).float()
    return Compensation(Edit(module, up, down), 1 - shares[:kept].sum().item(), shares[:SHARES].tolist())
