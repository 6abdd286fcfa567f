"""GPTQ: columns in order, the error of each spread over those still to come so that the layer's result changes least.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv 2210.17323. Columns keep their order: groups are neighbours along k, so no other order could be stored.

With H = second + damping = R R^T, R upper triangular, no inverse of H is needed. When the columns S before a group B
have lost D_S (weights minus values), the best the group can do is W_B + D_S R_SB R_BB^-1 (Schur complement), and within
the group GPTQ's factor of the inverse is R_BB^-1. See also Chee et al., "QuIP", arXiv 2307.13304, theorem 6.
"""

import functools
from typing import Final

import numpy as np

from edgekit import kernels
from edgekit.methods import Float32, Inputs, Int8, Method, UInt16, rtn
from edgekit.scheme import Scheme

DAMPING: Final = 0.01  # share of the mean of H's diagonal that is added to it


def quantize_matrix(weights: Float32, scheme: Scheme, inputs: Inputs | None) -> tuple[Int8, UInt16]:
    """Codes [n, k] and bf16 scales [n, groups] that change the results on `inputs` little; without any, as rtn."""
    if inputs is None:
        return rtn.quantize_matrix(weights, scheme)
    n, k = weights.shape
    factor = _factor(inputs)
    codes, scales = np.empty((n, k), np.int8), np.empty((n, scheme.groups(k)), np.uint16)
    # Transposed, so that a column is one run of memory.
    lost = np.empty((k, n), np.float32)
    for group, start in enumerate(range(0, k, scheme.group)):
        block = slice(start, min(start + scheme.group, k))
        own = factor[block, block]
        inverse = np.linalg.inv(own.astype(np.float64)).astype(np.float32)
        wanted = weights[:, block].T + inverse.T @ (factor[:start, block].T @ lost[:start])
        lost[block] = weights[:, block].T
        importance = np.square(np.diag(own))
        _, bits = kernels.quantize_weights(scheme, wanted.T, importance=importance, steps=rtn.STEPS)
        scales[:, group] = bits[:, 0]
        codes[:, block] = _round_in_order(wanted, lost[block], scheme, bits[:, 0], inverse).T
    return codes, scales


def _round_in_order(wanted: Float32, lost: Float32, scheme: Scheme, bits: UInt16, inverse: Float32) -> Int8:
    """Codes [columns, n] of a group `wanted` [columns, n], which is used up; values are taken off `lost`."""
    scale = (bits.astype(np.uint32) << 16).view(np.float32)
    reciprocal = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    low, high = scheme.code_range
    offset = np.float32(scheme.offset)
    codes = np.empty(wanted.shape, np.int8)
    for column, weights in enumerate(wanted):
        code = np.rint(np.clip(weights * reciprocal - offset, low, high))
        values = (code + offset) * scale
        codes[column] = code
        lost[column] -= values
        error = (weights - values) / inverse[column, column]
        wanted[column + 1 :] -= inverse[column, column + 1 :, None] * error
    return codes


@functools.lru_cache(maxsize=1)  # matrices that share their inputs follow each other
def _factor(inputs: Inputs) -> Float32:
    """R [k, k], upper triangular, with R R^T = second + damping."""
    flipped = inputs.second[::-1, ::-1].astype(np.float64)
    diagonal = np.einsum("ii->i", flipped)
    # Inputs that are all zero leave every rounding equally good.
    diagonal += DAMPING * float(diagonal.mean()) or 1.0
    return np.ascontiguousarray(np.linalg.cholesky(flipped)[::-1, ::-1], np.float32)


METHOD: Final = Method(quantize_matrix, needs_inputs=True)
