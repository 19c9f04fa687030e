"""The house's order: who may import whom, how large a file and a function may be, and what importing costs.

The source is read, not imported; imports inside functions count.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import softvq

ROOT = Path(softvq.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# Room -> rooms it may import, besides itself.
ALLOWED = {
    "errors": set(),
    "published": set(),
    "files": {"errors"},
    "runtime": {"errors"},
    "plugins": {"errors"},
    "config": {"errors", "plugins"},
    "layers": set(),
    "optim": {"config", "errors", "runtime"},
    "distributed": {"errors", "files", "progress"},
    "progress": set(),
    "transports": {"errors"},
    "memory": set(),
    "randomness": set(),
    "hub": {"errors", "files"},
    "saving": {"config", "errors", "files", "hub", "plugins", "runtime"},
    "quantizers": {"config", "errors"},
    "pretrained": {"config", "errors", "files", "hub", "layers", "saving"},
    "data": {"config", "distributed", "errors", "files", "plugins", "progress", "randomness"},
    "released": {"config", "layers", "quantizers"},
    "tokenizer": {"config", "data", "errors", "files", "layers", "quantizers", "released", "saving"},
    "autoencoders": {"data", "errors", "files", "hub", "layers", "quantizers", "tokenizer"},
    "generators": {"config", "errors", "layers", "randomness", "released", "saving", "transports"},
    "losses": {"config", "distributed", "errors", "layers"},
    "figures": {"data", "errors", "files"},
    "models": {
        *("distributed", "errors", "files", "hub", "runtime", "saving", "released"),
        *("autoencoders", "generators", "tokenizer"),
    },
    "encoding": {"data", "distributed", "errors", "files", "models", "progress", "runtime"},
    "decoding": {"config", "data", "errors", "figures", "files", "models", "progress"},
    "statistics": {"data", "distributed", "errors", "files", "hub", "models", "progress", "runtime", "tokenizer"},
    "pipeline": {
        *("config", "data", "distributed", "errors", "figures", "files", "hub", "progress", "randomness", "runtime"),
        *("generators", "models", "saving", "transports"),
    },
    "evaluation": {
        *("config", "distributed", "errors", "files", "memory", "optim", "progress", "randomness", "runtime"),
        *("data", "figures", "pretrained", "published", "quantizers"),
        *("autoencoders", "generators", "models", "pipeline", "tokenizer"),
    },
    "training": {
        *("config", "distributed", "errors", "files", "layers", "memory", "optim", "progress", "randomness", "runtime"),
        *("data", "figures", "losses", "pretrained", "quantizers", "saving", "statistics"),
        *("generators", "models", "pipeline", "tokenizer", "evaluation"),
    },
    "recipes": {
        *("config", "data", "errors", "files", "generators", "hub", "layers", "losses", "optim", "published"),
        *("quantizers", "tokenizer", "training", "transports"),
    },
}
# The metrics of `evaluation` are pure functions of tensors: they know neither models nor data sets.
PURE = {"appearance", "baselines", "distribution", "frechet", "metrics"}
PURE_MAY = {"softvq.data.images", "softvq.errors", "softvq.evaluation.frechet"}
# Longer than where to ask: each is one idea, and would be two halves.
ASKED = {"layers.py", "saving.py", "pipeline.py", "report.py"}
TOP = {"cli", "web", "__init__", "__main__"}  # may import everything; `__init__` does so when it is asked
RECIPE_CLASSES = ("Config", "Recipe", "Augment", "Weight", "Sampling", "Guidance")


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> list[tuple[str, list[str], int]]:
    """(module, imported names, line) of every import of ours in a file, at any depth."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, [], node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            found.append((node.module, [alias.name for alias in node.names], node.lineno))
    return [(module, names, line) for module, names, line in found if module.split(".")[0] == "softvq"]


def rooms_imported(module: str, names: list[str]) -> set[str]:
    parts = module.split(".")
    return {parts[1]} if len(parts) > 1 else set(names) - {"__version__"}


def violations(path: Path) -> list[str]:
    room, found = room_of(path), []
    if room in TOP:
        return found
    for module, names, line in imports(path):
        for target in rooms_imported(module, names) - {room}:
            if target not in ALLOWED[room]:
                found.append(f"{path.relative_to(ROOT)}:{line} imports {target}, but {room} may not")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path):
    assert not violations(path)


def test_no_module_imports_itself_through_others():
    """The graph of modules, imports inside functions too: whoever reads one file need not have read it before."""
    names = {".".join(("softvq", *path.relative_to(ROOT).with_suffix("").parts)): path for path in MODULES}
    names = {name.removesuffix(".__init__"): path for name, path in names.items() if path != ROOT / "__init__.py"}
    graph = {name: {own for own in targets(path) if own in names} - {name} for name, path in names.items()}
    while graph:
        free = [name for name, below in graph.items() if not below & graph.keys()]
        assert free, f"these modules import each other: {sorted(graph)}"
        for name in free:
            del graph[name]


def targets(path: Path) -> set[str]:
    """The modules that a file imports: `from softvq.a import b` is `softvq.a.b` where that is a module."""
    found = set()
    for module, imported, _ in imports(path):
        for name in imported or [""]:
            inner = ROOT.parent / Path(*module.split("."), name)
            is_module = name and (inner.with_suffix(".py").exists() or (inner / "__init__.py").exists())
            found.add(f"{module}.{name}" if is_module else module)
    return found


def test_the_order_has_no_cycle():
    order: list[str] = []
    rooms = {room: set(targets) for room, targets in ALLOWED.items()}
    while rooms:
        free = [room for room, targets in rooms.items() if not targets & rooms.keys()]
        assert free, f"these rooms import each other: {sorted(rooms)}"
        order += free
        for room in free:
            del rooms[room]
    assert order.index("config") < order.index("training")


@pytest.mark.parametrize("name", sorted(PURE))
def test_metrics_know_neither_models_nor_data_sets(name: str):
    assert targets(ROOT / "evaluation" / f"{name}.py") <= PURE_MAY


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_command_line_stays_in_its_room(path: Path):
    """Nothing outside of cli/ takes a Namespace or names an option in what it says."""
    if room_of(path) in ("cli", "web", "__main__"):
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert "argparse" not in imported
    assert "Namespace" not in names
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise):
            texts = [
                one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)
            ]
            named = [text for text in texts if re.search(r"(^|[\s(])--[a-z]", text)]
            assert not named, f"{path}:{node.lineno} names an option: {named}"


@pytest.mark.parametrize(
    "path",
    sorted((ROOT.parent / "benchmarks").glob("*.py")) + sorted((ROOT.parent / "studies").glob("*.py")),
    ids=lambda p: p.name,
)
def test_benchmarks_and_studies_import_the_library_alone(path: Path):
    assert not [module for module, _, _ in imports(path) if module.startswith("softvq.cli")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_siblings_are_imported_by_module_path(path: Path):
    room = room_of(path)
    for module, names, line in imports(path):
        is_package = (ROOT / room).is_dir()
        through_init = module == f"softvq.{room}" and any(not (ROOT / room / f"{n}.py").exists() for n in names)
        assert not (is_package and through_init), f"{path}:{line} imports through its own package's __init__"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_recipes_import_configuration_classes_only(path: Path):
    if room_of(path) != "recipes" or path.name == "opening.py":
        return
    for module, names, line in imports(path):
        if not module.startswith(("softvq.recipes", "softvq.config", "softvq.errors")):
            for name in set(names) - {"published"}:
                assert name.endswith(RECIPE_CLASSES), f"{path}:{line} imports {name}, which configures nothing"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_a_sitting_and_a_function_a_screen(path: Path):
    text = path.read_text(encoding="utf-8")
    limit = 480 if path.name in ASKED else 400
    assert text.count("\n") <= limit, f"{path} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path}:{node.lineno} {node.name} has {length} lines"


def test_no_room_is_a_drawer_for_odds_and_ends():
    names = {part for path in MODULES for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not names & {"utils", "util", "common", "misc", "helpers"}


def test_a_forbidden_import_is_seen(tmp_path: Path, monkeypatch):
    module = tmp_path / "layers.py"
    module.write_text("def f():\n    from softvq.training import loop\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert violations(module) == ["layers.py:2 imports training, but layers may not"]


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_does_no_work():
    code = "import sys, softvq; print(sorted(m for m in ('torch', 'numpy', 'PIL') if m in sys.modules))"
    assert run_python(code).strip() == "[]"


def test_importing_costs_little_over_torch():
    code = (
        "import torch, time; start = time.perf_counter(); import softvq; softvq.Tokenizer; "
        "print(time.perf_counter() - start)"
    )
    assert min(float(run_python(code)) for _ in range(3)) < 1.0  # measured 0.2 s; machines are shared
