"""Share a tokenizer or generator on the Hugging Face hub: weights, configuration, a model card with recipe and figures.

  softvq push runs/emoji-64 me/my-tokenizer
  softvq push runs/emoji-64 me/my-tokenizer --private --half

Needs an account: sign in once with `hf auth login`, or set HF_TOKEN. Anyone then loads it as `me/my-tokenizer`.
The card and config.json say how it was trained: the command, and the names of the data folders as you gave them.
"""

import argparse
from typing import Any

from softvq.cli.main import Usage


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model's or run's folder")
    parser.add_argument("name", metavar="OWNER/NAME", help="where it goes on the hub; made where it is missing")
    parser.add_argument("--private", action="store_true", help="a new repository is for you alone")
    parser.add_argument("--half", action="store_true", help="store float16: half the size, loaded as float32 again")


def run(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from softvq.models import open_model

    model = open_model(options.model)
    if not hasattr(model, "push_to_hub"):
        raise Usage(f"{options.model} is not softvq's to share")
    dtype = torch.float16 if options.half else torch.float32
    address = model.push_to_hub(options.name, private=options.private, dtype=dtype)
    if not options.json:
        print(f'uploaded to {address}; {model.kind.capitalize()}.from_pretrained("{options.name}") loads it')
    return {"model": options.model, "name": options.name, "address": address}
