"""Every call in the tests has its shapes checked (jaxtyping with beartype), on one thread, without a network."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each of the processes that tests start compiles everything anew
os.environ["OMP_NUM_THREADS"] = "1"  # numpy's threads too, and those of the processes that tests start
os.environ["NUMBA_NUM_THREADS"] = "1"  # UMAP's: with more of them, each later call of torch here would have as many

import pytest
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

torch.set_num_threads(1)
sys.dont_write_bytecode = False

# The files that take longest, which are begun first: begun last, one of them would keep one process busy alone.
LONGEST = (
    *("training/test_plan.py", "training/test_run_ranks.py", "cli/test_demo.py", "cli/test_train.py"),
    *("cli/test_main.py", "training/test_generator.py", "training/test_run_shares.py"),
    *("cli/test_evaluate.py", "test_benchmarks.py", "training/test_generator_ranks.py"),
    *("evaluation/test_functions.py", "recipes/test_paper.py", "test_studies.py", "training/test_step.py"),
    *("training/test_run_killed.py", "test_fuzz.py", "test_hub_real_client.py", "test_plugins.py"),
)


def checked(function):
    """beartype that takes an int for a float, as Python does."""
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)


install_import_hook("softvq", "tests.conftest.checked")


def pytest_configure(config: pytest.Config) -> None:
    """With pytest-xdist, files are begun in the order that they have here, not by how many tests they hold."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
