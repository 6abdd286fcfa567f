"""Rewrite a standard ONNX decoder into the fused operators of the domain `edgekit`, one rewrite a file.

The lowered graph, which `plan` reads: nodes in order of execution, each one barrier. Absent inputs are None.

    Embed           (input_ids, weight)                                -> x        [1, s, hidden]
    NormLinear      (x, norm, weight0, bias0, [weight1, bias1, [weight2, bias2]])
                                                                       -> y        [1, s, sum of n]
    Attention       (qkv, position, past_key, past_value, inv_freq, q_norm, k_norm)
                                                                       -> y, present_key, present_value
    LinearAdd       (x, weight, bias, residual)                        -> y = residual + linear(x)
    NormGatedLinear (x, norm, weight, bias)                            -> h = silu(gate) * up
    Head            (x, norm, weight, bias)                            -> logits   [1, s, vocab]

Attributes: `eps` (float) of NormLinear, NormGatedLinear and Head; Attention has `layer`, `heads`, `kv_heads`, `head_dim`,
`window` (0: sees all), `scale` (of q . k), `rope_scale` (on cos and sin), `eps` (of q_norm and k_norm).

Initializers are the tensors the engine stores, in order of first use, each once (a tied head and the embedding are one
value). They carry no data but for `inv_freq`; `packed(value)` says how to make them (`Packed`): the scheme, the
checkpoint tensors they come from, and how those are joined: "rows" (one below the other) or "tiles" (16 rows of each in
turn, each source padded to a multiple of 16 with zero rows: gate and up). Matrices are (n, k), vectors (n,) and f32.
`notes(model)` gives what a person should know, for example a scheme that was raised.
"""

import json
from dataclasses import dataclass

import onnx_ir as ir

from edgekit.scheme import Scheme, parse_scheme

DOMAIN = "edgekit"


@dataclass(frozen=True, slots=True)
class Packed:
    """How a lowered graph's initializer is made: `sources` joined by "rows" or "tiles", stored as `scheme`.

    `inv_freq` has no sources: the initializer holds its data.
    """

    sources: tuple[str, ...]
    join: str
    scheme: Scheme
    shape: tuple[int, ...]


def packed(value: ir.Value) -> Packed:
    """How the initializer `value` of a lowered graph is made."""
    properties = value.metadata_props
    assert value.shape is not None
    return Packed(
        tuple(json.loads(properties["edgekit.sources"])),
        properties["edgekit.join"],
        parse_scheme(properties["edgekit.scheme"]),
        tuple(int(size) for size in value.shape),
    )
