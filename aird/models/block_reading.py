"""Read what each decoder block adds to its input from the operations of one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from aird.inference.hooks import Arguments, Keywords, hooks
from aird.inference.resuming import TUPLE_BLOCKS
from aird.models.blocks import (
    ArchitectureError,
    Contribution,
    Writers,
    blocks_are_empty,
    some_tokens,
    takes_adapter,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WRAPPED = "base_layer"  # PEFT's name for a module that an adapter is on; it computes with weights of its own


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


class Reading(TorchDispatchMode):
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
        """Return what each block writes.

        Raises:
            ArchitectureError: a block's output is not its input plus outputs of modules.
        """
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


def _linear(value: _Value) -> nn.Linear | None:
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


def _run(model: PreTrainedModel, reading: Reading) -> None:
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
        yield some_tokens(model)
        return
    token = torch.zeros((1, 1), dtype=torch.long, device=parameter.device)
    plain = {"input_ids": token, "use_cache": False}
    # A ready mask: making one needs values, which a model without weights does not have.
    yield {**plain, "attention_mask": torch.zeros((1, 1, 1, 1), dtype=parameter.dtype, device=parameter.device)}
    yield plain
