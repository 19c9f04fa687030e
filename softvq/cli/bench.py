"""softvq bench cost."""

from pathlib import Path
from typing import Annotated

from softvq.cli.options import Machine, Outcome, Whole, option


def cost(
    *rows: Annotated[str, option("Rows that --list names (default: all).", name="ROW")],
    list_rows: Annotated[bool, option("Name the rows and stop.", name="--list")] = False,
    model: Annotated[tuple[str, ...], option("A model of your own instead of rows; may be repeated.")] = (),
    batch_size: Annotated[int | None, Whole, option("Images at a time (default: 64, on a CPU 1).")] = None,
    steps: Annotated[int, Whole, option("Evaluations an image; the paper's SDE takes 250.")] = 50,
    guidance: Annotated[float, option("Guidance scale; 1 is none.")] = 1.75,
    repeats: Annotated[int, Whole, option("The fastest of so many counts.")] = 3,
    no_time: Annotated[bool, option("Count parameters and multiply-accumulates alone.")] = False,
    out: Annotated[Path, option("The folder of results.")] = Path("evaluations"),
    common: Machine = Machine(),
) -> Outcome:
    """Measure parameters, multiply-accumulates, memory and throughput, beside the paper's.

    ```
    softvq bench cost                    all rows of Tables 1 and 2, and the tokenizers
    softvq bench cost sit-xl-64 sit-xl-2-kl --batch-size 1 --repeats 1
    softvq bench cost --no-time          counts alone, in seconds
    softvq bench cost --model emoji-sit --model softvq-emoji-64
    ```

    The protocol: random weights (cost does not depend on them); --precision, --batch-size images at a time on one
    device; an image takes --steps evaluations of a SiT or DiT, with --guidance each of a doubled batch; the time of an
    evaluation is the fastest of --repeats after one that warms up, and images/s = batch / (steps × evaluation +
    decoding). A MAR takes --steps unmasking steps (at most its tokens), each an evaluation with the mean number of
    known tokens, and 100 of its head a token. Multiply-accumulates are those of linear and convolutional layers, one
    image, one evaluation, no guidance, as the paper counts (its Gflops). Memory is what tensors hold at once in one
    evaluation, weights included.
    """
    from softvq.evaluation.cost import ROWS, cost, cost_table
    from softvq.figures import table
    from softvq.files import check_writable

    if list_rows:
        about = [(name, f"Table {row.table}: {row.about}") for name, row in ROWS.items()]
        return Outcome({"rows": list(ROWS)}, table(about, left=2))
    check_writable(out, folder=True)
    result = cost(
        rows,
        models=model,
        steps=steps,
        guidance=guidance,
        batch_size=batch_size,
        repeats=repeats,
        timed=not no_time,
        **common.settings(),
    )
    whole = result.write(out)
    return Outcome(whole, f"{cost_table(result)}\n{whole['file']}")
