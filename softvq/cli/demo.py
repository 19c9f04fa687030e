"""softvq demo."""

from pathlib import Path
from typing import Annotated

from softvq.cli.options import BUNDLED_TOKENIZER, Machine, Outcome, Usage, Whole, Workers, option

_RECIPE = "emoji-64-quick"


def demo(
    *,
    train: Annotated[bool, option(f"Train {_RECIPE} from scratch first (some minutes), and use that.")] = False,
    steps: Annotated[int | None, Whole, option("With --train: how many steps (default: the recipe's).")] = None,
    out: Annotated[Path, option("The folder to write.")] = Path("softvq-demo"),
    workers: Workers = 2,
    common: Machine = Machine(),
) -> Outcome:
    """Reconstruct the bundled validation images with the bundled tokenizer: no network, no GPU, no download.

    `softvq demo`, or `softvq demo --train`.

    Writes the picture and prints PSNR and SSIM beside PCA and box-downsampling with the same number of floats. --train
    first trains the small recipe from scratch for some minutes and uses the result.
    """
    from softvq.evaluation.demonstration import demonstrate
    from softvq.figures import save_picture
    from softvq.files import check_writable
    from softvq.models import Coder, load_tokenizer
    from softvq.recipes.opening import open_recipe
    from softvq.runtime import pick_device
    from softvq.training.options import Intervals, RunOptions
    from softvq.training.run import train as run
    from softvq.training.tokenizer import TokenizerTask

    if steps is not None and not train:
        raise Usage("--steps goes with --train.")
    picture = out / "reconstruction.png"
    check_writable(picture)
    model = BUNDLED_TOKENIZER
    if train:
        recipe = open_recipe(_RECIPE, changes={} if steps is None else {"steps": steps})
        options = RunOptions(out / "run", **common.settings(), workers=workers, intervals=Intervals(samples=200))
        model = str(run(TokenizerTask(recipe), options))
    coder = Coder(load_tokenizer(model).to(pick_device(common.device)), common.precision)
    shown = demonstrate(coder, f"softvq ({model})")
    save_picture(shown.picture, picture)
    result = {"model": str(model), **shown.to_dict(), "picture": str(picture)}
    return Outcome(result, f"{shown}\npicture: {picture}")
