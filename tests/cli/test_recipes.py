"""`softvq recipes`."""

import json

from tests.cli.running import softvq


def test_recipes_lists_and_shows():
    code, out, _ = softvq("recipes")
    assert code == 0
    assert "softvq-l-64              0.61  SoftVQ-L: 64 tokens × 32, 256 px (Table 1)." in out
    code, out, _ = softvq("recipes", "emoji-64", "--json")
    assert json.loads(out)["tokenizer"]["tokens"] == 64
