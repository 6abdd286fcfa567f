"""Rewrite a standard ONNX decoder into the fused operators of the domain `edgekit`, one rewrite a file.

The lowered graph, which `plan` reads: nodes in order of execution, each one barrier. Absent inputs are None;
absent ones at the end are left out.

    Embed           (input_ids, weight)                                -> x        [1, s, hidden]
    NormLinear      (x, norm, weight0, bias0, [weight1, bias1, [weight2, bias2]])
                                                                       -> y        [1, s, sum of n]
    Attention       (qkv, position, past_key, past_value, inv_freq, q_norm, k_norm)
                                                                       -> y, present_key, present_value
    LinearAdd       (x, weight, bias, residual)                        -> y = residual + linear(x)
    NormGatedLinear (x, norm, weight, bias)                            -> h = silu(gate) * up
    Head            (x, norm, weight, bias)                            -> logits   [1, s, vocab]

Attributes: `eps` (float) of NormLinear, NormGatedLinear and Head; Attention has `layer`, `heads`, `kv_heads`,
`head_dim`, `window` (0: sees all), `scale` (of q . k), `rope_scale` (on cos and sin), `eps` (of q_norm and k_norm).

Initializers are the tensors the engine stores, in order of first use, each once (a tied head and the embedding are one
value). They carry no data but for `inv_freq`; `packed(value)` (weights.py) says how to make them: the scheme, the
checkpoint tensors they come from, and how those are joined. Matrices are (n, k), vectors (n,) and f32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import onnx_ir as ir
import onnx_ir.passes.common

from edgekit.errors import Unsupported
from edgekit.graph import Graph
from edgekit.passes import attention, embed, gated, head, linear_add, norm_linear
from edgekit.passes.match import NoMatchError
from edgekit.passes.weights import DOMAIN, VERSION, Packed, Weights, packed
from edgekit.scheme import Scheme

__all__ = ["DOMAIN", "Packed", "Skipped", "gated_pairs", "lower", "packed", "run_passes"]

# In order: attention leaves a Concat of q, k and v that norm_linear takes. Each has ANCHOR, the operator it looks for,
# and rewrite(), which raises NoMatchError with the reason where its pattern does not fit.
PASSES: tuple[ModuleType, ...] = (attention, norm_linear, gated, linear_add, head, embed)

gated_pairs = gated.gated_pairs


class Quantized(Protocol):
    """A graph whose matrices have schemes: what is read of a QuantGraph."""

    @property
    def graph(self) -> Graph: ...
    @property
    def schemes(self) -> Mapping[str, Scheme]: ...


@dataclass(frozen=True, slots=True)
class Skipped:
    """A node that a pass looked at and left as it was."""

    rewrite: str
    node: str
    reason: str

    def __str__(self) -> str:
        return f"{self.rewrite} left {self.node}: {self.reason}"


def lower(quant: Quantized) -> ir.Model:
    """The graph in operators of the domain `edgekit` only. Reads no weights; `quant` stays as it was.

    Raises:
        Unsupported: nodes that no pass could take; the hint gives the reasons.
    """
    model = quant.graph.model.clone()
    weights = Weights(quant.graph.decoder, quant.schemes)
    skipped = run_passes(model, weights)
    left = [node for node in model.graph if node.domain != DOMAIN]
    if left:
        names = ", ".join(f"{node.op_type} '{node.name}'" for node in left[:4])
        more = f" and {len(left) - 4} more" if len(left) > 4 else ""
        raise Unsupported(
            f"no operator of edgekit does what these nodes do: {names}{more}",
            hint="; ".join(str(skip) for skip in skipped[:4]),
        )
    for node in model.graph:
        for value in node.inputs:
            if value is not None and weights.made(value):
                model.graph.register_initializer(value)
    return model


def run_passes(model: ir.Model, weights: Weights) -> list[Skipped]:
    """Rewrites `model` as far as the passes fit, and says where and why they did not. Registers no initializers."""
    skipped = []
    for rewrite in PASSES:
        name = rewrite.__name__.rpartition(".")[2]
        for node in [node for node in model.graph if node.op_type == rewrite.ANCHOR and node.domain == ""]:
            try:
                rewrite.rewrite(node, weights)
            except NoMatchError as reason:
                skipped.append(Skipped(name, node.name or node.op_type, str(reason)))
        onnx_ir.passes.common.RemoveUnusedNodesPass()(model)
    model.graph.opset_imports[DOMAIN] = VERSION
    return skipped
