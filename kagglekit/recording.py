"""A function of tensors, recorded as a plain list of operations.

What is recorded lies below modules, vmap and autograd, whose cost is what small networks spend
their time on. torch's `make_fx` finds the same list, but imports torch's whole compiler for that:
some 900 modules, in each process.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

_aten = torch.ops.aten
# Another name for a tensor, of which nothing is differentiated when it is run again.
_RENAMES = (_aten.detach.default, _aten.alias.default)
# What is written into generated code and read again as it was.
_PLAIN = (bool, int, float, complex, str, type(None), slice,
          torch.dtype, torch.device, torch.layout, torch.memory_format)  # fmt: skip


class Unrecordable(Exception):
    """Why a function cannot be run again as a list of operations."""


def recorded(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """What `function` does with tensors of the shapes of `inputs`, to be run without gradients.

    `function` is run once on `inputs`, and what it changes is changed. Tensors that come from
    elsewhere are those of the recording in every run. Raises Unrecordable for a function that
    reads numbers out of tensors, on which what it does next may depend, that changes tensors from
    elsewhere, or the shape of one in place.
    """
    tape = _Tape(inputs)
    with tape:
        answer = function(*inputs)
    return tape.played(answer)


class _Tape(TorchDispatchMode):
    """Notes every operation that is done while it is entered."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph, self.constants = Graph(), dict[str, Tensor]()
        self.versions: list[int] = []  # of the constants, as they came
        self.graph.set_codegen(CodeGen())  # inputs one by one: unpacking them takes longer
        self.nodes: Any = WeakTensorKeyDictionary()  # what is let go takes no memory here either
        for place, tensor in enumerate(inputs):
            self.nodes[tensor] = self.graph.placeholder(f"input_{place}")

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do an operation, and note it."""
        named = dict(kwargs or {})
        if torch.Tag.data_dependent_output in func.tags:
            raise Unrecordable(f"{func} reads numbers out of a tensor")
        if torch.Tag.inplace_view in func.tags:
            raise Unrecordable(f"{func} changes the shape of a tensor in place")
        if func is _aten.lift_fresh.default:  # of `torch.tensor(...)`: new in every run
            func = _aten.lift_fresh_copy.default
        given = map_aggregate((tuple(args), named), self._node)
        found = func(*args, **named)
        if func in _RENAMES:
            self.nodes[found] = given[0][0]
        else:
            self._note(found, self.graph.call_function(func, *given))
        return found

    def played(self, answer: Any) -> Callable[..., Any]:
        """The function that gives `answer` from other inputs."""
        now = [constant._version for constant in self.constants.values()]
        if now != self.versions:
            raise Unrecordable("it changes a tensor that is none of its inputs")
        self.graph.output(map_aggregate(answer, self._node))
        self.graph.eliminate_dead_code(_lasts)
        forward: Callable[..., Any] = GraphModule(self.constants, self.graph).forward
        return forward

    def _note(self, found: Any, node: Node) -> None:
        if isinstance(found, Tensor):
            self.nodes[found] = node
        elif isinstance(found, list | tuple):
            for place, part in enumerate(found):
                self._note(part, self.graph.call_function(operator.getitem, (node, place)))

    def _node(self, value: Any) -> Any:
        """What stands for a value that an operation is given: tensors are told by their nodes."""
        if not isinstance(value, Tensor):
            if not isinstance(value, _PLAIN):
                raise Unrecordable(f"an operation is given a {type(value).__name__}")
            return value
        if value not in self.nodes:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = value
            self.versions.append(value._version)
            self.nodes[value] = self.graph.get_attr(name)
        return self.nodes[value]


# torch wraps it to keep its compiler out, and imports that for it
_Tape.__torch_dispatch__ = inspect.unwrap(_Tape.__torch_dispatch__)  # type: ignore[method-assign]


def _lasts(node: Node) -> bool:
    """Whether an operation counts though nobody takes what it gives."""
    if node.op in ("placeholder", "output"):
        return True
    schema, tags = getattr(node.target, "_schema", None), getattr(node.target, "tags", ())
    changes = schema is not None and schema.is_mutable
    # those of batch norm that do not say so change its statistics
    changes = changes or "batch_norm" in str(node.target)
    return changes or torch.Tag.nondeterministic_seeded in tags
