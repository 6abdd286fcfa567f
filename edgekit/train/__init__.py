"""Dispersion training: the loss, a Hugging Face trainer that adds it, and what else makes a model survive few bits.

Needs the extra `train` (torch, transformers, accelerate). Nothing else of edgekit imports this package.
"""

import edgekit.train._loggers  # noqa: F401
from edgekit.train.dispersion import VARIANTS, DispersionLoss
from edgekit.train.rounding import round_weights, rounded
from edgekit.train.trainer import DispersionTrainer, Rounding

__all__ = ["VARIANTS", "DispersionLoss", "DispersionTrainer", "Rounding", "round_weights", "rounded"]
