"""Configs of published models become the right dimensions; what is not handled is refused by name."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from edgekit.archs import Decoder, find_decoder, supported_model_types
from edgekit.archs import config as limits_of_configs
from edgekit.errors import Damaged, EdgekitError, Unsupported

LLAMA: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
}
TINY: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "vocab_size": 50,
    "max_position_embeddings": 128,
}


def tiny(**changes: object) -> dict[str, object]:
    return TINY | changes


def parameters(decoder: Decoder) -> int:
    return sum(math.prod(shape) for shape in decoder.tensor_shapes().values())


def test_llama_3_2_1b_has_its_published_number_of_parameters():
    decoder = find_decoder(LLAMA)
    assert parameters(decoder) == 1_235_814_400
    assert (decoder.heads, decoder.kv_heads, decoder.head_dim, decoder.tied) == (32, 8, 64, True)
    assert len(decoder.inv_freq) == 32


def test_qwen3_0_6b_has_heads_wider_than_its_stream_and_its_published_number_of_parameters():
    decoder = find_decoder(
        {
            "model_type": "qwen3",
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 40960,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": 28,
        }
    )
    assert parameters(decoder) == 596_049_920
    assert decoder.qk_norm
    assert decoder.window == 0


def test_qwen2_5_0_5b_has_biases_on_q_k_and_v_and_its_published_number_of_parameters():
    decoder = find_decoder(
        {
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "sliding_window": 32768,
            "max_window_layers": 24,
        }
    )
    assert parameters(decoder) == 494_032_768
    assert (decoder.qkv_bias, decoder.o_bias) == (True, False)


def test_mistral_7b_has_a_window_unless_it_is_null():
    assert find_decoder(tiny(model_type="mistral", sliding_window=4096)).window == 4096
    assert find_decoder(tiny(model_type="mistral", sliding_window=None)).window == 0
    assert find_decoder(tiny(model_type="mistral")).window == 4096


def test_the_shapes_are_those_of_transformers():
    config = tiny(num_key_value_heads=1, attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert find_decoder(config).tensor_shapes() == expected


@pytest.mark.parametrize("head_dim", [6, 64, 80, 128])
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 3.0},
        LLAMA["rope_scaling"],
    ],
    ids=["default", "linear", "llama3"],
)
def test_inverse_frequencies_are_those_of_transformers(head_dim, scaling):
    config = LLAMA | {"head_dim": head_dim, "rope_scaling": scaling}
    reference = transformers.LlamaConfig(**config)
    if scaling["rope_type"] == "default":
        expected = 1.0 / (500000.0 ** (torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim))
    else:
        expected, attention_factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](reference)
        assert attention_factor == 1
    got = np.array(find_decoder(config).inv_freq, np.float32)
    # Two libraries' powers may differ in the last bit, and the interpolation keeps that.
    np.testing.assert_array_max_ulp(got, expected.numpy(), maxulp=2)


def test_the_rotation_is_read_from_either_place_that_transformers_used():
    old = find_decoder(tiny(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0}))
    new = find_decoder(tiny(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}))
    assert old.inv_freq == new.inv_freq
    # head_dim 4: theta^0 and theta^-1/2, both halved.
    assert old.inv_freq == pytest.approx([0.5, 0.5 / math.sqrt(5e5)])


def test_the_supported_architectures_are_the_files_of_the_folder():
    assert supported_model_types() == ("llama", "mistral", "qwen2", "qwen3")


UNSUPPORTED = {
    "model_type 'mixtral' is not supported": {"model_type": "mixtral"},
    "model_type 'config' is not supported": {"model_type": "config"},
    r"model_type '\.\./x' is not supported": {"model_type": "../x"},
    "hidden_act 'gelu' in config.json is not supported": {"hidden_act": "gelu"},
    "rope_type 'yarn' in rope_scaling of config.json": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "type 'dynamic' in rope_scaling of config.json": {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
    "partial_rotary_factor in config.json": {"partial_rotary_factor": 0.5},
    "partial_rotary_factor in rope_parameters": {"rope_parameters": {"partial_rotary_factor": 0.25}},
    "heads of 5 values are not supported": {"head_dim": 5},
    "is a LlamaForSequenceClassification, which does not": {"architectures": ["LlamaForSequenceClassification"]},
    "max_position_embeddings in config.json is 100000000000": {"max_position_embeddings": 10**11},
    "num_hidden_layers in config.json is 1025": {"num_hidden_layers": 1025},
    "hidden_size in config.json is 1048577": {"hidden_size": (1 << 20) + 1},
    "intermediate_size in config.json is 1048577": {"intermediate_size": (1 << 20) + 1},
    "num_attention_heads in config.json is 1025": {"num_attention_heads": 1025},
    "num_key_value_heads in config.json is 1025": {"num_key_value_heads": 1025},
    "head_dim in config.json is 1026": {"head_dim": 1026},
    "vocab_size in config.json is 4194305": {"vocab_size": (1 << 22) + 1},
    "layers with and without a sliding window": {
        "model_type": "qwen2",
        "num_hidden_layers": 2,
        "use_sliding_window": True,
        "max_window_layers": 1,
    },
    "layers with and without a sliding window in": {
        "model_type": "qwen3",
        "use_sliding_window": True,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


@pytest.mark.parametrize(("message", "changes"), UNSUPPORTED.items())
def test_what_is_not_handled_is_refused_and_what_is_gets_listed(message, changes):
    with pytest.raises(Unsupported, match=message) as refusal:
        find_decoder(tiny(**changes))
    assert refusal.value.exit_code == 3
    assert refusal.value.hint


DAMAGED = {
    "config.json gives no model_type": {"model_type": None},
    "config.json gives no hidden_size": {"hidden_size": None},
    "hidden_size in config.json is '12'": {"hidden_size": "12"},
    "hidden_size in config.json is True": {"hidden_size": True},
    "num_hidden_layers in config.json is 0": {"num_hidden_layers": 0},
    "vocab_size in config.json is 1e\\+30": {"vocab_size": 1e30},
    "rms_norm_eps in config.json is nan": {"rms_norm_eps": math.nan},
    "rope_theta in config.json is -1": {"rope_theta": -1},
    "num_attention_heads 3 in config.json is not a multiple of num_key_value_heads 2": {"num_key_value_heads": 2},
    "hidden_size 13 in config.json is not a multiple of num_attention_heads 3": {"hidden_size": 13},
    "architectures in config.json is 'LlamaForCausalLM'": {"architectures": "LlamaForCausalLM"},
    "rope_scaling of config.json gives no factor": {"rope_scaling": {"type": "linear"}},
    "low_freq_factor in rope_scaling of config.json is not below": {
        "rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}
    },
    "tie_word_embeddings in config.json is 'yes'": {"tie_word_embeddings": "yes"},
}


@pytest.mark.parametrize(("message", "changes"), DAMAGED.items())
def test_a_value_that_makes_no_sense_is_damage_and_the_message_shows_it(message, changes):
    with pytest.raises(Damaged, match=message) as refusal:
        find_decoder(tiny(**changes))
    assert refusal.value.exit_code == 7
    assert refusal.value.hint


def test_a_program_may_have_what_a_config_may_ask_for():
    source = (Path(__file__).parents[1] / "kernels" / "program" / "open.cc").read_text("utf-8")
    found = dict(re.findall(r"constexpr uint32_t kMost(\w+) = ([\du< ]+);", source))
    for name in ("Layers", "Heads", "HeadDim", "Width", "Vocab", "Context"):
        one, _, shift = found[name].replace("u", "").partition("<<")
        constant = "MOST_" + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()
        assert getattr(limits_of_configs, constant) == int(one) << int(shift or 0), constant


def test_a_model_made_for_more_positions_than_a_program_may_have_is_used_up_to_those():
    # As Llama 3 8B Instruct Gradient 4194k has it.
    assert find_decoder(tiny(max_position_embeddings=4 << 20)).context == 1 << 20


HOSTILE = [
    None,
    "x",
    "",
    -1,
    0,
    1,
    1.5,
    -0.0,
    1e308,
    math.inf,
    math.nan,
    True,
    [],
    ["x"],
    {},
    {"x": 1},
    10**30,
    10**400,
]


@pytest.mark.parametrize("model_type", supported_model_types())
def test_no_value_of_any_key_does_worse_than_an_error_for_the_person(model_type):
    config = tiny(
        model_type=model_type,
        architectures=["XForCausalLM"],
        num_key_value_heads=1,
        head_dim=4,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        rope_scaling={"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4},
        hidden_act="silu",
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings=False,
        use_sliding_window=True,
        sliding_window=16,
        max_window_layers=0,
        layer_types=["sliding_attention"],
        partial_rotary_factor=1,
    )
    assert find_decoder(config).vocab == 50
    scaling = config["rope_scaling"]
    changed = [config | {key: value} for key in config for value in HOSTILE]
    changed += [config | {"rope_scaling": scaling | {key: value}} for key in scaling for value in HOSTILE]
    refused = 0
    for hostile in changed:
        try:
            decoder = find_decoder(hostile)
        except EdgekitError as error:
            refused += 1
            assert error.exit_code in (3, 7)
            assert len(error.message) < 300
        else:
            assert np.isfinite(decoder.inv_freq).all()
            assert parameters(decoder) < 2**50
            json.dumps(decoder.norm_eps)
    assert refused > len(changed) / 2
