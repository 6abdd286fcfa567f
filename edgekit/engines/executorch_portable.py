"""Write a model for ExecuTorch as it is: model.pte, multiplied by XNNPACK, with no kernels of edgekit's.

ExecuTorch's LLM runner takes it as it takes the one with edgekit's kernels; keys and values stay in the loaded method.
"""

from pathlib import Path
from typing import Final

from edgekit.engines.executorch import MODEL, runner_constants
from edgekit.engines.executorch_delegate import import_runtime, version
from edgekit.engines.written import Written, describe
from edgekit.quantize import QuantGraph
from edgekit.units import Bytes

_ROWS: Final = 128  # at once
_THREADS: Final = 2  # of the conversion


def write_model(quant: QuantGraph, folder: Path, *, probe: bytes, bos: int | None, eos: tuple[int, ...]) -> Written:
    """Writes `quant`, in the codes that suit_xnnpack gave it, to `folder`.

    Takes about 15 s a layer (at 135 M parameters), and memory as forecast.py says.

    Raises:
        TargetMissing: ExecuTorch is not installed.
    """
    import_runtime()  # before the long work
    from edgekit.engines.executorch_xnnpack import write_pte

    decoder, context, file = quant.graph.decoder, quant.graph.context, folder / MODEL
    rows = min(_ROWS, context)
    constants = runner_constants(decoder, context, bos=bos, eos=eos)
    write_pte(quant, file, rows=rows, threads=_THREADS, constants={**constants, "get_max_seq_len": rows})
    read, looked_up = _weights_bytes(quant)
    written = Written(
        file=file,
        engine="executorch",
        engine_version=version(),
        kernels="runtime",
        made_from=quant.made_from,
        bos=bos,
        eos=eos,
        vocab=decoder.vocab,
        context=context,
        kv_format="f32",
        kv_bytes=Bytes(4 * 2 * decoder.layers * decoder.kv_heads * context * decoder.head_dim),
        weights_bytes=Bytes(read + looked_up),
        bytes_per_token=Bytes(read),
    )
    describe(written, probe=probe)
    return written


def _weights_bytes(quant: QuantGraph) -> tuple[int, int]:
    """Bytes that a token reads, XNNPACK's scales being bf16 by blocks and float32 by rows, and those of the table.

    Halves are widened. The table is there beside a tied head.
    """
    read = sum(vector.nbytes for vector in quant.vectors.values())
    looked_up = 0
    for name, tensor in quant.tensors.items():
        n, k = tensor.shape
        is_table = name == "model.embed_tokens.weight"
        if is_table:
            looked_up = 4 * n * k if tensor.scheme.is_float else n * k + 4 * tensor.scales.size
        if not is_table or quant.graph.decoder.tied:
            kinds = {"q4": n * k // 2 + 2 * tensor.scales.size, "q8": n * k + 4 * n}
            read += kinds.get(tensor.scheme.format, 4 * n * k)
    return read, looked_up
