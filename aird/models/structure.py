"""Find the decoder blocks of a model and what they add to its residual stream, and prove it on the model itself.

Nothing is recognised by name. A block adds *contributions* to its input: the output of a module, times a constant
where the model has one. They are read from the operations of one short forward pass, so a norm behind the last matrix,
attention and MLP side by side, a mixture of experts or a state space are all seen for what they are:

    block output = block input + sum of scale x (output of a module)

Where the model has weights, this is then proven by values: hooks on these very modules, on a few tokens, must give
every block's output. Whoever removes a direction from these outputs, or adds to them, works on all that is written.

An edit changes the matrix of a *writer*, the linear module that a contribution comes from. Where a norm with the gain
g follows, the contribution is g * y / rms(y) of the writer's output y (Gemma 2 and 3, OLMo 2, EXAONE 4), and the edit
allows for it (aird/patching/edits.py). A mixture's experts write with one matrix each, the slices of one parameter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from aird.inference.hooks import Arguments, Keywords, hooks
from aird.inference.resuming import TUPLE_BLOCKS, resumed_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 8  # of the pass that proves a structure
TOLERANCE = 1e-3  # relative error of a block's change of a token, besides the rounding of its type
# Where PEFT puts no LoRA on modules of this name (peft/tuners/tuners_utils.py): kernels read their weight past it.
WITHOUT_ADAPTERS = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
STATE_SPACE_WRITER = "out_proj"
WRAPPED = "base_layer"  # PEFT's name for a module that an adapter is on; it computes with weights of its own
_PROVEN: WeakKeyDictionary[Any, list[Writers]] = WeakKeyDictionary()


class ArchitectureError(ValueError):
    """The model lacks the structure that directions and AIRD need."""


@dataclass(frozen=True)
class Contribution:
    """One thing that a block adds to the residual stream: `scale` times the output of `module`.

    Attributes:
        part: the child of the block that it comes from, in the model's own words, such as "self_attn".
        module: full name of the module; ablation and addition work at its output.
        scale: a constant of the model, such as a residual multiplier; 1 in most.
        writer: full name of the linear module whose matrix can be edited; None where there is none.
        norm: full name of the norm between writer and residual stream, then the same as `module`; None without one.
        experts: full name of the parameter that holds the output matrices of a mixture's experts; None elsewhere.
        obstacle: what no edit reaches and why, with the module's name; empty where a writer or experts are all of it.
    """

    part: str
    module: str
    scale: float = 1.0
    writer: str | None = None
    norm: str | None = None
    experts: str | None = None
    obstacle: str = ""


@dataclass(frozen=True)
class Writers:
    """What one block writes to the residual stream, in the order of the forward pass.

    Attributes:
        block: full name of the block.
        contributions: all of it.
    """

    block: str
    contributions: tuple[Contribution, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Full names of the linear modules whose matrices can be edited; in most models attention first."""
        return tuple(each.writer for each in self.contributions if each.writer is not None)

    @property
    def experts(self) -> tuple[str, ...]:
        """Full names of the parameters with experts' output matrices, which can be edited as well."""
        return tuple(each.experts for each in self.contributions if each.experts is not None)

    @property
    def obstacles(self) -> list[str]:
        """What this block writes and no edit reaches, with the reason; empty for most models."""
        return [each.obstacle for each in self.contributions if each.obstacle]


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder blocks: the module list with `num_hidden_layers` entries, first looked for in the text model.

    Raises:
        ArchitectureError: no module list has that length.
    """
    wanted = model.config.get_text_config().num_hidden_layers
    text: nn.Module = getattr(model, "get_decoder", lambda: model)()
    lengths = {}
    for root in (text, model):
        for name, module in root.named_modules():
            if isinstance(module, nn.ModuleList):
                lengths[name] = len(module)
                if len(module) == wanted:
                    return module
    raise ArchitectureError(
        f"{type(model).__name__}: looked for a module list of {wanted} decoder blocks, found {lengths or 'none'}"
    )


def outside_blocks(model: PreTrainedModel) -> list[str]:
    """Return the names of the linear modules outside the decoder blocks, such as the output head."""
    inside = {id(module) for block in decoder_blocks(model) for module in block.modules()}
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name, module in linear if id(module) not in inside]


@torch.no_grad()
def residual_writers(model: PreTrainedModel) -> list[Writers]:
    """Return what every block writes to the residual stream, proven where the model has weights; once per model.

    A model without weights (`aird.models.loading.load_structure`) runs the same operations and is read in the same way,
    so it is known from the operations alone; its values were compared when it was imported.

    Raises:
        ArchitectureError: a block's output is not its input plus outputs of modules; the message names the block, how
            far off it is and what was seen.
    """
    if model not in _PROVEN:
        blocks = list(decoder_blocks(model))
        writers = _Reading(model, blocks).run()
        if not blocks_are_empty(blocks):
            _prove(model, blocks, writers)
            _prove_experts(model, writers)
            writers = [_with_proven_norms(model, block) for block in writers]
        _PROVEN[model] = writers
    return _PROVEN[model]


def writer_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Return the modules whose outputs are the contributions, block by block: where a direction is removed."""
    modules = dict(model.named_modules())
    names = [each.module for block in residual_writers(model) for each in block.contributions]
    return [modules[name] for name in dict.fromkeys(names)]


def writer_contributions(model: PreTrainedModel) -> dict[str, Contribution]:
    """Return the contribution of every linear module that can be edited."""
    return {each.writer: each for block in residual_writers(model) for each in block.contributions if each.writer}


def takes_adapter(model: PreTrainedModel, module: str) -> bool:
    """Return whether PEFT puts an adapter on a linear module of this full name."""
    return model.config.model_type not in WITHOUT_ADAPTERS or module.rpartition(".")[2] != STATE_SPACE_WRITER


def written_size(model: PreTrainedModel, writer: str) -> int:
    """Return how many features a linear module writes."""
    linear: Any = model.get_submodule(writer)
    size: int = linear.out_features
    return size


def writer_gains(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the gain of the norm behind each writer that has one, writer -> [d_model] float64, on the CPU.

    Raises:
        ArchitectureError: as of `norm_gain`.
    """
    return {
        writer: norm_gain(each.norm, model.get_submodule(each.norm), written_size(model, writer))
        for writer, each in writer_contributions(model).items()
        if each.norm is not None
    }


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


def blocks_are_empty(blocks: Iterable[nn.Module]) -> bool:
    """Return whether the blocks have no weights (meta device)."""
    return any(parameter.is_meta for block in blocks for parameter in block.parameters())


@dataclass
class _Value:
    """A tensor of the size of the hidden states, as it was computed.

    Attributes:
        parts: the values that it is a sum of, with their factors; empty for any other operation.
        shape: of the tensor.
        modules: the modules that returned it, innermost first.
        time: when the first of them did.
    """

    parts: list[tuple[_Value, float]]
    shape: tuple[int, ...]
    modules: list[nn.Module] = field(default_factory=list)
    time: int = 0

    def chain(self) -> Iterator[tuple[_Value, float]]:
        """Yield this value and those it is a mere multiple of, with their factors."""
        value, factor = self, 1.0
        yield value, factor
        while len(value.parts) == 1:
            (value, times) = value.parts[0]
            factor *= times
            yield value, factor


_ATEN = torch.ops.aten
_SAME = {
    getattr(_ATEN, name)
    for name in ("view", "_unsafe_view", "reshape", "clone", "alias", "detach", "_to_copy", "squeeze", "unsqueeze")
}
_SUMS = {_ATEN.add: 1.0, _ATEN.add_: 1.0, _ATEN.sub: -1.0, _ATEN.sub_: -1.0}
_PRODUCTS = {_ATEN.mul: 1, _ATEN.mul_: 1, _ATEN.div: -1, _ATEN.div_: -1}


class _Reading(TorchDispatchMode):
    """Reads what each block adds from the operations of one forward pass."""

    def __init__(self, model: PreTrainedModel, blocks: list[nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.blocks = model, blocks
        self.names = {module: name for name, module in model.named_modules()}
        self.writers: dict[nn.Module, Writers] = {}
        self.size = 0  # of the hidden states
        self.start = _Value([], ())  # the input of the current block
        self.time = 0
        self.values: dict[int, _Value] = {}
        self.alive: list[torch.Tensor] = []  # so that no other tensor gets the identity of one that is known
        self.inputs: dict[nn.Module, _Value] = {}  # what the modules of the current block were given

    def run(self) -> list[Writers]:
        inside = dict.fromkeys(module for block in self.blocks for module in list(block.modules())[1:])
        with hooks(
            before=[(block, self._enter) for block in self.blocks] + [(module, self._given) for module in inside],
            forward=[(module, self._returned) for module in inside] + [(block, self._leave) for block in self.blocks],
        ):
            _run(self.model, self)
        absent = [self.names[block] for block in self.blocks if block not in self.writers]
        if absent:
            raise ArchitectureError(f"{absent[0]} and {len(absent) - 1} more blocks did not run in a forward pass")
        writers = [self.writers[block] for block in self.blocks]
        names = [name for block in writers for name in block.names]
        shared = {name for name in names if names.count(name) > 1}
        return [_without(block, shared) for block in writers] if shared else writers

    def restart(self) -> None:
        """Forget a pass that failed."""
        self.writers.clear()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Arguments = (), kwargs: Keywords | None = None) -> Any:
        output = _stand_in(func.overloadpacket, args, kwargs or {})
        if output is None:
            output = func(*args, **(kwargs or {}))
        if self.size:
            parts = self._parts(func.overloadpacket, args, kwargs or {})
            if func._schema.is_mutable and args and isinstance(args[0], torch.Tensor):
                self._overwritten(args[0])
            if self._is_state(output):
                self._set(output, _Value(parts, tuple(output.shape)))
        return output

    def _parts(self, packet: Any, args: Arguments, kwargs: Keywords) -> list[tuple[_Value, float]]:
        states = [self._value(each) for each in args[:2] if self._is_state(each)]
        if packet in _SAME and len(states) == 1:
            return [(states[0], 1.0)]
        if packet in _SUMS and len(states) == 2:
            return [(states[0], 1.0), (states[1], _SUMS[packet] * kwargs.get("alpha", 1))]
        if packet in _PRODUCTS and len(states) == 1:
            state_first = self._is_state(args[0])
            number = args[1] if state_first else args[0]
            # A constant of the model; what is learnt is a tensor.
            if isinstance(number, int | float) and (state_first or _PRODUCTS[packet] == 1):
                return [(states[0], float(number) ** _PRODUCTS[packet])]
        return []

    def _is_state(self, tensor: Any) -> bool:
        return isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.numel() == self.size

    def _value(self, tensor: torch.Tensor) -> _Value:
        return self.values.get(id(tensor)) or self._set(tensor, _Value([], tuple(tensor.shape)))

    def _set(self, tensor: torch.Tensor, value: _Value) -> _Value:
        self.alive.append(tensor)
        self.values[id(tensor)] = value
        return value

    def _overwritten(self, tensor: torch.Tensor) -> None:
        """Forget what is known of everything that shares memory with a tensor that was changed in place."""
        memory = tensor.untyped_storage()._cdata
        for other in self.alive:
            if other.untyped_storage()._cdata == memory:
                self.values[id(other)] = _Value([], tuple(other.shape))

    def _enter(self, block: nn.Module, args: Arguments, kwargs: Keywords) -> None:
        states = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(states, torch.Tensor) or states.ndim != 3 or not states.is_floating_point():
            shape = tuple(states.shape) if isinstance(states, torch.Tensor) else type(states).__name__
            raise ArchitectureError(
                f"{self._name(block)}: its input is no residual stream [rows, tokens, d_model], but {shape}"
            )
        self.values.clear()
        self.alive.clear()
        self.inputs.clear()
        self.size = states.numel()
        self.start = self._set(states, _Value([], tuple(states.shape)))

    def _given(self, module: nn.Module, args: Arguments, kwargs: Keywords) -> None:
        given: Any = args[0] if args else kwargs.get("hidden_states")
        if self._is_state(given):
            self.inputs[module] = self._value(given)

    def _returned(self, module: nn.Module, _: Any, output: Any) -> None:
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if self._is_state(tensor) and self._value(tensor) is not self.start:
                value = self._value(tensor)
                self.time += 1
                value.time = value.time or self.time
                value.modules.append(module)

    def _leave(self, block: nn.Module, _: Any, output: Any) -> None:
        if block in self.writers:
            raise ArchitectureError(f"{self._name(block)} runs more than once in a forward pass")
        if isinstance(output, tuple):
            TUPLE_BLOCKS.add(block)
        tensor = output[0] if isinstance(output, tuple) else output
        if not self._is_state(tensor):
            raise ArchitectureError(f"{self._name(block)}: its output has not the shape of its input")
        terms: list[tuple[_Value, float]] = []
        self._expand(self._value(tensor), 1.0, terms)
        kept = sum(factor for value, factor in terms if value is self.start)
        added = [(value, factor) for value, factor in terms if value is not self.start]
        seen = ", ".join(self._describe(value, factor) for value, factor in added) or "nothing"
        if kept != 1:
            how = f"with the factor {kept:.3g}" if kept else "not by additions alone"
            raise ArchitectureError(
                f"{self._name(block)}: its input reaches its output {how}, so this is no residual stream that blocks "
                f"add to (seen as its output: {seen})"
            )
        unnamed = [value for value, _ in added if not value.modules]
        if unnamed or not added:
            raise ArchitectureError(
                f"{self._name(block)}: what it adds to its input is not the output of modules (seen: {seen})"
            )
        # In the order of the forward pass, whatever the order of the additions.
        added.sort(key=lambda term: term[0].time)
        self.writers[block] = Writers(
            self.names[block], tuple(self._contribution(block, value, factor) for value, factor in added)
        )
        self.size = 0

    def _expand(self, value: _Value, factor: float, terms: list[tuple[_Value, float]]) -> None:
        """Split a sum into what modules returned; inside a module only where the block's input passes through it."""
        if value.parts and (not value.modules or self._holds_start(value)):
            for part, times in value.parts:
                self._expand(part, factor * times, terms)
        elif any(value is known for known, _ in terms):
            place = next(index for index, (known, _) in enumerate(terms) if known is value)
            terms[place] = (value, terms[place][1] + factor)
        else:
            terms.append((value, factor))

    def _holds_start(self, value: _Value) -> bool:
        return value is self.start or any(self._holds_start(part) for part, _ in value.parts)

    def _contribution(self, block: nn.Module, value: _Value, factor: float) -> Contribution:
        width = self.start.shape[-1]
        returned = [(each, times) for each, times in value.chain() if each.modules and each.shape[-1] == width]
        if not returned:
            raise ArchitectureError(f"{self._name(block)}: {self._describe(value, factor)} has no shape of states")
        # [rows x tokens, d_model] otherwise: only views lie between, so the rows follow each other.
        innermost, times = ([term for term in returned if len(term[0].shape) == 3] or returned)[-1]
        scale = factor * times
        module = innermost.modules[0]
        name = self.names[module]
        part = name.removeprefix(f"{self.names[block]}.").split(".")[0]
        source, norm = value, None
        given = self.inputs.get(module)
        # A module of a few vectors, such as a norm, between a matrix and the residual stream.
        if given is not None and sum(parameter.numel() for parameter in module.parameters()) <= 2 * width:
            source, norm = given, name
        linear = _linear(source)
        if linear is None:
            last = next((each.modules[0] for each, _ in source.chain() if each.modules), module)
            obstacle = f"{self.names[last]} ({type(last).__name__}) ends in no single linear module"
        elif linear.out_features != width:
            obstacle = f"{self.names[linear]} has {linear.out_features} output features, the stream {width}"
        elif not takes_adapter(self.model, self.names[linear]):
            obstacle = f"{self.names[linear]} writes for a state space: PEFT puts no adapter on it in this model type"
            return Contribution(part, name, scale, obstacle=obstacle)
        else:
            return Contribution(part, name, scale, self.names[linear], norm)
        experts, others = _experts(module, width)
        if experts and WRAPPED not in f"{name}.{experts}".split("."):
            obstacle = f"{name} is edited in its routed experts only, not in {name}.{others[-1]}" if others else ""
            return Contribution(part, name, scale, experts=f"{name}.{experts}", obstacle=obstacle)
        return Contribution(part, name, scale, obstacle=obstacle)

    def _describe(self, value: _Value, factor: float) -> str:
        what = self.names[value.modules[0]] if value.modules else "a value that no module returned"
        return what if factor == 1 else f"{factor:.3g} x {what}"

    def _name(self, block: nn.Module) -> str:
        return f"{self.names[block]} ({type(block).__name__})"


def _stand_in(packet: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Return something for what a tensor without values (meta device) cannot answer; None for all else.

    No routing, no branch and no loop over experts that these decide is needed to see what a block adds.
    """
    first = args[0] if args else None
    if not isinstance(first, torch.Tensor) or not first.is_meta:
        return None
    if packet is _ATEN._local_scalar_dense:
        return 1.0 if first.is_floating_point() else False if first.dtype == torch.bool else 0
    if packet is _ATEN._to_copy and str(kwargs.get("device", "meta")) != "meta":
        return torch.zeros(first.shape, dtype=kwargs.get("dtype") or first.dtype, device=kwargs["device"])
    if packet is _ATEN.nonzero:
        return first.new_empty((0, first.ndim), dtype=torch.long)
    if packet is _ATEN._grouped_mm:
        return first.new_empty((first.shape[0], args[1].shape[-1]))
    return None


def _linear(value: _Value) -> Any:
    """Return the linear module that a value is the output of, up to factors and shapes; None without one."""
    modules = [module for each, _ in value.chain() for module in each.modules if isinstance(module, nn.Linear)]
    return modules[-1] if modules else None


def _experts(module: nn.Module, width: int) -> tuple[str, list[str]]:
    """Return the parameter below a module with its experts' output matrices, and what else there may write; or "".

    Transformers names it: modules of its interface for experts (transformers/integrations/moe.py) hold `down_proj`,
    [experts, d_out, d_in], or with d_in and d_out swapped where they say `is_transposed`. Values prove it later.
    """
    names = []
    for name, each in module.named_modules():
        matrices = getattr(each, "down_proj", None)
        follows = all(isinstance(getattr(each, word, None), bool) for word in ("is_transposed", "has_bias", "has_gate"))
        if follows and isinstance(matrices, nn.Parameter) and matrices.ndim == 3:
            if matrices.shape[2 if each.is_transposed else 1] != width:
                return "", []
            names.append(f"{name}.down_proj".removeprefix("."))
    others = [
        name for name, each in module.named_modules() if isinstance(each, nn.Linear) and each.out_features == width
    ]
    return (names[0], others) if len(names) == 1 else ("", [])


def _without(block: Writers, shared: set[str]) -> Writers:
    """Take the writers away that several blocks share: an edit for one of them would change the others."""
    changed = [
        Contribution(each.part, each.module, each.scale, obstacle=f"{each.writer} is shared by several blocks")
        if each.writer in shared
        else each
        for each in block.contributions
    ]
    return Writers(block.block, tuple(changed))


def _with_proven_norms(model: PreTrainedModel, block: Writers) -> Writers:
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


def _prove_experts(model: PreTrainedModel, writers: Sequence[Writers]) -> None:
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
        model(**_tokens(model))
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


def _run(model: PreTrainedModel, reading: _Reading) -> None:
    """Run a few tokens; where the model has no weights, one token in whatever way gets through."""
    attempts = list(_inputs(model))
    for number, inputs in enumerate(attempts, 1):
        try:
            with reading:
                model(**inputs)
            return
        except Exception as error:  # foreign code raises whatever it likes
            reading.restart()
            if number == len(attempts) and isinstance(error, ArchitectureError):
                raise
            if number == len(attempts):
                raise ArchitectureError(
                    f"{type(model).__name__}: a forward pass of {inputs['input_ids'].shape[1]} tokens failed: {error}"
                ) from error


def _inputs(model: PreTrainedModel) -> Iterator[Keywords]:
    parameter = next(model.parameters())
    if not blocks_are_empty([model]):
        yield _tokens(model)
        return
    token = torch.zeros((1, 1), dtype=torch.long, device=parameter.device)
    plain = {"input_ids": token, "use_cache": False}
    # A ready mask: making one needs values, which a model without weights does not have.
    yield {**plain, "attention_mask": torch.zeros((1, 1, 1, 1), dtype=parameter.dtype, device=parameter.device)}
    yield plain


def _tokens(model: PreTrainedModel) -> Keywords:
    # Neither the first ids, which pad and begin, nor the last, which are often markers of images.
    ids = torch.arange(3, 3 + TOKENS) % model.get_input_embeddings().get_parameter("weight").shape[0]
    return {"input_ids": ids[None].to(next(model.parameters()).device), "use_cache": False}


def _prove(model: PreTrainedModel, blocks: list[nn.Module], writers: Sequence[Writers]) -> None:
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
        logits = model(**_tokens(model)).logits
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
        again = model(**_tokens(model)).logits
    error = ((again - logits).double().norm() / logits.double().norm()).item()
    if not error <= max(TOLERANCE, 4 * torch.finfo(logits.dtype).eps):
        raise ArchitectureError(
            f"{type(model).__name__}: a pass that begins at {writers[-1].block} ends with other logits "
            f"(relative error {error:.2g}), so blocks depend on more than their input"
        )
