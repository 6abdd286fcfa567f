"""Quiet loggers, imported before the rest: transformers imports torchao where that is installed, and both torchao and
torch log at once what of it does not concern this machine.
"""

import logging

for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
