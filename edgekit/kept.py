"""What a checkpoint that is quantized already is compiled to when no recipe is given, and what that costs."""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from edgekit.checkpoint import Checkpoint
from edgekit.errors import UsageError
from edgekit.methods import find_method
from edgekit.packed import Packed
from edgekit.quantize import QuantGraph
from edgekit.scheme import DEFAULT_RECIPE, Recipe, Rule, Scheme, parse_recipe

_METHOD: Final = "kept"
_EMBEDDING: Final = "model.embed_tokens.weight"
# A bf16 is exact in f16 from 6e-5 on, and has half the bytes of f32.
_FLOATS: Final[Mapping[str, str]] = {"F16": "f16", "BF16": "f16", "F32": "f32"}


def default_recipe(checkpoint: Checkpoint) -> Recipe:
    """The recipe that leaves a quantized checkpoint as it is, as far as schemes go; for any other, 4 bits."""
    if not any(isinstance(info, Packed) for info in checkpoint.tensors.values()):
        return parse_recipe(DEFAULT_RECIPE)
    shapes = checkpoint.decoder.tensor_shapes()
    schemes = {name: _natural(checkpoint, name) for name, shape in shapes.items() if len(shape) == 2}
    head = schemes.pop(_EMBEDDING)
    ((default, _),) = Counter(schemes[name] for name in schemes if name != "lm_head.weight").most_common(1)
    rules: dict[str, Scheme] = {}
    for name, scheme in schemes.items():
        if scheme != (head if name == "lm_head.weight" else default):
            part = name.removesuffix(".weight").rpartition(".")[2]
            alike = {other for matrix, other in schemes.items() if matrix.endswith(f".{part}.weight")}
            rules[f"*.{part}" if len(alike) == 1 else name.removesuffix(".weight")] = scheme
    return Recipe(default, head, _METHOD, tuple(Rule(pattern, scheme) for pattern, scheme in rules.items()))


def kept_notes(checkpoint: Checkpoint, quant: QuantGraph) -> tuple[str, ...]:
    """What becomes of the codes that the checkpoint has, in sentences.

    Raises:
        UsageError: the recipe keeps codes, and there are none.
    """
    keeps = find_method(quant.recipe.method).keeps_codes
    packed = [info for info in map(checkpoint.tensors.get, quant.schemes) if isinstance(info, Packed)]
    if not packed:
        if keeps:
            raise UsageError(
                f"the recipe keeps codes (method={quant.recipe.method}), and the checkpoint has none",
                hint="leave the method out",
            )
        return ()
    if not keeps:
        return (
            f"the checkpoint is quantized already ({packed[0].dtype}), and the recipe rounds its values again;"
            f" without a recipe, or with method={_METHOD}, codes are kept where a scheme holds them",
        )
    kept = [info for info in packed if info.holds(quant.schemes[info.name])]
    notes = []
    if kept:
        notes.append(
            f"{len(kept)} of {len(packed)} packed matrices keep their codes; their scales are rounded to bf16, which"
            " moves values by at most 0.4 %"
        )
    again = Counter(
        f"{info.dtype} to {quant.schemes[info.name]}: {info.refusal or 'the recipe gives another scheme'}"
        for info in packed
        if info not in kept
    )
    notes += [f"{count} matrices are rounded again from their values, {why}" for why, count in again.items()]
    return tuple(notes)


def _natural(checkpoint: Checkpoint, name: str) -> Scheme:
    info = checkpoint.tensors[name]
    return info.natural if isinstance(info, Packed) else Scheme(_FLOATS[info.dtype], 0)
