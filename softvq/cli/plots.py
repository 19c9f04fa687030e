"""matplotlib, where it is installed, and figures written whole or not at all."""

from pathlib import Path
from typing import Any

from softvq.cli.main import Failure
from softvq.files import atomic


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files."""
    try:
        import matplotlib
    except ImportError:
        raise Failure("figures need a package: pip install 'softvq[plots]'.") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: Path) -> None:
    """As PNG; the figure is closed."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    pyplot().close(figure)
