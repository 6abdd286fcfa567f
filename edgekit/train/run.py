"""One training run: from a recipe to a Hugging Face folder, continued where it stopped if it was killed.

The folder holds, while the run goes on, `checkpoints/`; at the end the model with its tokenizer, `recipe.json` (the
recipe with every default) and `training.json` (the held-out curve, condensation by layer, seconds).
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from edgekit.checkpoint import open_checkpoint
from edgekit.errors import Damaged, UsageError
from edgekit.train.dispersion import DispersionLoss
from edgekit.train.recipe import NewModel, TrainingRecipe
from edgekit.train.text import END_OF_TEXT, Sequences, tokenize, train_tokenizer
from edgekit.train.trainer import DispersionTrainer, Rounding

Progress = Callable[[str, int, int], None]  # stage, steps done, steps in all
Record = dict[str, Any]

_EVALUATED_SEQUENCES = 256


def train(recipe: TrainingRecipe, output: Path, *, work: Path, progress: Progress) -> Record:
    """Trains as the recipe says, writes the model to `output`, and returns what training.json holds.

    Tokens and tokenizer are kept in `work`, for other runs on the same text. A run that was interrupted goes on from
    its last checkpoint; one that is finished is not run again.

    Raises:
        UsageError: `output` holds another run, or the text is too short.
    """
    if finished := _finished(recipe, output):
        return finished
    output.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    _write_json(output / "recipe.json", recipe.as_json())
    tokenizer = _tokenizer(recipe, work, progress)
    progress("tokenize", 0, 0)
    text, begin = recipe.text, _begin(recipe, tokenizer)
    tokens, held_out = (
        tokenize(files, tokenizer, work / f"{name}.tokens", separator=text.separator, begin=begin)
        for name, files in (("train", text.train), ("held-out", text.held_out))
    )
    trained_on = Sequences(tokens, text.context)
    evaluated = Sequences(held_out[: _EVALUATED_SEQUENCES * recipe.text.context], recipe.text.context)
    model = _model(recipe, tokenizer)
    trainer = _trainer(recipe, model, trained_on, evaluated, output / "checkpoints", progress)
    began = time.monotonic()
    before = trainer.evaluate()["eval_loss"]
    trainer.train(resume_from_checkpoint=_last_checkpoint(output / "checkpoints"))
    after = trainer.evaluate()["eval_loss"]
    record = {
        "schema": 1,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": trainer.state.global_step * _tokens_a_step(recipe, trainer.accelerator.num_processes),
        "steps": trainer.state.global_step,
        "text_tokens": len(trained_on) * recipe.text.context,
        "seconds": time.monotonic() - began,
        "held_out_loss_before": before,
        "held_out_loss": after,
        "held_out_perplexity": math.exp(min(after, 700)),
        "log": trainer.state.log_history,
    }
    if trainer.accelerator.is_main_process:
        _save(model, tokenizer, recipe, output)
        _write_json(output / "training.json", record)
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return record


def _finished(recipe: TrainingRecipe, output: Path) -> Record | None:
    """The record of the finished run of this recipe in `output`, if that is what it holds."""
    if not output.exists():
        return None
    try:
        found = json.loads((output / "recipe.json").read_text("utf-8"))
    except FileNotFoundError:
        if any(output.iterdir()):
            raise UsageError(f"{output} exists and is not a training run", hint="choose another -o") from None
        return None
    except ValueError as error:
        raise Damaged(f"{output / 'recipe.json'} is not JSON: {error}", hint="delete the folder") from error
    if found != recipe.as_json():
        raise UsageError(f"{output} holds a run of another recipe", hint="choose another -o, or delete it")
    record = output / "training.json"
    return json.loads(record.read_text("utf-8")) if record.exists() else None


def _tokenizer(recipe: TrainingRecipe, work: Path, progress: Progress) -> Tokenizer:
    if recipe.checkpoint is not None:
        file = open_checkpoint(recipe.checkpoint).tokenizer_file
        if file is None:
            raise UsageError(f"{recipe.checkpoint} holds no tokenizer.json")
        return Tokenizer.from_file(str(file))
    file = work / f"tokenizer-{recipe.text.vocab}.json"
    if not file.exists():
        progress("train the tokenizer", 0, 0)
        temporary = file.with_suffix(".part")
        train_tokenizer(recipe.text.train, recipe.text.vocab, recipe.text.separator).save(str(temporary))
        temporary.replace(file)
    return Tokenizer.from_file(str(file))


def _begin(recipe: TrainingRecipe, tokenizer: Tokenizer) -> int | None:
    """The token that stands before a document: what the model begins a text with."""
    if recipe.checkpoint is None:
        return tokenizer.token_to_id(END_OF_TEXT)
    checkpoint = open_checkpoint(recipe.checkpoint)
    return checkpoint.bos_id if checkpoint.bos_id is not None else next(iter(checkpoint.eos_ids), None)


def _model(recipe: TrainingRecipe, tokenizer: Tokenizer) -> nn.Module:
    set_seed(recipe.training.seed)
    if recipe.model is not None:
        return LlamaForCausalLM(_config(recipe.model, recipe, tokenizer))
    model: nn.Module = AutoModelForCausalLM.from_pretrained(str(recipe.checkpoint), dtype=torch.float32)
    return model


def _config(model: NewModel, recipe: TrainingRecipe, tokenizer: Tokenizer) -> LlamaConfig:
    end = tokenizer.token_to_id(END_OF_TEXT)
    return LlamaConfig(
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


def _tokens_a_step(recipe: TrainingRecipe, processes: int) -> int:
    return recipe.training.batch * recipe.training.accumulate * recipe.text.context * processes


def _trainer(
    recipe: TrainingRecipe,
    model: nn.Module,
    trained_on: Sequences,
    evaluated: Sequences,
    checkpoints: Path,
    progress: Progress,
) -> DispersionTrainer:
    training, losses = recipe.training, recipe.losses
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    steps = max(1, training.tokens // _tokens_a_step(recipe, processes))
    every = max(1, steps // training.evaluations)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=training.batch,
        per_device_eval_batch_size=training.batch,
        gradient_accumulation_steps=training.accumulate,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup,
        weight_decay=training.weight_decay,
        adam_beta2=training.beta2,
        max_grad_norm=1.0,
        bf16=training.dtype == "bfloat16",
        seed=training.seed,
        logging_steps=every,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    )
    dispersion = losses.dispersion
    return DispersionTrainer(
        model=model,
        args=arguments,
        train_dataset=trained_on,
        eval_dataset=evaluated,
        callbacks=[_Reports(progress)],
        dispersion=None
        if dispersion is None
        else DispersionLoss(
            dispersion.variant,
            temperature=dispersion.temperature,
            clamp=dispersion.clamp,
            tokens=dispersion.tokens,
            layers=dispersion.layers,
        ),
        dispersion_weight=dispersion.weight if dispersion else 0.0,
        rounding=None
        if losses.rounding is None
        else Rounding(losses.rounding.recipes, losses.rounding.weight, losses.rounding.start),
    )


class _Reports(TrainerCallback):
    """Tells `progress` after every step, and nothing else: the base class prints its logs."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self._progress("train", state.global_step, state.max_steps)


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written whole: the trainer's state is the last of its files."""
    found = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").exists()]
    return str(max(found, key=lambda path: int(path.name.rpartition("-")[2]))) if found else None


def _save(model: nn.Module, tokenizer: Tokenizer, recipe: TrainingRecipe, output: Path) -> None:
    model.to(torch.bfloat16 if recipe.training.dtype == "bfloat16" else torch.float32)
    model.save_pretrained(output)  # type: ignore[operator]
    if recipe.checkpoint is None:
        PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=tokenizer,
            bos_token=END_OF_TEXT,
            eos_token=END_OF_TEXT,
            model_max_length=recipe.text.context,
        ).save_pretrained(output)
        return
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        if (recipe.checkpoint / name).exists():
            shutil.copyfile(recipe.checkpoint / name, output / name)


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps(value, indent=1, default=_plain), "utf-8")
    temporary.replace(file)


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else str(value)
