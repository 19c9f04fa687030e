"""Every call in the tests has its shapes checked (jaxtyping with beartype), on one thread, without a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

torch.set_num_threads(1)


def checked(function):
    """beartype that takes an int for a float, as Python does."""
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)


install_import_hook("softvq", "tests.conftest.checked")
