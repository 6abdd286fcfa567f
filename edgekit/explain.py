"""Say why a plan is as it is: for each different product its kernels, what they cost, and who lost and why."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgekit.choose import Choice
from edgekit.plan import Plan


@dataclass(frozen=True, slots=True)
class Explained:
    """One product in one phase, and in how many operators of the plan it is made."""

    operator: str
    phase: str
    scheme: str
    n: int
    k: int
    times: int
    choice: Choice

    def as_json(self) -> dict[str, Any]:
        cost = self.choice.cost
        return {
            "operator": self.operator,
            "phase": self.phase,
            "scheme": self.scheme,
            "n": self.n,
            "k": self.k,
            "times": self.times,
            "kernel": self.choice.kernel.name,
            "bytes": cost.moved,
            "ops": cost.ops,
            "computing_seconds": cost.computing,
            "moving_seconds": cost.moving,
            "bound": cost.bound,
            "losers": [
                {"kernel": loser.kernel, "computing_seconds": loser.computing, "reason": loser.reason}
                for loser in self.choice.losers
            ],
        }


def explain(plan: Plan) -> tuple[Explained, ...]:
    """Every different product of the plan, in the order of first use, decoding before prefill."""
    times: dict[tuple[str, str, str, int, int], int] = {}
    choices: dict[tuple[str, str, str, int, int], Choice] = {}
    for key, choice in _products(plan):
        times[key] = times.get(key, 0) + 1
        choices[key] = choice
    return tuple(Explained(*key, times=times[key], choice=choice) for key, choice in choices.items())


def _products(plan: Plan) -> Iterator[tuple[tuple[str, str, str, int, int], Choice]]:
    for phase in ("decode", "prefill"):
        for operator in plan.operators:
            for product in operator.products:
                tensor = plan.tensors[product.weight]
                choice = product.decode if phase == "decode" else product.prefill
                yield (operator.kind, phase, str(tensor.scheme), tensor.n, tensor.k), choice
