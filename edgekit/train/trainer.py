"""A Hugging Face trainer that adds a dispersion loss and, for a share of the steps, trains through rounded weights."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from edgekit.scheme import Recipe, Scheme, parse_recipe
from edgekit.train.dispersion import DispersionLoss
from edgekit.train.rounding import round_weights, rounded, rounded_matrices


@dataclass(frozen=True)
class Rounding:
    """Training through rounded weights: in each step one of `recipes`, drawn at random, as an additional loss.

    loss = float loss + weight * KL(float || rounded), so that the rounded model follows the float one. It begins after
    the share `start` of all steps. With `grid`, a recipe too, the float model is from then on the one whose weights are
    rounded to it, so that rounding to it costs the trained model nothing.
    """

    recipes: tuple[str, ...]
    weight: float = 1.0
    start: float = 0.0
    grid: str | None = None


class DispersionTrainer(Trainer):
    """`transformers.Trainer` with loss + dispersion_weight * dispersion(hidden states), while training only.

    Evaluation is of the plain loss. Works for every causal model that returns hidden states, under `accelerate launch`
    and in bf16 as the base class does. The terms are logged as `dispersion` and `rounding`.
    """

    def __init__(
        self,
        *args: Any,
        dispersion: DispersionLoss | None = None,
        dispersion_weight: float = 0.1,
        rounding: Rounding | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.dispersion = dispersion
        self.dispersion_weight = dispersion_weight
        self.rounding = rounding
        self._recipes: Sequence[Recipe] = tuple(map(parse_recipe, rounding.recipes)) if rounding else ()
        self._grid = parse_recipe(rounding.grid) if rounding and rounding.grid else None
        self._terms: dict[str, list[Tensor]] = {}
        self._logits: Tensor | None = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of the base class, plus the dispersion term in training."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        disperses = self.dispersion is not None and self.dispersion_weight != 0
        asked = {**inputs, "output_hidden_states": True} if disperses else inputs
        loss, outputs = super().compute_loss(model, asked, True, num_items_in_batch)
        self._logits = outputs.logits.detach()
        if self.dispersion is not None and disperses:
            term = self.dispersion(outputs.hidden_states, inputs.get("attention_mask"))
            self._count("dispersion", term)
            loss = loss + self.dispersion_weight * term / self._parts(num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _parts(self, num_items_in_batch: Tensor | int | None) -> int:
        # Where the base class divides by the tokens of all accumulated batches, it does not divide by their number.
        divided = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return self.current_gradient_accumulation_steps if divided else 1

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One step of the base class; where rounding is on, the gradient of the rounded model's divergence is added."""
        with self._on_grid():
            loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
            wanted, self._logits = self._logits, None  # not kept over the next step: they are the largest tensor of all
            if self.rounding is None or wanted is None or not self._rounds:
                return loss
            return loss + self._rounding_step(self.rounding, model, self._prepare_inputs(inputs), wanted)

    def _rounding_step(self, rounding: Rounding, model: nn.Module, inputs: dict[str, Any], wanted: Tensor) -> Tensor:
        """Adds the gradient of the rounded model's divergence from the logits `wanted`, and returns its share."""
        plain = {name: value for name, value in inputs.items() if name != "labels"}
        draw = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self.state.global_step)
        recipe = self._recipes[int(torch.randint(len(self._recipes), (), generator=draw))]
        with self.compute_loss_context_manager(), rounded(rounded_matrices(model, recipe)):
            term = divergence(wanted, model(**plain).logits, inputs.get("attention_mask"))
            scaled = rounding.weight * term / self.current_gradient_accumulation_steps
            self.accelerator.backward(scaled)
        self._count("rounding", term)
        return scaled.detach()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the base class; of the weights on their grid, once they are held there."""
        with self._on_grid():
            found: dict[str, float] = super().evaluate(*args, **kwargs)
        return found

    def settle(self) -> None:
        """Leaves the weights on their grid, if they are held on one: to be called when training has ended."""
        if self._rounds:
            for parameter, scheme in self._held().values():
                parameter.data = round_weights(parameter.data, scheme)

    @property
    def _rounds(self) -> bool:
        steps = self.state.max_steps  # 0 before training
        return self.rounding is not None and steps > 0 and self.state.global_step >= self.rounding.start * steps

    def _on_grid(self) -> AbstractContextManager[None]:
        return rounded(self._held()) if self._rounds else nullcontext()

    def _held(self) -> dict[str, tuple[nn.Parameter, Scheme]]:
        """The matrices that are held on a grid, and which."""
        assert self.model is not None
        return {} if self._grid is None else rounded_matrices(self.model, self._grid)

    def _count(self, name: str, term: Tensor) -> None:
        self._terms.setdefault(name, []).append(term.detach())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The logs of the base class with the means of the terms since the last ones."""
        if "loss" in logs:
            logs |= {name: float(torch.stack(values).mean()) for name, values in self._terms.items()}
            self._terms.clear()
        super().log(logs, *args, **kwargs)


def divergence(wanted: Tensor, found: Tensor, mask: Tensor | None) -> Tensor:
    """Mean KL(wanted || found) in nats a token, of logits [batch, n, vocab]; padding does not count."""
    logp, logq = wanted.float().log_softmax(-1), found.float().log_softmax(-1)
    each = (logp.exp() * (logp - logq)).sum(-1)
    return each.mean() if mask is None else (each * mask).sum() / mask.sum()
