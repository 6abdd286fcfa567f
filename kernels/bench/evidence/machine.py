"""On what, from which commit, when and under which load figures were taken."""

import datetime
import os
import platform
from pathlib import Path
from typing import Final

from evidence.progress import ToolFailed, run

ROOT: Final = Path(__file__).parents[3]


def commit() -> str:
    """The commit of this source tree, and whether more than the results was changed since; "unknown" without git."""
    try:
        name = run(["git", "-C", ROOT, "rev-parse", "--short=10", "HEAD"]).strip()
        status = ["status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)kernels/bench/RESULTS.md"]
        changed = run(["git", "-C", ROOT, *status]).strip()
    except ToolFailed:
        return "unknown"
    return f"{name} with uncommitted changes" if changed else name


def cpu() -> str:
    text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    named = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return named[0] if named else platform.machine()


def load() -> str:
    """Load averages over 1, 5 and 15 minutes."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def facts() -> dict[str, object]:
    """What does not change during a run."""
    return {
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": f"{cpu()}, {len(os.sched_getaffinity(0))} cores",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
