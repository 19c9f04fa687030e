"""The command line as `python -m softvq`."""

from softvq.cli.main import entry

entry()
