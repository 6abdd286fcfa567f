"""What tests of training may ask for; all run on one thread, whatever else the machine does."""

from pathlib import Path

import pytest
import torch
from toy_recipe import write_recipe


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)
