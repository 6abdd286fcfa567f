"""A quantized graph's decoder as a torch module, so that exporters from torch have the model that ONNX Runtime runs.

The module interprets the ONNX graph node by node. A MatMul with a matrix of the checkpoint is a torch.nn.Linear and the
look-up of token vectors a torch.nn.Embedding, in which exporters and quantizers know what they see; a tied head shares
the embedding's parameter. Weights are the values of the codes, as in every engine.

Only the number of new tokens is a Python number while the graph is traced; the position is a tensor. ONNX writes both
as tensors, so a sum of the two is kept apart as `_Length`: an exporter need not guess how long a range is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import torch

from edgekit.errors import Unsupported
from edgekit.quantize import QuantGraph

Tensor = torch.Tensor
Write = Callable[[Tensor, Tensor, Tensor], Tensor]  # cache [1, heads, context, size], new ones, the first's position

_HIDDEN: Final = -1e9  # added to a score, it leaves no weight, and no kernel meets an infinity


def write_copy(cache: Tensor, new: Tensor, position: Tensor) -> Tensor:
    """A copy of the cache with the new keys or values at their positions."""
    return cache.index_copy(2, _following(position, new.shape[2]), new)


def write_in_place(cache: Tensor, new: Tensor, position: Tensor) -> Tensor:
    """The cache itself, with the new keys or values at their positions."""
    return cache.index_copy_(2, _following(position, new.shape[2]), new)


class TorchDecoder(torch.nn.Module):
    """forward(input_ids [1, s] int64, position [1] int64, past) -> logits [1, s, vocab], present; see graph.py.

    `write` puts new keys and values into a cache.
    """

    def __init__(self, quant: QuantGraph, *, write: Write = write_copy) -> None:
        """
        Raises:
            Unsupported: an operator that is not interpreted.
        """
        super().__init__()
        self.write = write
        self.decoder = quant.graph.decoder
        self.context = quant.graph.context
        graph = quant.graph.model.graph
        unknown = sorted({node.op_type for node in graph} - _OPERATORS.keys())
        if unknown:
            raise Unsupported(f"the operator {unknown[0]} has no counterpart in torch", hint="compile for onnxruntime")
        self.linears = torch.nn.ModuleDict()
        self.embeddings = torch.nn.ModuleDict()
        self.vectors = torch.nn.ParameterDict()
        self._inputs = [str(value.name) for value in graph.inputs]
        self._outputs = [str(value.name) for value in graph.outputs]
        self._steps = [_step(node) for node in graph]
        self._constants: dict[str, Any] = {}
        self._matrices: dict[str, _Matrix] = {}
        for name, value in graph.initializers.items():
            if name in quant.tensors:
                self._add_matrix(value, torch.from_numpy(quant.tensors[name].values()))
            elif name in quant.vectors:
                self.vectors[module_key(name)] = _frozen(torch.from_numpy(quant.vectors[name]))
            else:
                self._add_constant(value)

    @property
    def cache_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every cache by the name of its input: past_key_<layer>, past_value_<layer>."""
        shape = (1, self.decoder.kv_heads, self.context, self.decoder.head_dim)
        return dict.fromkeys(self._inputs[2:], shape)

    def forward(self, input_ids: Tensor, position: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        values: dict[str, Any] = dict(zip(self._inputs, (input_ids, position, *past), strict=True))
        for step in self._steps:
            inputs = [None if name is None else self._value(name, values) for name in step.inputs]
            values[step.output] = _OPERATORS[step.operator](self, inputs, step.attributes)
        logits, *present = (values[name] for name in self._outputs)
        return logits, present

    def _value(self, name: str, values: Mapping[str, Any]) -> Any:
        if name in self._matrices:
            return self._matrices[name]
        if name in self._constants:
            return self._constants[name]
        if f"constant_{module_key(name)}" in self._buffers:
            return self._buffers[f"constant_{module_key(name)}"]
        return self.vectors[module_key(name)] if module_key(name) in self.vectors else values[name]

    def _add_matrix(self, value: ir.Value, values: Tensor) -> None:
        name = str(value.name)
        n, k = values.shape
        weight = _frozen(values)
        self._matrices[name] = _Matrix(module_key(name))
        uses = [node.op_type for node, _ in value.uses()]
        if "Gather" in uses:
            embedding = torch.nn.Embedding(n, k, device="meta")
            embedding.weight = weight
            self.embeddings[module_key(name)] = embedding
        if set(uses) - {"Gather"}:
            linear = torch.nn.Linear(k, n, bias=False, device="meta")
            linear.weight = weight
            self.linears[module_key(name)] = linear

    def _add_constant(self, value: ir.Value) -> None:
        assert value.const_value is not None
        array = value.const_value.numpy()
        if str(value.name).startswith("constant."):
            self._constants[str(value.name)] = array.tolist()
        else:
            self.register_buffer(
                f"constant_{module_key(str(value.name))}", torch.from_numpy(np.array(array)), persistent=False
            )


class StatefulDecoder(torch.nn.Module):
    """forward(tokens [1, s] int64, input_pos [1] or [s] int64) -> logits [1, s, vocab]; it keeps its cache itself.

    Of `input_pos` only the first counts: tokens follow one another.
    """

    def __init__(self, quant: QuantGraph) -> None:
        super().__init__()
        self.decoder = TorchDecoder(quant, write=write_in_place)
        for name, shape in self.decoder.cache_shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        past = [self.get_buffer(name) for name in self.decoder.cache_shapes]
        logits: Tensor = self.decoder(tokens, input_pos[:1], past)[0]
        return logits


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A matrix of the checkpoint by its module's key."""

    key: str


@dataclass(frozen=True, slots=True)
class _Step:
    """A node by the names of its values. torch.export follows a list of them, where onnx_ir's chain is too deep."""

    operator: str
    inputs: tuple[str | None, ...]
    output: str
    attributes: Mapping[str, Any]


def _step(node: ir.Node) -> _Step:
    inputs = tuple(None if value is None else str(value.name) for value in node.inputs)
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    return _Step(node.op_type, inputs, str(node.outputs[0].name), attributes)


@dataclass(eq=False)
class _Length:
    """Positions filled once `count` tokens from `start` on are in the cache."""

    start: Tensor
    count: int
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def mask(self, context: int, repeats: int, window: Tensor | None) -> Tensor:
        """What is added to the scores [repeats * count, context], so that no token sees a later one."""
        made = self.masks.get((context, repeats))
        if made is None:
            seen = torch.arange(context)[None, :] <= _following(self.start, self.count)[:, None]
            if window is not None:
                seen = torch.logical_and(seen, window)
            made = torch.where(seen, 0.0, _HIDDEN).repeat(repeats, 1)
            self.masks[context, repeats] = made
        return made


def _following(position: Tensor, count: int) -> Tensor:
    """Positions [count] from `position` [1] on."""
    return position + torch.arange(count)


def module_key(name: str) -> str:
    """What a tensor of the checkpoint is called in a module's dictionaries, whose keys have no dots."""
    return name.replace(".", "_")


def _frozen(values: Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(values, requires_grad=False)


def _add(module: TorchDecoder, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    left, right = inputs
    return _Length(left, right[0]) if isinstance(right, list) else left + right


def _attention(module: TorchDecoder, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Tensor:
    """Grouped-query: the heads that share keys are rows of one product."""
    q, k, v, window, _, _, length = inputs
    heads, count, size = q.shape[1:]
    kv_heads, context = k.shape[1:3]
    rows = (q * attributes["scale"]).reshape(1, kv_heads, heads // kv_heads * count, size)
    scores = rows @ k.transpose(2, 3) + length.mask(context, heads // kv_heads, window)
    attended: Tensor = torch.softmax(scores, -1) @ v
    return attended.reshape(1, heads, count, size)


def _gather(module: TorchDecoder, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    table, ids = inputs
    return module.embeddings[table.key](ids)


def _greater(module: TorchDecoder, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    return inputs[0] > inputs[1]


def _matmul(module: TorchDecoder, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    x, matrix = inputs
    return module.linears[matrix.key](x)


def _mul(module: TorchDecoder, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    return inputs[0] * inputs[1]


def _range(module: TorchDecoder, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Tensor:
    start, stop, _ = inputs
    return _following(start, stop.count)


def _reshape(module: TorchDecoder, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    return inputs[0].reshape(inputs[1])


def _rms_norm(module: TorchDecoder, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    x, weight = inputs
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + attributes["epsilon"]) * weight


def _rotate(module: TorchDecoder, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Tensor:
    x, cos, sin, positions = inputs
    cos, sin = cos[positions], sin[positions]
    left, right = x.chunk(2, -1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)


def _scatter(module: TorchDecoder, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Tensor:
    cache, new, position = inputs
    return module.write(cache, new, position)


def _shape(module: TorchDecoder, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> list[int]:
    return list(inputs[0].shape[attributes["start"] : attributes["end"]])


def _squeeze(module: TorchDecoder, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    """A position stays [1]: what is added to it or ranges from it may as well."""
    return inputs[0]


def _sub(module: TorchDecoder, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    return inputs[0] - inputs[1]


def _swish(module: TorchDecoder, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    return inputs[0] * torch.sigmoid(inputs[0])


def _transpose(module: TorchDecoder, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    """A matrix of the checkpoint is a module, which transposes by itself."""
    return inputs[0] if isinstance(inputs[0], _Matrix) else inputs[0].permute(attributes["perm"])


def _unsqueeze(module: TorchDecoder, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    return inputs[0].unsqueeze(inputs[1][0])


_OPERATORS: Final[Mapping[str, Callable[[TorchDecoder, Sequence[Any], Mapping[str, Any]], Any]]] = {
    "Add": _add,
    "Attention": _attention,
    "Gather": _gather,
    "Greater": _greater,
    "MatMul": _matmul,
    "Mul": _mul,
    "RMSNormalization": _rms_norm,
    "Range": _range,
    "Reshape": _reshape,
    "RotaryEmbedding": _rotate,
    "Shape": _shape,
    "Squeeze": _squeeze,
    "Sub": _sub,
    "Swish": _swish,
    "TensorScatter": _scatter,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
