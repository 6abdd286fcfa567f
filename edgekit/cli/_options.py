"""Options that several commands share, written once."""

import math
from pathlib import Path
from typing import Any, Final

import click

from edgekit.coherence import VERDICTS
from edgekit.cost import KV_FORMATS
from edgekit.measure import DEFAULT_TIMEOUT
from edgekit.plan import DEFAULT_KV

MOST_THREADS: Final = 256  # that edgekit-run starts
DEFAULT_THREADS: Final = "Default: as calibrated, or planned; all CPUs where the engine is not native."
_MOST_SECONDS: Final = 7 * 24 * 3600


class FiniteRange(click.FloatRange):
    """click's, without infinity and what is not a number: the latter lies within any range, as it compares."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


bundle = click.argument("bundle", type=click.Path(path_type=Path))
device = click.option(
    "--device", default="local", show_default=True, metavar="NAME", help="local, or qemu:TARGET such as qemu:rpi5."
)
timeout = click.option(
    "--timeout",
    type=FiniteRange(0, _MOST_SECONDS, min_open=True),
    default=float(DEFAULT_TIMEOUT),
    show_default=True,
    metavar="SECONDS",
    help="Longest time one program may run on the device.",
)
planned_kv = click.option(
    "--kv",
    type=click.Choice(list(KV_FORMATS)),
    default=DEFAULT_KV,
    show_default=True,
    help="How keys and values are kept: half floats, or int8 with a scale for each.",
)
kv = click.option(
    "--kv", type=click.Choice(list(KV_FORMATS)), help="How keys and values are kept. Default: as the bundle says."
)
explain = click.option(
    "--explain", "explained", is_flag=True, help="Show the kernel of every product, and those that lost and why."
)
gate = click.option(
    "--gate", type=click.Choice(VERDICTS[:-1]), help="End with code 5 if the model is less coherent than that."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
model = click.argument("model", required=False, type=click.Path(path_type=Path))
target = click.option("--target", required=True, metavar="NAME", help="Kind of machine; `edgekit targets` lists them.")
recipe = click.option(
    "--recipe",
    metavar="RECIPE",
    help="SCHEME[,head=SCHEME][,method=METHOD][,PATTERN=SCHEME...], or a .toml file. Default: q4g128; of a checkpoint"
    " that is quantized already, its own codes.",
)
context = click.option(
    "--context",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="Longest text with its answer; default: the model's, at most 2048.",
)
