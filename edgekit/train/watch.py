"""How a run is heard and stopped: what the Hugging Face trainer does in sentences, and the signals that end it."""

import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from edgekit.errors import Diverged
from edgekit.train.checkpoints import seal
from edgekit.units import Seconds, rounded

Progress = Callable[[str, int, int], None]  # stage, steps done, steps in all
Tell = Callable[[str], None]  # a sentence for the person

_HEARD: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """While this lasts the first signal asks the run to save and stop; the next one does what it did before."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Processes of one run cannot stop at different steps, so there a signal ends each at once.
        if threading.current_thread() is threading.main_thread() and not dist.is_initialized():
            for number in _HEARD:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()


class Watch(TrainerCallback):
    """Tells how training goes on, seals what is saved, and stops it when it is asked to or has diverged."""

    def __init__(self, progress: Progress, tell: Tell, stop: Stop, *, tokens_a_step: int, seconds: float) -> None:
        """`seconds`: those of earlier parts of the run."""
        self._progress, self._tell, self._stop = progress, tell, stop
        self._tokens_a_step = tokens_a_step
        self._earlier = seconds
        self._began = self._logged = time.monotonic()
        self._first = self._logged_step = 0

    @property
    def seconds(self) -> float:
        """How long the run has been trained, in all its parts."""
        return self._earlier + time.monotonic() - self._began

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._first = self._logged_step = state.global_step
        self._began = self._logged = time.monotonic()
        self._progress("train", state.global_step, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress("train", state.global_step, state.max_steps)
        if self._stop.asked:
            self._tell(f"stopping after step {state.global_step}, which is saved; once more stops at once")
            control.should_save = control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "loss" not in logs or not state.is_world_process_zero:
            return
        now, step = time.monotonic(), state.global_step
        rate = (step - self._logged_step) * self._tokens_a_step / (now - self._logged)
        left = Seconds((now - self._began) / (step - self._first) * (state.max_steps - step))
        self._tell(
            f"step {step} of {state.max_steps}: loss {rounded(logs['loss'])}, {rounded(rate, 3)} tokens/s"
            + (f", about {left} left" if left else "")
        )
        self._logged, self._logged_step = now, step

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        loss = (metrics or {}).get("eval_loss", math.nan)
        if not math.isfinite(loss):
            raise Diverged(
                f"after step {state.global_step} the held-out loss is no longer a number",
                hint="delete the folder and lower training.learning_rate",
            )
        if state.is_world_process_zero and state.global_step > self._first:
            self._tell(f"step {state.global_step} of {state.max_steps}: held-out loss {rounded(loss)}")
        self._logged, self._logged_step = time.monotonic(), state.global_step

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if dist.is_initialized():
            dist.barrier()
        if state.is_world_process_zero:
            seal(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", self.seconds)
