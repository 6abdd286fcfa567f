"""The codes of a checkpoint that is quantized already, where the scheme holds them; every other matrix as rtn.

Its scales are rounded to bf16, so that values move by at most 2^-8 of themselves.
"""

from typing import Final

from edgekit.methods import Method
from edgekit.methods.rtn import quantize_matrix

METHOD: Final = Method(quantize_matrix, keeps_codes=True)
