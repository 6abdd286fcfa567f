"""The graph that rounds as the native engine does: each rounding against NumPy, and the graph left as it was."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from edgekit.checkpoint import open_checkpoint
from edgekit.graph import build_graph
from edgekit.quantize import quantize
from edgekit.rounded import rounded_as_native
from edgekit.scheme import parse_recipe
from edgekit.testing import make_checkpoint


def rounded_by_hand(x, group):
    """Codes of int8 times their scale, group by group along the last axis."""
    out = np.empty_like(x)
    for start in range(0, x.shape[-1], group):
        part = x[..., start : start + group]
        largest = np.abs(part).max(-1, keepdims=True)
        inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
        out[..., start : start + group] = np.rint(part * inverse) * (largest / np.float32(127))
    return out


@pytest.fixture
def quant(tmp_path):
    """k = 40 for the first matrices (a partial group of 32) and 96 for the last."""
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "tiny", hidden=40, heads=2, kv_heads=1, context=16))
    recipe = parse_recipe("q4g32,*.v_proj=f32")
    return quantize(build_graph(checkpoint, context=16), checkpoint, recipe)


def run_up_to(model, name, x):
    """What the MatMul `name` reads on its left when the value that was there before is `x`."""
    node = next(node for node in model.graph if node.name == name)
    start = ir.Value(name="start", shape=ir.Shape(x.shape), type=ir.TensorType(ir.DataType.FLOAT))
    chain, value = [], node.inputs[0]
    while value.producer() is not None and value.producer().name.startswith(f"{name}."):
        chain.insert(0, value.producer())
        value = value.producer().inputs[0]
    everything = [other for other in model.graph if other.name.startswith(f"{name}.") and other not in (node,)]
    for other in everything:
        for at, given in enumerate(other.inputs):
            if given is value:
                other.replace_input_with(at, start)
    left = node.inputs[0]
    names = {given.name for other in everything for given in other.inputs if given is not None}
    constants = [value for key, value in model.graph.initializers.items() if key in names]
    model.graph.remove(everything)
    for constant in constants:
        del model.graph.initializers[constant.name]
    left.shape, left.type = None, ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([start], [left], nodes=everything, initializers=constants, opset_imports={"": 24}, name="part")
    proto = ir.to_proto(ir.Model(graph, ir_version=12))
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return session.run(None, {"start": x})[0]


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head"])
def test_activations_are_rounded_group_by_group_the_partial_one_included(quant, name):
    rows = 96 if "down" in name else 40
    x = np.random.default_rng(0).normal(size=(1, 3, rows)).astype(np.float32)
    x[0, 1, :32] = 0
    found = run_up_to(rounded_as_native(quant).graph.model, name, x)
    assert np.array_equal(found, rounded_by_hand(x, 32))


def test_a_matrix_in_float_gets_its_activations_as_they_are(quant):
    model = rounded_as_native(quant).graph.model
    node = next(node for node in model.graph if node.name == "model.layers.0.self_attn.v_proj")
    assert node.inputs[0].name == "model.layers.0.input_layernorm"


def test_keys_and_values_pass_through_f16(quant):
    model = rounded_as_native(quant).graph.model
    for node in (node for node in model.graph if node.op_type == "TensorScatter"):
        wide = node.inputs[1].producer()
        narrow = wide.inputs[0].producer()
        assert (wide.op_type, narrow.op_type) == ("Cast", "Cast")
        assert narrow.attributes["to"].as_int() == ir.DataType.FLOAT16


def test_the_graph_it_is_made_from_stays_as_it_was(quant):
    before = [node.name for node in quant.graph.model.graph]
    rounded = rounded_as_native(quant)
    assert [node.name for node in quant.graph.model.graph] == before
    assert rounded.tensors is quant.tensors
    assert replace(rounded, graph=quant.graph) == quant
