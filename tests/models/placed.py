"""Several GPUs on a machine without any: tensors that say where they are, and refuse to meet those of another GPU.

All values are computed on the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from accelerate.hooks import attach_align_device_hook_on_blocks
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ATEN = torch.ops.aten
CPU = torch.device("cpu")
# Their indices may lie on the CPU, as on real devices.
INDEXED = (ATEN.index, ATEN.index_put, ATEN.index_put_)


class Placed(torch.Tensor):
    """A tensor that is on a GPU of the test."""

    value: torch.Tensor

    @staticmethod
    def __new__(cls, value: torch.Tensor, device: torch.device | None = None, requires_grad: bool = False) -> Placed:
        if isinstance(value, Placed):  # how accelerate makes a parameter of its own type
            value, device = value.value, device or value.device
        made: Placed = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, value.shape, strides=value.stride(), dtype=value.dtype, device=device, requires_grad=requires_grad
        )
        made.value = value
        return made

    def __repr__(self, **_: Any) -> str:
        return f"{self.value} on {self.device}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return run(func, args, dict(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return run(func, args, dict(kwargs or {}))


def _as(dtype: torch.dtype) -> Callable[[Placed], torch.Tensor]:
    return lambda tensor: ATEN._to_copy(tensor, dtype=dtype)


# Methods that would ask for a driver, as operations.
_PLAIN: dict[Any, Callable[[Placed], Any]] = {
    torch.Tensor.contiguous: lambda tensor: ATEN.clone(tensor, memory_format=torch.contiguous_format),
    torch.Tensor.cpu: lambda tensor: ATEN._to_copy(tensor, device=CPU),
    torch.Tensor.item: ATEN._local_scalar_dense,
    torch.Tensor.tolist: lambda tensor: tensor.value.tolist(),
    torch.Tensor.float: _as(torch.float32),
    torch.Tensor.double: _as(torch.float64),
    torch.Tensor.long: _as(torch.int64),
    torch.Tensor.int: _as(torch.int32),
    torch.Tensor.bool: _as(torch.bool),
    torch.Tensor.__bool__: lambda tensor: bool(tensor.value),
    torch.Tensor.__float__: lambda tensor: float(tensor.value),
    torch.Tensor.__int__: lambda tensor: int(tensor.value),
    torch.Tensor.__index__: lambda tensor: int(tensor.value),
    torch.Tensor.__invert__: ATEN.bitwise_not,
}


class _Calls(TorchFunctionMode):
    """Makes, moves and indexes tensors, as PyTorch would first look for a driver."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.__getitem__ and isinstance(args[0], Placed):
            viewed, indices = _viewed(*args)
            return ATEN.index(viewed, indices) if indices else viewed
        if func is torch.Tensor.__setitem__ and isinstance(args[0], Placed):
            viewed, indices = _viewed(*args[:2])
            value = args[2] if isinstance(args[2], torch.Tensor) else torch.tensor(args[2], dtype=args[0].dtype)
            ATEN.index_put_(viewed, indices, value) if indices else viewed.copy_(value)
            return None
        if func in _PLAIN and isinstance(args[0], Placed):
            return _PLAIN[func](args[0])
        moved = func is torch.Tensor.to
        asked = [kwargs.get("device"), *(args[1:2] if moved else [])]
        wanted = next((place for place in asked if isinstance(place, str | int | torch.device)), None)
        place = None if wanted is None else torch.device(wanted)
        if place is None or place.type != "cuda":
            try:
                return func(*args, **kwargs)
            except RuntimeError as error:
                raise NotImplementedError(f"{func} cannot be pretended: {error}") from error
        if moved:
            dtype = next((each for each in (*args, *kwargs.values()) if isinstance(each, torch.dtype)), args[0].dtype)
            there = args[0].device == place and args[0].dtype == dtype
            return args[0] if there else ATEN._to_copy(args[0], device=place, dtype=dtype)
        return Placed(func(*args, **{**kwargs, "device": CPU}), place)


def _viewed(tensor: torch.Tensor, index: Any) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Apply the numbers, slices and new axes of an index; return the view, and the tensors that are left to apply."""
    parts = list(index) if isinstance(index, tuple) else [index]
    axes = sum(each.ndim if _is_mask(each) else each is not None and each is not ... for each in parts)
    spare = [slice(None)] * (tensor.ndim - axes)
    place = next((number for number, each in enumerate(parts) if each is ...), len(parts))
    indices: list[torch.Tensor | None] = []
    for each in [*parts[:place], *spare, *parts[place + 1 :]]:
        axis = len(indices)
        if isinstance(each, torch.Tensor | list):
            each = torch.tensor(each) if isinstance(each, list) else each
            indices += [each] + [None] * (each.ndim - 1 if _is_mask(each) else 0)
        elif isinstance(each, int):
            tensor = ATEN.select(tensor, axis, each)
        else:
            tensor = (
                tensor.unsqueeze(axis)
                if each is None
                else ATEN.slice(tensor, axis, each.start, each.stop, each.step or 1)
            )
            indices.append(None)
    return tensor, indices if any(each is not None for each in indices) else []


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool


@contextlib.contextmanager
def devices() -> Iterator[None]:
    """Let tensors be made on GPUs of the test while the context is open."""
    with _Calls(), _Operations():
        yield


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute an operation on the CPU, and put its result where it would be.

    Raises:
        AssertionError: its tensors are on several devices.
    """
    packet = func.overloadpacket
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    # A number may come from the CPU.
    places = {each.device for each in tensors if each.ndim or each.device != CPU}
    if packet is ATEN.copy_:
        places = {args[0].device}
    elif packet in INDEXED and args[0].device != CPU:
        places.discard(CPU)
    assert len(places) < 2, f"{func} meets tensors on {' and '.join(sorted(map(str, places)))}"
    place = torch.device(kwargs["device"]) if kwargs.get("device") is not None else next(iter(places), CPU)
    if "device" in kwargs:
        kwargs["device"] = CPU
    output = func(*tree_map(_value, args), **tree_map(_value, kwargs))
    if func._schema.is_mutable and args and isinstance(args[0], Placed):
        return args[0]
    if place == CPU:
        return output
    return tree_map(lambda each: Placed(each, place) if isinstance(each, torch.Tensor) else each, output)


def _value(each: Any) -> Any:
    return each.value if isinstance(each, Placed) else each


def dispatch(model: Any, places: Mapping[str, int]) -> Any:
    """Put a model's parts on GPUs of the test, with the hooks by which accelerate moves what goes in and out."""
    gpus = {name: torch.device("cuda", index) for name, index in places.items()}
    with devices():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            (place,) = {gpu for part, gpu in gpus.items() if name == part or name.startswith(f"{part}.")}
            owner, _, local = name.rpartition(".")
            module: nn.Module = model.get_submodule(owner)
            if local in module._parameters:
                module._parameters[local] = nn.Parameter(Placed(tensor.detach(), place), requires_grad=False)
            else:
                module._buffers[local] = Placed(tensor, place)
        model.tie_weights()
        main = next(iter(gpus.values()))
        attach_align_device_hook_on_blocks(
            model,
            execution_device={**gpus, "": main},
            offload=dict.fromkeys(gpus, False),
            skip_keys=model._skip_keys_device_placement,
        )
    return model


def homes(model: Any) -> set[str]:
    """Return the devices of a model's parameters."""
    return {str(parameter.device) for parameter in model.parameters()}
