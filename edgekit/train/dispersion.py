"""A loss that keeps the token vectors of a layer from condensing into a narrow cone.

Angular spread, decorrelation, l2 repel and orthogonalization after Liu et al., "Dispersion loss counteracts embedding
condensation and improves generalization in small language models", ICML 2026, arXiv 2602.00217; l2 repel goes back to
Wang and He, arXiv 2506.09027. Written from the formulas.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn


class DispersionLoss(nn.Module):
    """The mean over layers and sequences of one of `VARIANTS`, a scalar in float32; the lower, the more dispersed.

    Of every sequence at most `tokens` positions are drawn at random, the same for all layers: the cost is
    O(layers * tokens^2 * d) a sequence. `layers` are numbers of blocks from 0, negative from the last; none: all.

    Hugging Face models return the last block's output after the final norm, and that is what the term sees: its angles
    are not those of the residual stream, of which `edgekit.condensation` tells.
    """

    def __init__(
        self,
        variant: str = "angular",
        *,
        temperature: float = 1.0,
        clamp: float = 0.1,
        tokens: int = 256,
        layers: Sequence[int] | None = None,
    ) -> None:
        """`clamp`: cosines are kept this far from 1 and -1, their gradient passing straight through.

        Raises:
            ValueError: an unknown variant, or a value out of range.
        """
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant '{variant}': one of {', '.join(VARIANTS)}")
        if not temperature > 0 or not 0 < clamp < 1 or tokens < 2:
            raise ValueError("temperature must be above 0, clamp between 0 and 1, tokens at least 2")
        self.variant = variant
        self.temperature = temperature
        self.clamp = clamp
        self.tokens = tokens
        self.layers = None if layers is None else tuple(layers)

    def forward(
        self, hidden_states: Sequence[Tensor], mask: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss of `hidden_states`, as Hugging Face models return them: the embedding's output, then each block's.

        Each is [batch, n, d]. `mask` [batch, n] is 0 where a position is padding. The embedding's output is left out.
        Computed in float32 under autocast, too.
        """
        blocks = hidden_states[1:]
        chosen = blocks if self.layers is None else [blocks[layer] for layer in self.layers]
        positions, valid = _draw(chosen[0], mask, self.tokens, generator)
        losses = []
        for states in chosen:
            index = positions[:, :, None].expand(-1, -1, states.shape[-1]).to(states.device)
            with torch.autocast(states.device.type, enabled=False):
                vectors = states.gather(1, index).float()
                loss = VARIANTS[self.variant](vectors, valid.to(states.device), self).mean()
            losses.append(loss.to(blocks[-1].device))
        return torch.stack(losses).mean()


def _draw(states: Tensor, mask: Tensor | None, tokens: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Positions [batch, m] drawn without repetition, and which of them are no padding [batch, m]."""
    batch, length = states.shape[:2]
    order = torch.rand(batch, length, device=states.device, generator=generator)
    present = torch.ones_like(order, dtype=torch.bool) if mask is None else mask.to(states.device).bool()
    positions = order.masked_fill(~present, -1).topk(min(tokens, length), dim=1).indices
    return positions, present.gather(1, positions)


def _angular(z: Tensor, valid: Tensor, loss: DispersionLoss) -> Tensor:
    """log mean over pairs of exp(-D / temperature), D = arccos(cosine) / pi. From -1 / temperature up to 0."""
    return _log_mean_exp(-_angles(z, loss.clamp) / loss.temperature, valid)


def _orthogonal(z: Tensor, valid: Tensor, loss: DispersionLoss) -> Tensor:
    """Mean over pairs of max(0, 1/2 - D)^2: pairs beyond a right angle cost nothing."""
    return _mean((0.5 - _angles(z, loss.clamp)).clamp(min=0).square(), valid)


def _decorrelation(z: Tensor, valid: Tensor, loss: DispersionLoss) -> Tensor:
    """Mean over pairs of the squared correlation of two tokens, each standardized over its features."""
    standard = z - z.mean(-1, keepdim=True)
    standard = standard / standard.square().mean(-1, keepdim=True).add(1e-12).sqrt()
    return _mean((standard @ standard.transpose(1, 2) / z.shape[-1]).square(), valid)


def _repel(z: Tensor, valid: Tensor, loss: DispersionLoss) -> Tensor:
    """log mean over pairs of exp(-|z_i - z_j|^2 / temperature), plus 0.1 times the mean square, which bounds it."""
    mean_square = z.square().mean(-1).masked_fill(~valid, 0).sum(1) / valid.sum(1).clamp(min=1)
    squares = z.square().sum(-1)
    distances = squares[:, :, None] + squares[:, None, :] - 2 * (z @ z.transpose(1, 2))
    return _log_mean_exp(-distances.clamp(min=0) / loss.temperature, valid) + 0.1 * mean_square


VARIANTS: Final[dict[str, Callable[[Tensor, Tensor, DispersionLoss], Tensor]]] = {
    "angular": _angular,
    "repel": _repel,
    "decorrelation": _decorrelation,
    "orthogonal": _orthogonal,
}


def _angles(z: Tensor, clamp: float) -> Tensor:
    """Angles of all pairs as a share of pi, [batch, m, m]."""
    unit = nn.functional.normalize(z, dim=-1)
    cosine = unit @ unit.transpose(1, 2)
    kept = cosine.clamp(clamp - 1, 1 - clamp)
    return torch.arccos(cosine + (kept - cosine).detach()) / math.pi


def _pairs(valid: Tensor) -> Tensor:
    """True [batch, m, m] where both tokens are `valid` [batch, m] and are not the same."""
    same = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    return valid[:, :, None] & valid[:, None, :] & ~same


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """The mean of values [batch, m, m] over the pairs of each sequence; 0 where there is none."""
    pairs = _pairs(valid)
    return values.masked_fill(~pairs, 0).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)


def _log_mean_exp(values: Tensor, valid: Tensor) -> Tensor:
    """log of the mean of exp(values) over the pairs of each sequence; 0 where there is none."""
    pairs = _pairs(valid)
    count = pairs.sum((1, 2))
    # A sequence without pairs takes its whole matrix instead, so that no infinity enters the gradient.
    used = torch.where(count[:, None, None] > 0, pairs, torch.ones_like(pairs))
    total = values.masked_fill(~used, -math.inf).flatten(1).logsumexp(1)
    return torch.where(count > 0, total - count.clamp(min=1).log(), torch.zeros_like(total))
