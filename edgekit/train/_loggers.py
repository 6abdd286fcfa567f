"""Loggers that are quiet, to be imported before the rest of the package.

transformers imports torchao where that is installed, and both torchao and torch then log what does not concern this
machine.
"""

import logging

for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
