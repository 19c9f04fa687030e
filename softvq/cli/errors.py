"""Which errors are sentences for the user, and what they exit with."""

from softvq.config import ConfigError
from softvq.data.images import ImageError
from softvq.data.sources import DataError
from softvq.evaluation.metrics import MetricError
from softvq.hub import ModelError
from softvq.training.logs import LogError
from softvq.training.loop import Interrupted, TrainingError


def is_for_users(error: Exception) -> bool:
    """Errors whose message is written for the person at the terminal: ours, and the operating system's."""
    ours = ConfigError | ImageError | DataError | MetricError | ModelError | TrainingError | LogError | Interrupted
    return isinstance(error, ours | OSError)


def exit_code_of(error: Exception) -> int:
    """128 + the signal's number for an interrupted run, 2 for a wrong setting, else 1."""
    if isinstance(error, Interrupted):
        return 128 + error.signal
    return 2 if isinstance(error, ConfigError) else 1
