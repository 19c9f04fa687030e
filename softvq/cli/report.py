"""softvq report."""

from pathlib import Path
from typing import Annotated

from softvq.cli.options import Common, Outcome, option
from softvq.errors import counted


def report(
    folder: Annotated[Path, option("The folder of results.", name="FOLDER")] = Path("evaluations"),
    /,
    *,
    out: Annotated[Path | None, option("The Markdown file (default: report.md in the folder).")] = None,
    common: Common = Common(),
) -> Outcome:
    """Make tables and figures of measured results, beside the paper's: Markdown from a folder of results.

    ```
    softvq report
    softvq report evaluations --out results.md
    ```

    Reads what softvq evaluate, probe, latents and bench wrote. A table holds only figures of one protocol (images,
    crop, feature network and its weights, resizing, reference, precision); others get a table of their own. The paper's
    figures stand beside those of its recipes, and the table says whether its protocol is the paper's.
    """
    from softvq.evaluation.report import report

    made = report(folder, out)
    left_out = "".join(f"\nleft out: {reason}" for reason in made.left_out)
    return Outcome(
        {
            "report": str(made.file),
            "results": made.results,
            "figures": [str(figure) for figure in made.figures],
            "left_out": list(made.left_out),
        },
        f"{counted(made.results, 'result')} in {made.file}{left_out}",
    )
