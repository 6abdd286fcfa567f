"""Plan how a target runs a lowered graph: kernels, layout of the weights, buffers, predicted bytes and seconds.

A plan is pure: it reads no weights and asks nothing of the machine that makes it, so the same graph and target give the
same plan anywhere. Every prediction is a prediction (cost.py) and is labelled so wherever it is shown.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import or_

import onnx_ir as ir

from edgekit.archs import Decoder
from edgekit.buffers import Buffer, Life, place
from edgekit.choose import Choice, choose
from edgekit.cost import Cost, GemmShape, Machine, attention_cost, cached_bytes, step_seconds, tokens_per_second
from edgekit.errors import DoesNotFit
from edgekit.kernels import TILE, Kernel, catalogue
from edgekit.layout import PlannedTensor, end_of, lay_out
from edgekit.target import Target
from edgekit.units import Bytes, Seconds

DEFAULT_CONTEXT = 2048
# Tokens of prefill at once: enough that unpacking weights costs little beside the products, few enough that a row of
# int8 activations for each of them (0.7 MB at k = 5632) stays in a level 2 cache.
DEFAULT_ROWS = 128
DEFAULT_KV = "f16"
# Positions in the cache for which decoding is predicted: a short text, as in `bench -n 128`.
PREDICTED_POSITIONS = 128
# The runner's own memory: code, stacks, tokenizer tables, quantized activations.
RUNNER_BYTES = Bytes(8 << 20)
_MOST_ARENA = 0xFFFFFFFF  # Config.arena_bytes is 32 bits


@dataclass(frozen=True, slots=True)
class Product:
    """One weight of an operator, the kernels that multiply it, and those that lost."""

    weight: int
    bias: int | None
    decode: Choice
    prefill: Choice


@dataclass(frozen=True, slots=True)
class PlannedOperator:
    """One step of the program. Tensors and buffers are indices into the plan's; None where absent."""

    kind: str
    input: int | None = None
    output: int | None = None
    norm: int | None = None
    table: int | None = None  # Embed: the tensor whose rows are looked up
    products: tuple[Product, ...] = ()
    q_norm: int | None = None
    k_norm: int | None = None
    rope: int | None = None
    layer: int = 0
    window: int = 0
    eps: float = 0.0
    scale: float = 0.0
    rope_scale: float = 1.0
    decode: Cost | None = None  # attention: over PREDICTED_POSITIONS; a product's costs are in its choice
    deep: Cost | None = None  # attention: of one token over the whole context
    prefill: Cost | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A program for a target, without its weights. Rates are predicted; None where the target gives no DRAM rate."""

    target: str
    isa: str
    context: int
    kv: str
    max_rows: int
    decode_threads: int
    prefill_threads: int
    operators: tuple[PlannedOperator, ...]
    tensors: tuple[PlannedTensor, ...]
    buffers: tuple[Buffer, ...]
    kernels: tuple[str, ...]
    required_features: int
    arena_bytes: Bytes
    kv_bytes: Bytes
    weights_bytes: Bytes
    overhead_bytes: Bytes
    bytes_per_token: Bytes
    decode_seconds: Seconds | None
    deep_decode_seconds: Seconds | None
    prefill_seconds: Seconds | None
    notes: tuple[str, ...]

    @property
    def device_bytes(self) -> Bytes:
        """Memory that the program takes on the target with a full KV cache, its runner included."""
        return Bytes(self.weights_bytes + self.kv_bytes + self.arena_bytes + self.overhead_bytes)

    @property
    def decode_tokens_per_second(self) -> float | None:
        return tokens_per_second(1, self.decode_seconds)

    @property
    def deep_decode_tokens_per_second(self) -> float | None:
        """Where the whole context is attended to."""
        return tokens_per_second(1, self.deep_decode_seconds)

    @property
    def prefill_tokens_per_second(self) -> float | None:
        return tokens_per_second(self.max_rows, self.prefill_seconds)


def default_context(decoder: Decoder) -> int:
    """Positions of KV cache where none are asked for."""
    return min(decoder.context, DEFAULT_CONTEXT)


def kv_bytes(decoder: Decoder, context: int, kv: str) -> Bytes:
    """Bytes of keys and values of `context` positions, which come in strips of 16."""
    positions = -(-context // TILE) * TILE
    return Bytes(decoder.layers * positions * cached_bytes(kv, decoder.kv_heads, decoder.head_dim))


def make_plan(
    lowered: ir.Model,
    decoder: Decoder,
    target: Target,
    *,
    context: int,
    kv: str = DEFAULT_KV,
    max_rows: int = DEFAULT_ROWS,
    kernels: Sequence[Kernel] | None = None,
) -> Plan:
    """The plan for `target`, with kernels from the catalogue if none are given.

    Prefill takes `max_rows` tokens at once, or the whole context if that is shorter.

    Raises:
        Unsupported: a scheme that no kernel multiplies on the target.
        DoesNotFit: activations of more than 4 GiB.
    """
    max_rows = min(max_rows, context)
    nodes = list(lowered.graph)
    tensors, index = lay_out(list(lowered.graph.initializers.values()))
    weights_bytes, cache = Bytes(end_of(tensors[-1])), kv_bytes(decoder, context, kv)
    resident = weights_bytes + cache <= target.shared_cache_bytes
    planner = _Planner(tensors, index, catalogue() if kernels is None else kernels, max_rows, context, kv)
    prefilling = Machine(target, target.worker_count, resident)
    candidates = {
        decoding: planner.operators(nodes, decoding, prefilling)
        for decoding in (Machine(target, threads, resident) for threads in _decode_threads(target))
    }
    decoding = min(candidates, key=lambda machine: _total(candidates[machine], "decode", machine) or 0.0)
    operators = candidates[decoding]
    lives, places = _lives(nodes)
    placed, arena = place(lives, max_rows)
    buffers = tuple(dict.fromkeys(placed))
    if arena > _MOST_ARENA:
        raise DoesNotFit(f"activations of {max_rows} tokens at once take {arena}", hint="compute fewer rows at once")
    chosen = {
        choice.kernel.name: choice.kernel
        for operator in operators
        for product in operator.products
        for choice in (product.decode, product.prefill)
    }
    return Plan(
        target=target.name,
        isa=target.best_isa,
        context=context,
        kv=kv,
        max_rows=max_rows,
        decode_threads=decoding.threads,
        prefill_threads=prefilling.threads,
        operators=tuple(
            replace(operator, input=_buffer(read, placed, buffers), output=_buffer(written, placed, buffers))
            for operator, (read, written) in zip(operators, places, strict=True)
        ),
        tensors=tensors,
        buffers=buffers,
        kernels=tuple(chosen),
        required_features=functools.reduce(or_, (kernel.features for kernel in chosen.values()), 0),
        arena_bytes=arena,
        kv_bytes=cache,
        weights_bytes=weights_bytes,
        # Logits of one token, in float, and their sorted indices while sampling.
        overhead_bytes=Bytes(RUNNER_BYTES + 8 * decoder.vocab),
        bytes_per_token=_bytes_per_token(operators, tensors),
        decode_seconds=_total(operators, "decode", decoding),
        deep_decode_seconds=_total(operators, "deep", decoding),
        prefill_seconds=_total(operators, "prefill", prefilling),
        notes=_notes(target, decoding.threads, resident=resident),
    )


class _Planner:
    """Turns nodes into operators. Equal products of different layers are chosen once."""

    def __init__(
        self,
        tensors: tuple[PlannedTensor, ...],
        index: Mapping[ir.Value, int],
        kernels: Sequence[Kernel],
        max_rows: int,
        context: int,
        kv: str,
    ) -> None:
        self.tensors = tensors
        self.index = index
        self.kernels = kernels
        self.max_rows = max_rows
        self.context = context
        self.kv = kv
        self.choose = functools.cache(functools.partial(choose, tuple(kernels)))

    def operators(
        self, nodes: Sequence[ir.Node], decoding: Machine, prefilling: Machine
    ) -> tuple[PlannedOperator, ...]:
        return tuple(self.operator(node, decoding, prefilling) for node in nodes)

    def operator(self, node: ir.Node, decoding: Machine, prefilling: Machine) -> PlannedOperator:
        inputs = [*node.inputs, *[None] * 8]
        make = functools.partial(PlannedOperator, node.op_type, eps=_float(node, "eps"))
        match node.op_type:
            case "Embed":
                return make(table=self.tensor(inputs[1]))
            case "NormLinear":
                pairs = [(inputs[at], inputs[at + 1]) for at in (2, 4, 6)]
                return make(norm=self.tensor(inputs[1]), products=self.products(pairs, decoding, prefilling))
            case "NormGatedLinear" | "Head":
                pairs = [(inputs[2], inputs[3])]
                return make(norm=self.tensor(inputs[1]), products=self.products(pairs, decoding, prefilling))
            case "LinearAdd":
                return make(products=self.products([(inputs[1], inputs[2])], decoding, prefilling))
            case "Attention":
                rope, q_norm, k_norm = map(self.tensor, inputs[4:7])
                return make(
                    rope=rope,
                    q_norm=q_norm,
                    k_norm=k_norm,
                    layer=_int(node, "layer"),
                    window=_int(node, "window"),
                    scale=_float(node, "scale"),
                    rope_scale=_float(node, "rope_scale"),
                    decode=_attention(node, 1, PREDICTED_POSITIONS, self.kv, decoding),
                    deep=_attention(node, 1, self.context, self.kv, decoding),
                    # The token in the middle of the rows sees half of them.
                    prefill=_attention(node, self.max_rows, -(-self.max_rows // 2), self.kv, prefilling),
                )
        raise AssertionError(f"{node.op_type} is not a lowered operator")

    def tensor(self, value: ir.Value | None) -> int | None:
        return None if value is None else self.index[value]

    def products(
        self, pairs: Sequence[tuple[ir.Value | None, ir.Value | None]], decoding: Machine, prefilling: Machine
    ) -> tuple[Product, ...]:
        made = []
        for weight, bias in pairs:
            if weight is not None:
                tensor = self.tensors[self.index[weight]]
                one, many = (GemmShape(m, tensor.n, tensor.k) for m in (1, self.max_rows))
                decode = self.choose(tensor.scheme, one, decoding)
                prefill = self.choose(tensor.scheme, many, prefilling)
                made.append(Product(self.index[weight], self.tensor(bias), decode, prefill))
        return tuple(made)


def _lives(nodes: Sequence[ir.Node]) -> tuple[list[Life], list[tuple[int | None, int | None]]]:
    """The life of every activation, and each node's input and output as indices of lives.

    LinearAdd adds in place: what it writes lives on where the residual was.
    """
    lives: list[Life] = []
    home: dict[ir.Value, int] = {}
    places: list[tuple[int | None, int | None]] = []
    for step, node in enumerate(nodes):
        read = [value for value in node.inputs if value is not None and value in home]
        for value in read:
            lives[home[value]] = replace(lives[home[value]], last=step)
        output: int | None = None
        if node.op_type == "LinearAdd":
            residual = node.inputs[3]
            assert residual is not None and all(user is node or user in nodes[:step] for user, _ in residual.uses())
            output = home[node.outputs[0]] = home[residual]
        elif node.op_type != "Head":
            output = home[node.outputs[0]] = len(lives)
            lives.append(Life(_width(node.outputs[0]), step, step))
        places.append((home[read[0]] if read else None, output))
    return lives, places


def _buffer(life: int | None, placed: Sequence[Buffer], buffers: Sequence[Buffer]) -> int | None:
    return None if life is None else buffers.index(placed[life])


def _width(value: ir.Value) -> int:
    assert value.shape is not None
    width = value.shape[-1]
    assert isinstance(width, int)
    return width


def _attention(node: ir.Node, rows: int, positions: int, kv: str, machine: Machine) -> Cost:
    window = _int(node, "window")
    return attention_cost(
        rows=rows,
        positions=min(positions, window) if window else positions,
        heads=_int(node, "heads"),
        kv_heads=_int(node, "kv_heads"),
        head_dim=_int(node, "head_dim"),
        kv=kv,
        machine=machine,
    )


def _int(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int()


def _float(node: ir.Node, name: str) -> float:
    return node.attributes[name].as_float() if name in node.attributes else 0.0


def _decode_threads(target: Target) -> tuple[int, ...]:
    """Numbers of threads to try for decoding: those whose DRAM rate is published, if that says how it grows.

    A rate measured on the host does not count: the plan must not depend on how busy the machine was.
    """
    listed = sorted(
        rate.threads for rate in target.dram if rate.kind == "measured" and rate.threads <= target.worker_count
    )
    return tuple(listed) if len(listed) > 1 else (target.worker_count,)


def _costs(operator: PlannedOperator, phase: str) -> list[Cost]:
    # Prefill ends in the logits of one token, so the head always decodes.
    prefills = phase == "prefill" and operator.kind != "Head"
    own = [{"decode": operator.decode, "deep": operator.deep, "prefill": operator.prefill}[phase]]
    products = [(product.prefill if prefills else product.decode).cost for product in operator.products]
    return [cost for cost in [*own, *products] if cost is not None]


def _total(operators: Sequence[PlannedOperator], phase: str, machine: Machine) -> Seconds | None:
    """Time of one token, early ("decode") or at the end of the context ("deep"), or of `max_rows` ("prefill").

    None if that of a part is not known.
    """
    parts = [cost.seconds for operator in operators for cost in _costs(operator, phase)]
    known = [part for part in parts if part is not None]
    steps = len(operators) * step_seconds(machine)
    return Seconds(sum(known) + steps) if len(known) == len(parts) else None


def _bytes_per_token(operators: Sequence[PlannedOperator], tensors: Sequence[PlannedTensor]) -> Bytes:
    """Weights read to decode one token: every matrix, and one row of the embedding."""
    total: int = sum(product.decode.cost.moved for operator in operators for product in operator.products)
    for operator in operators:
        if operator.table is not None:
            table = tensors[operator.table]
            total += (table.codes_bytes + table.scales_bytes) // (-(-table.n // TILE) * TILE)
    return Bytes(total)


def _notes(target: Target, threads: int, *, resident: bool) -> tuple[str, ...]:
    rate = target.dram_rate(threads)
    if rate is None:
        return (f"no DRAM rate of {target.name} is known, so no speed is predicted",)
    if resident:
        if target.shared_cache_rate(threads) is not None:
            return ()
        cache = target.shared_cache_bytes
        return (f"weights and KV cache stay in the last cache ({cache}), predicted as if reading that took no time",)
    if rate.kind == "theoretical":
        return (f"the DRAM rate of {target.name} is theoretical, so predicted speeds are upper bounds",)
    if rate.threads < threads:
        counted = f"{rate.threads} thread{'s' if rate.threads > 1 else ''}"
        return (f"the DRAM rate of {target.name} was measured with {counted}; {threads} may read faster",)
    return ()
