"""Which tokens begin and end a text, as the files of a checkpoint say, and whether they can be believed.

A wrong end of text makes a model fall silent at an ordinary word or never stop, so each is checked to be special.
"""

from collections.abc import Mapping
from typing import Final

from edgekit.errors import Damaged, Unsupported

MOST_EOS_IDS: Final = 8  # what the program file has room for


def special_tokens(tokenizer: Mapping[str, object] | None) -> dict[str, int] | None:
    """The special added tokens of tokenizer.json and their ids; None without a tokenizer."""
    if tokenizer is None:
        return None
    added = tokenizer.get("added_tokens") or []
    special: dict[str, int] = {}
    for token in added if isinstance(added, list) else [added]:
        if not (
            isinstance(token, dict)
            and isinstance(token.get("content"), str)
            and isinstance(token.get("id"), int)
            and isinstance(token.get("special", False), bool)
        ):
            raise Damaged("tokenizer.json has a malformed list of added_tokens", hint="download it again")
        if token.get("special", False):
            special[token["content"]] = token["id"]
    return special


def eos_ids(
    config: Mapping[str, object],
    generation_config: Mapping[str, object],
    tokenizer_config: Mapping[str, object],
    vocab: int,
    special: Mapping[str, int] | None,
) -> tuple[int, ...]:
    """Every id that one of the configs says ends a text, checked."""
    found: dict[int, str] = {}
    for table, name in ((generation_config, "generation_config.json"), (config, "config.json")):
        given = table.get("eos_token_id")
        for token in given if isinstance(given, list) else [] if given is None else [given]:
            if isinstance(token, bool) or not isinstance(token, int):
                raise Damaged(
                    f"eos_token_id in {name} is {token!r:.40}", hint="it must be a token id or a list of them"
                )
            found.setdefault(token, f"eos_token_id {token} in {name}")
    content = token_content(tokenizer_config, "eos_token")
    if content is not None and special is not None:
        if content not in special:
            raise Damaged(
                f"eos_token '{content:.40}' in tokenizer_config.json is not a special token of tokenizer.json",
                hint="correct eos_token, or mark it special in tokenizer.json",
            )
        found.setdefault(special[content], f"eos_token '{content:.40}' in tokenizer_config.json")
    known = set() if special is None else set(special.values())
    for token, source in found.items():
        if not 0 <= token < vocab:
            raise Damaged(f"{source} is outside the vocabulary of {vocab}", hint="correct it, or set it to null")
        if special is not None and token not in known:
            raise Damaged(
                f"{source} is not a special token of tokenizer.json: text would end at an ordinary word",
                hint=f"correct it; special are {_listed(special)}",
            )
    if len(found) > MOST_EOS_IDS:
        raise Unsupported(f"the model has {len(found)} end-of-text ids", hint=f"at most {MOST_EOS_IDS}")
    return tuple(sorted(found))


def _listed(special: Mapping[str, int]) -> str:
    shown = [f"{token} ({content:.30})" for content, token in sorted(special.items(), key=lambda item: item[1])[:6]]
    return ", ".join(shown) + (", ..." if len(special) > 6 else "") if shown else "none"


def token_content(tokenizer_config: Mapping[str, object], key: str) -> str | None:
    """A token of tokenizer_config.json, given as text or as a table with its content."""
    token = tokenizer_config.get(key)
    content = token.get("content") if isinstance(token, dict) else token
    if content is not None and not isinstance(content, str):
        raise Damaged(f"{key} in tokenizer_config.json is {token!r:.40}", hint="it must be a string")
    return content


def bos_id(tokenizer: Mapping[str, object] | None) -> int | None:
    """The token that the post-processor of tokenizer.json puts before a text.

    `add_bos_token` of tokenizer_config.json has no say: transformers 5 drops it where there is a tokenizer.json, and
    the `tokenizers` package and the runner never see it.
    """
    if tokenizer is None:
        return None
    before = [
        token for step in _post_processors(tokenizer.get("post_processor")) for token in _tokens_before_text(step)
    ]
    if len(before) > 1:
        raise Unsupported(f"the tokenizer puts {len(before)} tokens before a text", hint="edgekit handles one, or none")
    return before[0] if before else None


def _post_processors(step: object) -> list[Mapping[str, object]]:
    """A post-processor of tokenizer.json, or those a Sequence of them holds."""
    if not isinstance(step, dict):
        return []
    inner = step.get("processors")
    if step.get("type") == "Sequence" and isinstance(inner, list):
        return [processor for processor in inner if isinstance(processor, dict)]
    return [step]


def _tokens_before_text(step: Mapping[str, object]) -> list[int]:
    """The ids a TemplateProcessing step puts before a single text."""
    if step.get("type") != "TemplateProcessing":
        return []
    tokens: list[int] = []
    try:
        for piece in step["single"]:  # type: ignore[attr-defined]
            if "SpecialToken" not in piece:
                break
            tokens += step["special_tokens"][piece["SpecialToken"]["id"]]["ids"]  # type: ignore[index]
    except (KeyError, TypeError) as error:
        raise Damaged("tokenizer.json has a malformed TemplateProcessing", hint="download it again") from error
    if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in tokens):
        raise Damaged("tokenizer.json has a malformed TemplateProcessing", hint="download it again")
    return tokens
