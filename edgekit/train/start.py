"""What a run starts from: the model, new or a checkpoint's, its tokenizer, its text, and what training it will take."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, set_seed

from edgekit.archs import Decoder, find_decoder
from edgekit.checkpoint import Checkpoint, open_checkpoint
from edgekit.errors import DoesNotFit, UsageError
from edgekit.quantize import find_rules
from edgekit.reference import check_tokens, open_tokenizer
from edgekit.scheme import parse_recipe
from edgekit.target import HOST, load_target
from edgekit.train.recipe import TrainingRecipe, check_layers
from edgekit.train.text import END_OF_TEXT, Sequences, kept_tokenizer, tokenize
from edgekit.units import Bytes, counted, rounded

Progress = Callable[[str, int, int], None]  # stage, parts done, parts in all (0: not known)

_EVALUATED_SEQUENCES = 256
# Python, torch and transformers themselves.
_PROGRAM_BYTES = 600 << 20


@dataclass(frozen=True, slots=True)
class Start:
    """What a run starts from. `held_out` are all held-out tokens; `evaluated` is their beginning."""

    recipe: TrainingRecipe
    checkpoint: Checkpoint | None
    tokenizer: Tokenizer
    trained_on: Sequences
    evaluated: Sequences
    held_out: npt.NDArray[np.unsignedinteger]
    config: LlamaConfig | None
    decoder: Decoder
    processes: int

    @property
    def parameters(self) -> int:
        """Weights in the model; a tied head counts once."""
        return sum(math.prod(shape) for shape in self.decoder.tensor_shapes().values())

    @property
    def tokens_a_step(self) -> int:
        """Tokens that all processes see together in a step."""
        training = self.recipe.training
        return training.batch * training.accumulate * self.recipe.text.context * self.processes

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return max(1, self.recipe.training.tokens // self.tokens_a_step)

    def tokens(self, steps: int) -> int:
        """Tokens seen in the first `steps` steps: a pass over the text ends with a smaller one."""
        training, sequences = self.recipe.training, len(self.trained_on)
        batches = -(-sequences // (training.batch * self.processes))
        passes, rest = divmod(steps, -(-batches // training.accumulate))
        last = min(rest * self.tokens_a_step, sequences * self.recipe.text.context)
        return passes * sequences * self.recipe.text.context + last

    @property
    def memory(self) -> Bytes:
        """About what training takes on each process: weights, gradients, two moments, and what is kept of a batch."""
        losses, batch = self.recipe.losses, self.recipe.training.batch * self.recipe.text.context
        half = 2 if self.recipe.training.dtype == "bfloat16" else 4
        # Of each token and block: the inputs of products and norms; of the logits: themselves, their probabilities and
        # gradient in float32, and once more for rounded weights.
        block = 8 * self.decoder.hidden + 4 * self.decoder.intermediate
        kept = self.decoder.layers * block * half + self.decoder.vocab * 4 * (6 if losses.rounding else 3)
        return Bytes(_PROGRAM_BYTES + self.parameters * (24 if losses.rounding else 16) + batch * kept)

    def as_sentence(self) -> str:
        """What will be made, before anything is."""
        tokens = self.tokens(self.steps)
        passes = tokens / (len(self.trained_on) * self.recipe.text.context)
        return (
            f"training {counted(self.parameters)} parameters on {counted(tokens)} tokens"
            f" ({rounded(tokens / self.parameters, 3)} a parameter, {rounded(passes, 3)} times the text)"
            f" in {self.steps} steps takes about {self.memory} of memory"
            + (f" in each of {self.processes} processes" if self.processes > 1 else "")
        )


def make_start(recipe: TrainingRecipe, work: Path, *, processes: int, progress: Progress) -> Start:
    """What `recipe` starts from; tokenizer and tokens are kept in `work`.

    Raises:
        UsageError, Damaged: a text or checkpoint that cannot be used, a recipe whose pattern no matrix matches.
        Unsupported: a model that edgekit would not compile.
        DoesNotFit: more weights than there is memory.
    """
    text, checkpoint = recipe.text, None
    progress("tokenize", 0, 0)
    if recipe.checkpoint is not None:
        checkpoint = open_checkpoint(recipe.checkpoint)
        if (checkpoint.path / "adapter_config.json").exists():
            # transformers would load the adapter too, from wherever its file says.
            raise UsageError(
                f"{checkpoint.path} holds an adapter beside the model",
                hint="merge it into the model, or remove adapter_config.json",
            )
        check_layers(recipe.losses, checkpoint.decoder.layers)
        if text.context > checkpoint.decoder.context:
            raise UsageError(
                f"text.context is {text.context} and the model's {checkpoint.decoder.context}",
                hint="lower text.context",
            )
        tokenizer = open_tokenizer(checkpoint)
    else:
        tokenizer = kept_tokenizer(text.train, text.vocab, work, separator=text.separator)
    begin = _begin(checkpoint, tokenizer)
    tokens, held_out = (
        tokenize(files, tokenizer, work, separator=text.separator, begin=begin) for files in (text.train, text.held_out)
    )
    if checkpoint is not None and tokenizer.get_vocab_size() > checkpoint.decoder.vocab:
        check_tokens(checkpoint, tokens)
        check_tokens(checkpoint, held_out)
    config = None if checkpoint is not None else _config(recipe, tokenizer)
    start = Start(
        recipe=recipe,
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        trained_on=Sequences(tokens, text.context),
        evaluated=Sequences(held_out[: _EVALUATED_SEQUENCES * text.context], text.context),
        held_out=held_out,
        config=config,
        decoder=checkpoint.decoder if checkpoint is not None else find_decoder(config.to_dict() if config else {}),
        processes=processes,
    )
    _check(start)
    return start


def _begin(checkpoint: Checkpoint | None, tokenizer: Tokenizer) -> int | None:
    """The token that stands before a document: what the model begins a text with."""
    if checkpoint is None:
        return tokenizer.token_to_id(END_OF_TEXT)
    return checkpoint.bos_id if checkpoint.bos_id is not None else next(iter(checkpoint.eos_ids), None)


def _check(start: Start) -> None:
    rounding, swept = start.recipe.losses.rounding, start.recipe.sweep.recipes
    held = () if rounding is None else (*rounding.recipes, *([rounding.grid] if rounding.grid else []))
    for recipe in (*held, *swept):
        find_rules(start.decoder, parse_recipe(recipe))
    context, batch = start.recipe.text.context, start.recipe.training.batch * start.processes
    if len(start.trained_on) < batch:
        raise UsageError(
            f"text.train has {len(start.trained_on)} sequences of {context} tokens, fewer than a batch of {batch}",
            hint="give more text, or lower training.batch or text.context",
        )
    if not len(start.evaluated):
        raise UsageError(
            f"text.held_out has {len(start.held_out)} tokens, fewer than one sequence of {context}",
            hint="give more text, or lower text.context",
        )
    weights, there = Bytes(16 * start.parameters), load_target(HOST).memory
    if not torch.cuda.is_available() and weights > there:
        raise DoesNotFit(
            f"weights, gradients and moments of {counted(start.parameters)} parameters take {weights}, and"
            f" there are {there} of memory",
            hint="train a smaller model, or on a larger machine",
        )


def make_model(start: Start) -> nn.Module:
    """The model, its new weights drawn with the recipe's seed."""
    set_seed(start.recipe.training.seed)
    if start.config is not None:
        return LlamaForCausalLM(start.config)
    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        str(start.recipe.checkpoint),
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    return model


def _config(recipe: TrainingRecipe, tokenizer: Tokenizer) -> LlamaConfig:
    model, end = recipe.model, tokenizer.token_to_id(END_OF_TEXT)
    assert model is not None
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=model.hidden,
        intermediate_size=model.intermediate,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=recipe.text.context,
        tie_word_embeddings=model.tied,
        rms_norm_eps=1e-5,
        bos_token_id=end,
        eos_token_id=end,
    )
