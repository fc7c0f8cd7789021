"""Imports run downward only, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "mfhca_cache"
CLI = Path(__file__).parents[1] / "cli"

#: Layer by layer, from the ground up. A module may import its own layer and those before it.
LAYERS = (
    ("errors", "labels", "spec", "progress", "files", "containers", "wav", "allocator", "processes"),
    ("manifest", "folds", "splits", "storage", "models", "device"),
    ("corpora", "extraction", "training"),
    ("distributed", "reporting"),
)
#: Parts of one layer that must not know of each other: the cache is the contract between the stages.
STRANGERS = (("extraction", "training"), ("corpora", "training"), ("corpora", "extraction"))


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


def part(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


MODULES = [path for path in sorted(LIBRARY.rglob("*.py")) if path != LIBRARY / "__init__.py"]


def test_every_module_has_a_layer() -> None:
    assert {part(path) for path in MODULES} == {name for layer in LAYERS for name in layer}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_imports_run_downward_only(path: Path) -> None:
    height = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    mine = part(path)
    for name in imported(path):
        if name.startswith("mfhca_cache."):
            other = name.split(".")[1]
            assert other != "cli", f"{path} imports the command line"
            assert height[other] <= height[mine], f"{mine} imports {other}, which lies above it"
            assert (mine, other) not in STRANGERS and (other, mine) not in STRANGERS, f"{mine} imports {other}"


@pytest.mark.parametrize(
    ("library", "home"),
    [
        ("transformers", ["extraction/checkpoint.py"]),
        ("h5py", ["storage/shard.py"]),
        ("librosa", ["extraction/audio.py", "extraction/mel.py"]),
        ("matplotlib", ["reporting/figures.py"]),
        ("jinja2", ["reporting/page.py"]),
    ],
)
def test_a_heavy_library_has_one_home(library: str, home: list[str]) -> None:
    users = [str(p.relative_to(LIBRARY)) for p in MODULES if any(n.split(".")[0] == library for n in imported(p))]
    assert users == home


def test_ray_is_known_in_one_place_and_loaded_when_it_is_needed() -> None:
    assert not [path for path in MODULES if "ray" in imported(path)]
    users = [str(path.relative_to(LIBRARY)) for path in MODULES if 'import_module("ray' in path.read_text()]
    assert users == ["distributed/cluster.py"]


def test_the_library_knows_no_click_and_never_prints() -> None:
    for path in MODULES:
        assert not {name.split(".")[0] for name in imported(path)} & {"click", "rich"}, path
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path


def test_training_and_reporting_load_neither_transformers_nor_librosa() -> None:
    code = (
        "import sys; import mfhca_cache.training.crossval, mfhca_cache.reporting.summary; "
        "sys.exit(str([n for n in ('transformers', 'librosa', 'click') if n in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "") or done.stderr.strip() == ""


def test_training_and_the_tables_of_a_report_wait_for_no_figures() -> None:
    code = (
        "import sys; import mfhca_cache.cli.train, mfhca_cache.cli.report; "
        "sys.exit(str([n for n in ('matplotlib', 'jinja2') if n in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_figures_are_drawn_without_pyplot() -> None:
    code = "import sys; import mfhca_cache.reporting.page; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_the_package_is_quick_and_loads_no_torch() -> None:
    code = "import sys, mfhca_cache; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_public_names_are_there_and_known_to_type_checkers() -> None:
    import mfhca_cache

    for name in mfhca_cache.__all__:
        assert getattr(mfhca_cache, name) is not None
    tree = ast.parse((LIBRARY / "__init__.py").read_text())
    stated = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mfhca_cache.")
        for alias in node.names
    }
    assert stated == {name: f"mfhca_cache.{home}" for name, home in mfhca_cache._HOMES.items()}
    assert {"plan_gap", "train_gap", "summarise_gap"} <= stated.keys()
