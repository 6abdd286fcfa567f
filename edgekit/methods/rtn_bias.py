"""Round to nearest, and take what that adds to the mean result of each layer off the layer's bias.

The correction is (W - W_q) mean[x]. Every layer of the decoder gets a bias for it; the head has none.
Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721, 4.2.
"""

from typing import Final

from edgekit.methods import Method
from edgekit.methods.rtn import quantize_matrix

METHOD: Final = Method(quantize_matrix, needs_inputs=True, corrects_biases=True)
