"""One training run: from a recipe to a Hugging Face folder, continued where it stopped if it was killed.

The folder holds, while the run goes on, `recipe.json` (the recipe with every default, and digests of what it names) and
`checkpoints/`; at the end the model with its tokenizer, a model card, and `training.json` (the held-out curve,
condensation by layer, the sweep, seconds), whose presence says that the run is finished.

A run is told from another by recipe.json without [sweep]: by what the files contain, not by where they lie. Where only
[sweep] has changed, a finished run is measured again.
"""

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerState, TrainingArguments
from transformers.utils import logging

import edgekit
from edgekit.cache import sync_folder, sync_tree
from edgekit.checkpoint import open_checkpoint
from edgekit.disk import UNFINISHED, make_folder, make_hidden, told_as, write_whole, writing
from edgekit.errors import Damaged, DoesNotFit, UsageError
from edgekit.schema import problems
from edgekit.train.card import model_card
from edgekit.train.checkpoints import Saved, last_saved
from edgekit.train.dispersion import DispersionLoss
from edgekit.train.recipe import TrainingRecipe
from edgekit.train.start import Start, make_model, make_start
from edgekit.train.survey import dispersion_cost, survey
from edgekit.train.text import END_OF_TEXT, digest
from edgekit.train.trainer import DispersionTrainer, Rounding
from edgekit.train.watch import Progress, Stop, Tell, Watch

Record = dict[str, Any]

# Other processes wait this long for the first to tokenize, and to measure what was trained.
_LONGEST_WAIT_SECONDS: Final = 7 * 24 * 3600
_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


def train(
    recipe: TrainingRecipe, output: Path, *, work: Path, progress: Progress, tell: Tell = lambda sentence: None
) -> Record:
    """Trains as the recipe says, writes the model to `output`, and returns what training.json holds.

    Tokens and tokenizer are kept in `work`, for other runs on the same text. A run that was interrupted goes on from
    its last whole checkpoint; one that is finished is not run again. SIGINT, SIGTERM and SIGHUP are answered after the
    step at work, which is saved. Under `accelerate launch` each process calls this; the first one writes.

    Raises:
        UsageError: `output` holds another run, the text is too short, or the recipe has arms.
        Damaged: a text, checkpoint or run that is cut short or altered.
        DoesNotFit: too little memory or disk.
        KeyboardInterrupt: the run was asked to stop.
    """
    if recipe.arms:
        raise UsageError("the recipe has [arms], which are several runs", hint="edgekit train --twins trains them all")
    arguments = _arguments(recipe, output / "checkpoints")
    is_first = arguments.process_index == 0
    with _quiet(), _no_room(output):
        with arguments.main_process_first(local=False):
            resolved = _resolved(recipe, arguments.world_size)
            record = _finished(resolved, output)
            if record is not None and record.get("swept") == resolved["sweep"]:
                return record
            make_folder(work)
            start = make_start(recipe, work, processes=arguments.world_size, progress=progress)
            if is_first and record is None:
                tell(start.as_sentence())
                make_folder(output)
                _write_json(output / "recipe.json", resolved)
            saved = last_saved(output / "checkpoints", tell)
        if record is None:
            record = _trained(start, arguments, saved, output, progress, tell)
        if is_first:
            record |= {"swept": resolved["sweep"]} | survey(open_checkpoint(output), start, progress, tell)
            _write_json(output / "recipe.json", resolved)
            write_whole(output / "README.md", model_card(output.resolve().name, resolved, record))
            _write_json(output / "training.json", record)
            sync_folder(output)
            for left in (output / "checkpoints", *output.glob(f"{UNFINISHED}*")):
                left.unlink() if left.is_file() else shutil.rmtree(left, ignore_errors=True)
    return record


def _resolved(recipe: TrainingRecipe, processes: int) -> dict[str, Any]:
    text = recipe.text
    made_from: dict[str, Any] = {"train": [*map(digest, text.train)], "held_out": [*map(digest, text.held_out)]}
    if twice := set(made_from["train"]) & set(made_from["held_out"]):
        names = [file.name for file in text.held_out if digest(file) in twice]
        raise UsageError(f"{', '.join(names)} is in text.train and in text.held_out", hint="hold out another text")
    if recipe.checkpoint is not None:
        made_from["from"] = open_checkpoint(recipe.checkpoint).digest
    return {"schema": 1, "processes": processes, **recipe.as_json(), "made_from": made_from}


def _finished(resolved: Mapping[str, Any], output: Path) -> Record | None:
    """The record of the finished run in `output`, if that is what it holds."""
    if not output.exists():
        return None
    found = _read_json(output / "recipe.json")
    if found is None:
        if not output.is_dir() or any(not file.name.startswith(UNFINISHED) for file in output.iterdir()):
            raise UsageError(f"{output} exists and is not a training run", hint="choose another -o")
        return None
    other = [name for name in resolved if name != "sweep" and found.get(name) != resolved[name]]
    if other:
        raise UsageError(
            f"{output} holds a run of another recipe, which differs in {', '.join(other)}",
            hint="choose another -o, or delete it",
        )
    record = _read_json(output / "training.json")
    if record is not None:
        schema = json.loads(files("edgekit.train").joinpath("training.schema.json").read_text("utf-8"))
        if wrong := list(problems(record, schema)):
            raise Damaged(
                f"{output / 'training.json'} is not what a training leaves: {'; '.join(wrong[:5])}",
                hint="delete it, and the same command trains again",
            )
    return record


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise Damaged(f"{file} is not JSON: {error}", hint="delete the folder") from error
    if not isinstance(found, dict):
        raise Damaged(f"{file} is not a JSON object", hint="delete the folder")
    return found


def _arguments(recipe: TrainingRecipe, checkpoints: Path) -> TrainingArguments:
    training = recipe.training
    return TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=training.batch,
        per_device_eval_batch_size=training.batch,
        gradient_accumulation_steps=training.accumulate,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        weight_decay=training.weight_decay,
        adam_beta2=training.beta2,
        max_grad_norm=1.0,
        bf16=training.dtype == "bfloat16",
        seed=training.seed,
        eval_strategy="steps",
        save_strategy="steps",
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        ddp_timeout=_LONGEST_WAIT_SECONDS,
    )


def _trained(
    start: Start, arguments: TrainingArguments, saved: Saved | None, output: Path, progress: Progress, tell: Tell
) -> Record:
    """The record of the run after its last step; the first process has written the model."""
    every = max(1, start.steps // start.recipe.training.evaluations)
    arguments.max_steps = start.steps
    # Of a share transformers would make the same, but one step of the share 1.
    arguments.warmup_steps = math.ceil(start.recipe.training.warmup * start.steps)
    arguments.eval_steps = arguments.save_steps = every
    arguments.logging_steps = max(1, every // 10)
    model = make_model(start)
    with Stop() as stop:
        watch = Watch(progress, tell, stop, tokens_a_step=start.tokens_a_step, seconds=saved.seconds if saved else 0.0)
        trainer = _trainer(start, model, arguments, watch)
        before = trainer.evaluate()["eval_loss"]
        if arguments.world_size > 1:
            # accelerate would take a model that it has prepared for evaluation as wrapped, and share no gradients.
            del model._is_accelerate_prepared
        if saved is not None and saved.step >= start.steps:
            load_model(model, saved.folder / "model.safetensors")
            trainer.state = TrainerState.load_from_json(str(saved.folder / "trainer_state.json"))
            seconds = saved.seconds
        else:
            if saved is not None:
                tell(f"going on after step {saved.step} of {start.steps}")
            trainer.train(resume_from_checkpoint=None if saved is None else str(saved.folder))
            seconds = watch.seconds
        if trainer.state.global_step < start.steps:
            raise KeyboardInterrupt
        trainer.settle()
        stored = _round_to_stored(model, start.recipe)  # so that what is measured is what is saved
        trainer.remove_callback(watch)  # the last of them was told
        after = trainer.evaluate()["eval_loss"]
        cost = None
        if arguments.process_index == 0:
            cost = dispersion_cost(trainer, model, start.trained_on) if trainer.dispersion is not None else None
            _save(model.to(stored), start, output)
        if stop.asked:  # after the last step, too
            raise KeyboardInterrupt
    return {
        "schema": 1,
        "made_with": {
            "edgekit": edgekit.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": str(arguments.device),
            "threads": torch.get_num_threads(),
        },
        "parameters": start.parameters,
        "tokens": start.tokens(start.steps),
        "steps": start.steps,
        "text_tokens": len(start.trained_on) * start.recipe.text.context,
        "seconds": seconds,
        "held_out_loss_before": before,
        "held_out_loss": after,
        "held_out_perplexity": math.exp(min(after, 700)),
        "dispersion_cost": cost,
        "log": trainer.state.log_history,
    }


def _trainer(start: Start, model: nn.Module, arguments: TrainingArguments, watch: Watch) -> DispersionTrainer:
    dispersion, rounding = start.recipe.losses.dispersion, start.recipe.losses.rounding
    trainer = DispersionTrainer(
        model=model,
        args=arguments,
        train_dataset=start.trained_on,
        eval_dataset=start.evaluated,
        callbacks=[watch],
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
        rounding=None if rounding is None else Rounding(**asdict(rounding)),
    )
    trainer.remove_callback(PrinterCallback)  # to stdout
    return trainer


def _save(model: nn.Module, start: Start, output: Path) -> None:
    """Writes model and tokenizer to `output`, each file whole or not at all."""
    folder = make_hidden(UNFINISHED, output)
    try:
        with told_as(folder, output):
            model.config.use_cache = True  # type: ignore[union-attr]  # training turns it off
            model.save_pretrained(folder)  # type: ignore[operator]
            _save_tokenizer(start, folder)
            sync_tree(folder)
            mode = (folder / "config.json").stat().st_mode  # weights are written for their owner alone
            for file in folder.iterdir():
                file.chmod(mode)
                file.replace(output / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _round_to_stored(model: nn.Module, recipe: TrainingRecipe) -> torch.dtype:
    """The type that the weights are stored in; they get the values that they have in it."""
    stored = _stored_type(model, recipe)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(stored).to(parameter.dtype)
    return stored


def _stored_type(model: nn.Module, recipe: TrainingRecipe) -> torch.dtype:
    """bfloat16 for a model trained in it; with a grid float16 if every matrix is exact in it, else float32.

    Norms and biases are on no grid: they are rounded to the type.
    """
    if recipe.losses.rounding is None or recipe.losses.rounding.grid is None:
        return torch.bfloat16 if recipe.training.dtype == "bfloat16" else torch.float32
    for parameter in model.parameters():
        half = parameter.half()
        if not torch.equal(half.float(), parameter) if parameter.ndim == 2 else not half.isfinite().all():
            return torch.float32
    return torch.float16


def _save_tokenizer(start: Start, folder: Path) -> None:
    if start.checkpoint is None:
        PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=start.tokenizer,
            bos_token=END_OF_TEXT,
            eos_token=END_OF_TEXT,
            model_max_length=start.recipe.text.context,
        ).save_pretrained(folder)
        return
    for name in _TOKENIZER_FILES:
        if (start.checkpoint.path / name).exists():
            with writing(folder / name):
                shutil.copyfile(start.checkpoint.path / name, folder / name)


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    write_whole(file, json.dumps(_plain(value), indent=1, allow_nan=False))


def _plain(value: object) -> object:
    """`value` as JSON has it: numbers that are not finite are null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers neither logs nor shows bars of its own while this lasts."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _no_room(output: Path) -> Iterator[None]:
    """While this lasts what torch and safetensors raise about full memory and disks is raised as what it is."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _out_of_memory() from error
    except (RuntimeError, SafetensorError) as error:
        text = str(error)
        if "DefaultCPUAllocator" in text:
            raise _out_of_memory() from error
        if any(sign in text for sign in ("PytorchStreamWriter", os.strerror(errno.ENOSPC), os.strerror(errno.EFBIG))):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output)) from error
        raise


def _out_of_memory() -> DoesNotFit:
    return DoesNotFit("there is too little memory to train", hint="lower training.batch and raise training.accumulate")
