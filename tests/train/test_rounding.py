import numpy as np
import pytest
import torch

from edgekit import kernels
from edgekit.methods import rtn
from edgekit.quantize import widen_bf16
from edgekit.scheme import parse_recipe, parse_scheme
from edgekit.train.rounding import round_weights, rounded, rounded_matrices


@pytest.mark.parametrize("name", ["q8g32", "q4g64", "q3g64", "q2g32", "t2g128"])
def test_weights_are_rounded_as_the_compilers_kernel_rounds_them_with_as_many_scales(name):
    scheme = parse_scheme(name)
    weights = torch.randn(24, 200, generator=torch.Generator().manual_seed(1))
    codes, scales = kernels.quantize_weights(scheme, weights.numpy(), steps=16)
    steps = np.repeat(widen_bf16(scales), scheme.group, axis=1)[:, :200]
    expected = (codes.astype(np.float32) + np.float32(scheme.offset)) * steps
    np.testing.assert_allclose(round_weights(weights, scheme, steps=16).numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "more"), [("q8g32", 0.03), ("q4g64", 0.01), ("q3g64", 0.01), ("q2g32", 0.01), ("t2g128", 0.01)]
)
def test_half_as_many_scales_as_the_compiler_tries_find_errors_little_larger(name, more):
    scheme = parse_scheme(name)
    weights = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    codes, scales = rtn.quantize_matrix(weights.numpy(), scheme)
    steps = np.repeat(widen_bf16(scales), scheme.group, axis=1)
    compiled = torch.from_numpy((codes.astype(np.float32) + np.float32(scheme.offset)) * steps)
    here, there = ((values - weights).square().sum().item() for values in (round_weights(weights, scheme), compiled))
    assert there < here < (1 + more) * there


def test_zeros_stay_zeros_and_floats_are_themselves():
    zeros = torch.zeros(2, 40)
    assert torch.equal(round_weights(zeros, parse_scheme("q2g32")), zeros)
    assert round_weights(zeros, parse_scheme("f32")) is zeros
    third = torch.tensor([[1 / 3]])
    assert round_weights(third, parse_scheme("f16")).item() == np.float32(np.float16(1 / 3))


def test_within_rounded_the_loss_is_that_of_rounded_weights_and_the_gradient_goes_to_the_full_ones():
    model = torch.nn.Linear(32, 4, bias=False)
    full = model.weight.detach().clone()
    inputs = torch.randn(5, 32)
    with rounded(rounded_matrices(model, parse_recipe("q2g32"))):
        values = model.weight.detach().clone()
        outputs = model(inputs)
        outputs.square().sum().backward()
    assert torch.equal(values, round_weights(full, parse_scheme("q2g32")))
    assert torch.equal(outputs, inputs @ values.T)
    assert torch.equal(model.weight, full)
    # d/dW of |x W^T|^2 at the rounded weights, straight through.
    torch.testing.assert_close(model.weight.grad, 2 * (inputs @ values.T).T @ inputs)


def test_an_exception_within_rounded_leaves_the_full_weights():
    model = torch.nn.Linear(32, 4)
    full = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match="on purpose"), rounded(rounded_matrices(model, parse_recipe("q2g32"))):
        raise RuntimeError("on purpose")
    assert torch.equal(model.weight, full)


def test_the_recipe_says_which_matrices_are_rounded():
    model = torch.nn.ModuleDict({"lm_head": torch.nn.Linear(32, 4), "up_proj": torch.nn.Linear(32, 4)})
    found = rounded_matrices(model, parse_recipe("q2g32,head=f32"))
    assert {name: str(scheme) for name, (_, scheme) in found.items()} == {"up_proj.weight": "q2g32"}
