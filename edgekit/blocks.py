"""A decoder run one block at a time, its weights given at each run.

A block of the float graph is cut out, and its weights are made inputs: one session of stock ONNX Runtime then serves
every block, in float32 or with other values in the place of some. Only one block's weights are in memory, nothing is
written to disk, and what lies before a block need not be run again for each change of it.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
from onnx_ir.convenience import extract

from edgekit.checkpoint import Checkpoint
from edgekit.coherence import Tokens
from edgekit.errors import Damaged
from edgekit.graph import Graph, session_options

Float32 = npt.NDArray[np.float32]
Weights = Mapping[str, Float32]  # matrices are (k, n), save an embedding that is the head too

EMBEDDING = "model.embed_tokens.weight"
_BLOCK = "model.layers.0."


class Part:
    """What a decoder computes between two values, on stock ONNX Runtime. `weights` names what each run is given."""

    def __init__(
        self,
        graph: Graph,
        start: str,
        end: str,
        *,
        inputs: Sequence[str] = (),
        caches: Sequence[str] = (),
        prefix: str,
        threads: int | None = None,
    ) -> None:
        """`inputs` and `caches` are the graph's that the part needs, `prefix` what its weights' names begin with.

        `threads`: without a number one for each core.
        """
        presents = [cache.replace("past_", "present_") for cache in caches]
        inner = extract(graph.model.graph, [start, *inputs, *caches], [end, *presents])
        self.weights = [name for name in inner.initializers if name.startswith(prefix)]
        for name in self.weights:
            value = inner.initializers.pop(name)
            value.const_value = None
            inner.inputs.append(value)
        model = ir.Model(inner, ir_version=graph.model.ir_version)
        self._session = onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(),
            session_options(threads or len(os.sched_getaffinity(0))),
            providers=["CPUExecutionProvider"],
            enable_fallback=0,
        )
        self._start, self._end, self._inputs, self._prefix = start, end, inputs, prefix
        shapes = {value.name: value.shape for value in self._session.get_inputs()}
        self._caches = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shapes[name], np.float32)) for name in caches
        }

    def run(self, x: Float32, weights: Weights) -> Float32:
        """The part's result [s, n] for x [s, hidden] at positions from 0 on, each text on its own.

        `weights` are named as the part's, without their prefix.

        Raises:
            Damaged: it is not finite.
        """
        binding = self._session.io_binding()
        binding.bind_output(self._end, "cpu")
        binding.bind_cpu_input(self._start, x[None])
        for name in self.weights:
            binding.bind_cpu_input(name, weights[name.removeprefix(self._prefix)])
        for name in self._inputs:
            # All that matters of the ids is how many they are.
            binding.bind_cpu_input(name, np.zeros((1, len(x)) if name == "input_ids" else 1, np.int64))
        for name, cache in self._caches.items():
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(name.replace("past_", "present_"), cache)
        self._session.run_with_iobinding(binding)
        result: Float32 = binding.get_outputs()[0].numpy()[0]
        if not np.isfinite(result).all():
            raise Damaged(
                "the model's values become infinite or not a number", hint="train or download the checkpoint again"
            )
        return result


def open_block(graph: Graph, *, threads: int | None = None) -> Part:
    """Any block of the decoder: it gets weights such as `self_attn.q_proj.weight`, without `model.layers.<i>.`."""
    return Part(
        graph,
        "model.embed_tokens",
        f"{_BLOCK}mlp.residual",
        inputs=("input_ids", "position"),
        caches=("past_key_0", "past_value_0"),
        prefix=_BLOCK,
        threads=threads,
    )


def open_head(graph: Graph) -> Part:
    """The final norm and the head: logits of the last block's output."""
    return Part(graph, f"model.layers.{graph.decoder.layers - 1}.mlp.residual", "logits", prefix="")


def weights_of(checkpoint: Checkpoint, layer: int) -> dict[str, Float32]:
    """What `open_block` takes for the block `layer`, in float32."""
    prefix = f"model.layers.{layer}."
    names = [name for name in checkpoint.decoder.tensor_shapes() if name.startswith(prefix)]
    return {name.removeprefix(prefix): as_right_operand(checkpoint.read(name)) for name in names}


def as_right_operand(weights: Float32) -> Float32:
    """A matrix (n, k) as (k, n), the form in which it is multiplied by; a vector as it is."""
    return np.ascontiguousarray(weights.T)


def embedded(checkpoint: Checkpoint, ids: Tokens) -> Float32:
    """The rows [s, hidden] of the embedding for `ids`."""
    rows, index = np.unique(ids, return_inverse=True)
    table = np.concatenate([checkpoint.read_rows(EMBEDDING, int(row), int(row) + 1) for row in rows])
    return table[index]
