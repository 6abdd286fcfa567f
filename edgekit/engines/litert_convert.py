"""The decoder as a .tflite file, made by litert-torch of the torch module. Only litert.py imports this: it needs torch.

LiteRT's own operator writes into the cache, so that a new key or value costs its own bytes and not the cache's.
"""

from pathlib import Path

import litert_torch
import torch
from litert_torch.generative.custom_ops.dynamic_update_slice import dynamic_update_slice

from edgekit.quantize import QuantGraph
from edgekit.torch_module import TorchDecoder


def convert(quant: QuantGraph, file: Path, *, rows: int, threads: int) -> None:
    """Writes the signatures decode and prefill_<rows> to `file`, with the values in float32."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(threads, before))
    try:
        module = _Signature(quant)
        # decode comes first: LiteRT's tools look at the first graph of a file.
        converter = litert_torch.signature("decode", module, sample_kwargs=module.inputs(1))
        converter = converter.signature(f"prefill_{rows}", module, sample_kwargs=module.inputs(rows))
        converter.convert().export(str(file))
    finally:
        torch.set_num_threads(before)


class _Signature(torch.nn.Module):
    """The decoder with LiteRT-LM's names: forward(tokens, input_pos, kv_cache_k_0 ...) -> caches and logits."""

    def __init__(self, quant: QuantGraph) -> None:
        super().__init__()
        self.decoder = TorchDecoder(quant, write=_write)
        self.caches = {
            name.replace("past_key", "kv_cache_k").replace("past_value", "kv_cache_v"): shape
            for name, shape in self.decoder.cache_shapes.items()
        }
        self.eval()

    def inputs(self, rows: int) -> dict[str, torch.Tensor]:
        """An example of the inputs."""
        return {
            "tokens": torch.zeros((1, rows), dtype=torch.int32),
            "input_pos": torch.arange(rows, dtype=torch.int32),
            **{name: torch.zeros(shape) for name, shape in self.caches.items()},
        }

    def forward(self, tokens: torch.Tensor, input_pos: torch.Tensor, **caches: torch.Tensor) -> dict[str, torch.Tensor]:
        logits, present = self.decoder(tokens, input_pos[:1], [caches[name] for name in self.caches])
        return {**dict(zip(self.caches, present, strict=True)), "logits": logits}


def _write(cache: torch.Tensor, new: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    zero = torch.zeros((), dtype=torch.int32)
    written: torch.Tensor = dynamic_update_slice(cache, new, [zero, zero, position.reshape(()), zero])
    return written
