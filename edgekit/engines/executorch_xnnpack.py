"""The decoder as an ExecuTorch .pte for XNNPACK, from the torch module. Only executorch_portable.py imports this.

    forward  tokens int64 [1, 1 to rows], input_pos int64 [1]  ->  logits float [1, s, vocab]

Codes are put into torchao's tensors as they are, so nothing is quantized here. The table of token vectors stays in int8
with its scales: ExecuTorch looks its rows up, and they are widened.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from edgekit.disk import appearing
from edgekit.engines.executorch_delegate import FORWARD, quiet
from edgekit.quantize import QuantGraph, QuantTensor, widen_bf16
from edgekit.torch_module import StatefulDecoder, module_key
from edgekit.xnnpack import row_scales

with quiet():
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
        XnnpackDynamicallyQuantizedPartitioner,
        XnnpackPartitioner,
    )
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
    from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
        IntxUnpackedToInt8Tensor,
        IntxUnpackedToInt8TensorActivationQuantization,
    )

_ROUNDED: Final = IntxUnpackedToInt8TensorActivationQuantization.INT8_ASYM_PER_TOKEN


def write_pte(
    quant: QuantGraph, file: Path, *, rows: int, threads: int, constants: Mapping[str, int | bool | list[int]]
) -> None:
    """Writes `quant`, in the codes that suit_xnnpack gave it, to `file`, with a method for each of `constants`."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(threads, before))
    try:
        with quiet(), torch.no_grad():
            module = StatefulDecoder(quant).eval()
            for name, tensor in quant.tensors.items():
                if not tensor.scheme.is_float:
                    _put_codes(module, module_key(name), tensor)
            example = (torch.zeros((1, 2), dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
            # A dimension of 1 alone would be a constant.
            count = torch.export.Dim("count", min=1, max=max(2, rows))
            exported = torch.export.export(module, example, dynamic_shapes=({1: count}, {}), strict=True)
            lowered = to_edge_transform_and_lower(
                {FORWARD: exported},
                partitioner={FORWARD: [XnnpackDynamicallyQuantizedPartitioner(), XnnpackPartitioner()]},
                constant_methods=dict(constants),
            )
            # Keys and values are written where they lie; else every token would copy the cache.
            made = lowered.to_executorch(ExecutorchBackendConfig(run_reinplace_pass=True))
            with appearing(file) as stream:
                made.write_to_file(stream)
    finally:
        torch.set_num_threads(before)


class _Table(torch.nn.Module):
    """Rows of a matrix of codes, widened where they are looked up."""

    def __init__(self, tensor: QuantTensor) -> None:
        super().__init__()
        self.shape, self.group = tensor.shape, tensor.scheme.group
        self.register_buffer("codes", torch.from_numpy(np.array(tensor.codes)))
        self.register_buffer("scales", torch.from_numpy(widen_bf16(tensor.scales)))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        codes = torch.nn.functional.embedding(ids, self.get_buffer("codes")).to(torch.float32)
        scales = torch.nn.functional.embedding(ids, self.get_buffer("scales"))
        if scales.shape[-1] == 1 or self.shape[1] % self.group:
            return codes * scales[..., :1]  # 8 bits have one scale a row
        grouped = codes.reshape(1, -1, scales.shape[-1], self.group) * scales.unsqueeze(-1)
        return grouped.reshape(1, -1, self.shape[1])


def _put_codes(module: StatefulDecoder, key: str, tensor: QuantTensor) -> None:
    """Codes instead of values, in the matrix of that key and in the table."""
    decoder = module.decoder
    if key in decoder.embeddings:
        decoder.embeddings[key] = _Table(tensor)
    if key in decoder.linears:
        is_four = tensor.scheme.bits == 4
        scales = widen_bf16(tensor.scales) if is_four else row_scales(tensor)[:, None]
        weight = IntxUnpackedToInt8Tensor(
            qdata=torch.from_numpy(np.array(tensor.codes)),
            scale=torch.from_numpy(scales),
            zero_point=torch.zeros(scales.shape, dtype=torch.int8),
            target_dtype=getattr(torch, f"int{tensor.scheme.bits}"),
            block_size=(1, tensor.scheme.group if is_four else tensor.shape[1]),
            dtype=torch.float32,
            activation_quantization=_ROUNDED,
        )
        decoder.linears[key].weight = torch.nn.Parameter(weight, requires_grad=False)
