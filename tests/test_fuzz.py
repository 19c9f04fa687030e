"""Thousands of damaged model folders: see `tests.fuzz`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits its memory as Linux does")
def test_each_damaged_folder_loads_or_gets_a_sentence_quickly():
    run = subprocess.run([sys.executable, "-m", "tests.fuzz", "2600"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["cases"] == 2600
    assert result["failures"] == []
    outcomes = result["outcomes"]
    assert outcomes["flip_data loaded"] > 300  # a flipped data bit is another number, seldom none
    for damage in ("flip_header", "truncate", "other_dtype", "huge_shape", "not_a_number"):
        assert outcomes[f"{damage} refused"] >= 170
        assert outcomes.get(f"{damage} loaded", 0) < 20
