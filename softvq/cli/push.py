"""softvq push."""

from typing import Annotated

from softvq.cli.options import Common, Outcome, Usage, option


def push(
    model: Annotated[str, option("A model's or run's folder.", name="MODEL")],
    name: Annotated[str, option("Where it goes on the hub; made where it is missing.", name="OWNER/NAME")],
    /,
    *,
    private: Annotated[bool, option("A new repository is for you alone.")] = False,
    half: Annotated[bool, option("Store float16: half the size, loaded as float32 again.")] = False,
    common: Common = Common(),
) -> Outcome:
    """Share a tokenizer or generator on the Hugging Face hub: weights, configuration, a card with recipe and figures.

    ```
    softvq push runs/emoji-64 me/my-tokenizer
    softvq push runs/emoji-64 me/my-tokenizer --private --half
    ```

    Needs an account: sign in once with `hf auth login`, or set HF_TOKEN. Anyone then loads it as `me/my-tokenizer`; its
    card and config.json say how it was trained: the command, and the names of the data folders as you gave them.
    """
    import torch

    from softvq.models import open_model

    opened = open_model(model)
    if not hasattr(opened, "push_to_hub"):
        raise Usage(f"{model} is not softvq's to share.")
    address = opened.push_to_hub(name, private=private, dtype=torch.float16 if half else torch.float32)
    return Outcome(
        {"model": model, "name": name, "address": address},
        f'uploaded to {address}; {opened.kind.capitalize()}.from_pretrained("{name}") loads it',
    )
