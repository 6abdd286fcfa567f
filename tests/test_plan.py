import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from edgekit.archs import Decoder, find_decoder
from edgekit.checkpoint import open_checkpoint
from edgekit.cores import feature_words
from edgekit.errors import DoesNotFit
from edgekit.graph import build_graph
from edgekit.kernels import code_bytes, scale_bytes
from edgekit.passes import lower
from edgekit.plan import DEFAULT_ROWS, Plan, default_context, kv_bytes, make_plan
from edgekit.quantize import assign
from edgekit.scheme import parse_recipe
from edgekit.target import Rate, load_target
from edgekit.testing import make_checkpoint
from edgekit.units import Bytes

# hidden 64, 4 heads and 2 key heads of 16, intermediate 100 (padded to 112), vocabulary 320
SHAPE = {"hidden": 64, "heads": 4, "kv_heads": 2, "intermediate": 100, "vocab": 320, "layers": 3}


@functools.cache
def lowered(folder: Path, model_type: str, recipe: str, tied: bool) -> tuple[ir.Model, Decoder]:
    path = make_checkpoint(folder / f"{model_type}-{tied}", model_type=model_type, tied=tied, **SHAPE)  # type: ignore[arg-type]
    graph = build_graph(open_checkpoint(path), context=64)
    return lower(assign(graph, parse_recipe(recipe))), graph.decoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plan")


def plan(
    folder: Path, target: str = "rpi5", recipe: str = "q4g32", *, model_type: str = "llama", tied: bool = True
) -> Plan:
    model, decoder = lowered(folder, model_type, recipe, tied)
    return make_plan(model, decoder, load_target(target), context=64)


def test_a_layer_is_five_steps_between_embedding_and_head(folder: Path) -> None:
    layer = ["NormLinear", "Attention", "LinearAdd", "NormGatedLinear", "LinearAdd"]
    assert [operator.kind for operator in plan(folder).operators] == ["Embed", *3 * layer, "Head"]


def test_a_tied_head_multiplies_with_the_embedding(folder: Path) -> None:
    tied, untied = plan(folder), plan(folder, tied=False)
    assert tied.operators[0].table == tied.operators[-1].products[0].weight
    assert untied.operators[0].table != untied.operators[-1].products[0].weight
    assert len(untied.tensors) == len(tied.tensors) + 1


def test_tensors_lie_one_behind_the_other_on_boundaries_of_64_bytes(folder: Path) -> None:
    made = plan(folder)
    end = 0
    for tensor in made.tensors:
        assert tensor.codes_offset == -(-end // 64) * 64
        assert tensor.scales_offset == -(-(tensor.codes_offset + tensor.codes_bytes) // 64) * 64
        end = tensor.scales_offset + tensor.scales_bytes
        if not tensor.is_vector:
            assert tensor.codes_bytes == code_bytes(tensor.scheme, tensor.n, tensor.k)
            assert tensor.scales_bytes == scale_bytes(tensor.scheme, tensor.n, tensor.k)
    assert made.weights_bytes == end


def test_an_operator_never_writes_where_it_reads_or_where_another_is_still_needed(folder: Path) -> None:
    made = plan(folder)
    span = {
        index: range(buffer.offset, buffer.offset + buffer.width * made.max_rows * 4)
        for index, buffer in enumerate(made.buffers)
    }

    def overlap(a: int, b: int) -> bool:
        return span[a].start < span[b].stop and span[b].start < span[a].stop

    residual = made.operators[0].output
    for operator in made.operators:
        if operator.input is not None and operator.output is not None:
            assert not overlap(operator.input, operator.output)
        if operator.kind == "LinearAdd":
            assert operator.output == residual
        elif operator.output is not None and residual is not None and operator.kind != "Embed":
            assert not overlap(operator.output, residual)
    assert max(spanned.stop for spanned in span.values()) == made.arena_bytes


def test_the_arena_holds_the_residual_and_the_widest_pair(folder: Path) -> None:
    # Beside 64 floats of residual: q|k|v (64 + 32 + 32) with attention's 64, or the gated 112.
    made = plan(folder)
    assert made.max_rows == 64 < DEFAULT_ROWS  # the context
    assert made.arena_bytes == (64 + 128 + 64) * 64 * 4


# Three layers, two heads of 16 for keys and for values, 64 positions; int8 has a scale of four bytes for each.
@pytest.mark.parametrize(("kv", "row_bytes"), [("f16", 16 * 2), ("q8", 16 + 4)])
def test_the_kv_cache_holds_a_row_for_each_key_and_value(folder: Path, kv: str, row_bytes: int) -> None:
    model, decoder = lowered(folder, "llama", "q4g32", True)
    made = make_plan(model, decoder, load_target("rpi5"), context=64, kv=kv)
    assert (made.kv, made.kv_bytes) == (kv, 3 * 2 * 2 * 64 * row_bytes)
    assert kv_bytes(decoder, 49, kv) == made.kv_bytes
    assert kv_bytes(replace(decoder, head_dim=10), 64, "f16") == 3 * 2 * (10 + 16) * 2 * 64


def test_a_smaller_cache_is_predicted_to_be_read_faster(folder: Path) -> None:
    model, decoder = lowered(folder, "llama", "q4g32", True)
    slow = (Rate(4, 1e9, "measured", "s"),)
    target = replace(load_target("rpi5"), dram=slow, shared_cache_bytes=Bytes(0))
    half, bytes_ = (make_plan(model, decoder, target, context=64, kv=kv) for kv in ("f16", "q8"))
    rate = target.dram_rate(half.decode_threads)
    assert half.decode_seconds and half.deep_decode_seconds and bytes_.deep_decode_seconds and rate
    # 64 positions instead of the 128 that a short text has, each with keys and values of three layers.
    less = 64 * 3 * 2 * 2 * 16 * 2 / rate.bytes_per_second
    assert half.decode_seconds - half.deep_decode_seconds == pytest.approx(less)
    saved = (half.kv_bytes - bytes_.kv_bytes) / rate.bytes_per_second
    assert half.deep_decode_seconds - bytes_.deep_decode_seconds == pytest.approx(saved)


def test_what_a_token_reads_is_every_matrix_and_one_row_of_the_embedding(folder: Path) -> None:
    made = plan(folder, tied=False)
    rows = {False: 0, True: 0}
    for tensor in made.tensors:
        if not tensor.is_vector:
            rows[tensor.name == "model.embed_tokens.weight"] += tensor.codes_bytes + tensor.scales_bytes
    assert made.bytes_per_token == rows[False] + rows[True] // 320


def test_memory_on_the_device_is_the_sum_of_its_parts(folder: Path) -> None:
    made = plan(folder)
    parts = made.weights_bytes + made.kv_bytes + made.arena_bytes + made.overhead_bytes
    assert made.device_bytes == parts
    assert made.overhead_bytes > 8 * 320


@pytest.mark.parametrize(
    ("target", "words"),
    [("rpi4", ("neon",)), ("rpi5", ("dotprod", "neon")), ("x86-64-v3", ("avx2",))],
)
def test_required_features_are_those_of_the_chosen_kernels(folder: Path, target: str, words: tuple[str, ...]) -> None:
    made = plan(folder, target)
    assert feature_words(made.required_features) == words
    assert all(name.endswith(made.isa) for name in made.kernels)


def test_projections_of_different_schemes_stay_apart_side_by_side(folder: Path) -> None:
    made = plan(folder, recipe="q4g32,*.q_proj=q8g32")
    first = made.operators[1]
    assert [str(made.tensors[product.weight].scheme) for product in first.products] == ["q8g32", "q4g32"]
    assert [made.tensors[product.weight].n for product in first.products] == [64, 64]
    assert {kernel.split("_")[2] for kernel in made.kernels} == {"q8", "q4"}


def test_biases_and_head_norms_have_their_tensors(folder: Path) -> None:
    biased = plan(folder, model_type="qwen2").operators[1].products[0]
    assert biased.bias is not None
    normed = plan(folder, model_type="qwen3").operators[2]
    assert normed.q_norm is not None and normed.k_norm is not None
    assert plan(folder).operators[2].q_norm is None


def test_a_plan_is_the_same_every_time(folder: Path) -> None:
    assert plan(folder) == plan(folder)


def test_the_host_is_planned_without_a_rate_and_predicts_nothing_it_does_not_know(folder: Path) -> None:
    model, decoder = lowered(folder, "llama", "q4g32", True)
    host = load_target("host")
    made = make_plan(model, decoder, host, context=64)
    assert made.decode_tokens_per_second is None
    assert made.prefill_tokens_per_second is None
    assert made.notes == ("no DRAM rate of host is known, so no speed is predicted",)
    assert made.decode_threads == made.prefill_threads == host.worker_count


def test_a_rate_measured_here_changes_predictions_and_nothing_else(folder: Path) -> None:
    model, decoder = lowered(folder, "llama", "q4g32", True)
    host = replace(
        load_target("rpi5"), name="host", dram=(), shared_cache_bytes=load_target("rpi5").shared_cache_bytes * 0
    )
    rates = (Rate(1, 9e9, "measured here", "s"), Rate(4, 8e9, "measured here", "s"))
    without, with_rates = (
        make_plan(model, decoder, target, context=64) for target in (host, replace(host, dram=rates))
    )
    assert with_rates.decode_tokens_per_second is not None
    first, second = (
        replace(made, decode_seconds=None, deep_decode_seconds=None, prefill_seconds=None, notes=(), operators=())
        for made in (with_rates, without)
    )
    assert first == second


def test_a_theoretical_rate_is_called_an_upper_bound(folder: Path) -> None:
    model, decoder = lowered(folder, "llama", "q4g32", True)
    pc = load_target("x86-64-v3")
    assert "stay in the last cache" in make_plan(model, decoder, pc, context=64).notes[0]
    known = replace(pc, shared_cache=(Rate(1, 50e9, "measured", "a test"),))
    assert make_plan(model, decoder, known, context=64).notes == ()
    large = replace(pc, shared_cache_bytes=Bytes(0))
    assert "so predicted speeds are upper bounds" in make_plan(model, decoder, large, context=64).notes[0]


def large(folder: Path) -> tuple[ir.Model, Decoder]:
    """TinyLlama's shape (1.1 B weights), lowered: a checkpoint whose weights are a hole in a file, never read."""
    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "vocab_size": 32000}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 2048}
    path = make_checkpoint(folder / "large", tied=False)
    config = json.loads((path / "config.json").read_text()) | sizes | heads
    (path / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in find_decoder(config).tensor_shapes().items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    graph = build_graph(open_checkpoint(path), context=2048)
    return lower(assign(graph, parse_recipe("q4g128"))), graph.decoder


def test_decoding_takes_the_threads_that_read_memory_fastest(folder: Path) -> None:
    # 1.1 B weights on a Raspberry Pi 5, which reads 13.2 GB/s with two threads and 11.6 with four.
    made = make_plan(*large(folder), load_target("rpi5"), context=2048)
    assert (made.decode_threads, made.prefill_threads) == (2, 4)
    assert made.decode_seconds is not None
    # Bound by memory: within the norms, barriers and KV cache of bytes over the published rate.
    assert 1.0 <= made.decode_seconds / (made.bytes_per_token / 13.23e9) < 1.05


def test_no_more_than_four_gibibytes_of_activations_fit(folder: Path) -> None:
    model, decoder = lowered(folder, "llama", "q4g32", True)
    with pytest.raises(DoesNotFit, match=r"activations of 65536000 tokens at once take"):
        make_plan(model, decoder, load_target("rpi5"), context=1 << 26, max_rows=65536_000)


def test_the_default_context_is_the_models_up_to_2048(folder: Path) -> None:
    decoder = lowered(folder, "llama", "q4g32", True)[1]
    assert default_context(decoder) == 256
    assert default_context(replace(decoder, context=131072)) == 2048
