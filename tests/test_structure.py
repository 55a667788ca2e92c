"""How the house is built: imports point back along the data flow, files stay small, torch comes when it is needed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import clipcap

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "clipcap"
MAX_LINES = 500
MAX_FUNCTION_LINES = 60
EXTRAS = (
    "open_clip",
    "timm",
    "pillow_heif",
    "peft",
    "pycocoevalcap",
    "tensorboard",
    "wandb",
    "webdataset",
    "faiss",
    "gradio",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "playwright",
    "pytest",
    "hypothesis",
)

# The floors of the house: an import goes down, never up and never to a neighbour on the same floor.
FLOORS = {
    "errors": 0,
    "options": 1,
    "flags": 1,
    "runtime": 2,
    "images": 3,
    "sources": 4,
    "models": 4,
    "features": 5,
    "retrieval": 6,
    "prompts": 7,
    "scoring": 7,
    "captioning": 8,
    "deploy": 9,
    "evaluation": 9,
    "training": 10,
    "classification": 10,
    "contrastive": 11,
    "clip_gpt": 11,
    "text_to_image": 11,
    "fit": 12,
    "demo": 12,
    "app": 13,
    "cli": 14,
    "__main__": 15,
}


def test_every_data_file_of_the_package_is_installed():
    patterns = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    installed = {
        path
        for package, several in patterns.items()
        for pattern in several
        for path in REPO.joinpath(*package.split(".")).glob(pattern)
    }
    data = {
        path
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert len(data) > 5 and data <= installed


def module_name(path: Path) -> str:
    """`clipcap/sources/food.py` → `sources.food`; the package itself is the empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def source_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """The syntax tree of a file, its module first; each file is parsed once."""
    return tuple(ast.walk(ast.parse(source_of(path))))


@cache
def imports(path: Path) -> set[str]:
    """Our modules that a file imports, at its top or within its functions."""
    found = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import; name the module in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            public = [clipcap._PUBLIC.get(alias.name) for alias in node.names if node.module == "clipcap"]
            found |= {name if name.removeprefix("clipcap.") in MODULES else node.module for name in names}
            found |= {name for name in public if name}
    return {name.removeprefix("clipcap.") for name in found if name.startswith("clipcap.")}


def package_of(module: str) -> str:
    """`sources.food` → `sources`."""
    return module.partition(".")[0]


@pytest.mark.parametrize("module", [module for module in MODULES if module])
def test_imports_go_down_a_floor(module):
    package = package_of(module)
    assert package in FLOORS, f"{module}: give {package} its floor in FLOORS"
    for imported in imports(MODULES[module]):
        other = package_of(imported)
        below = other == package or FLOORS[other] < FLOORS[package]
        assert below, f"{module} must not import {imported}: move one of them, or a wall"


def test_there_are_no_circles():
    arrows = {module: imports(path) for module, path in MODULES.items() if module}
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' ← '.join(error.args[1])}")


@pytest.mark.parametrize("module", MODULES)
def test_no_file_is_too_long(module):
    assert len(source_of(MODULES[module]).splitlines()) <= MAX_LINES


@pytest.mark.parametrize("module", MODULES)
def test_no_function_is_too_long(module):
    functions = [n for n in nodes_of(MODULES[module]) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f.name for f in functions if f.end_lineno - f.lineno >= MAX_FUNCTION_LINES] == []


def test_config_files_import_only_options_and_other_configs():
    for module in (name for name in MODULES if name.split(".")[-1] == "config"):
        strange = {
            name for name in imports(MODULES[module]) if name.split(".")[-1] not in ("config", "options", "errors")
        }
        assert not strange, f"{module} imports {strange}: --help would wait for them"


def test_no_package_takes_a_private_name_of_another():
    for module, path in MODULES.items():
        for node in nodes_of(path):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("clipcap."):
                other = node.module.removeprefix("clipcap.").rpartition(".")[0]
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert not private or module.startswith(other), f"{module} imports {private} of {node.module}"


def test_unpickling_happens_only_in_safe_load():
    for module, path in MODULES.items():
        if not module.startswith("runtime.safe_load"):
            source = source_of(path)
            assert not re.search(
                r"\b(pickle|_pickle)\.(loads?|Unpickler)\b|torch\.load\(|torch\.jit\.load\(", source
            ), module


def test_there_is_no_room_for_odds_and_ends():
    assert not {"utils", "util", "helpers", "common", "misc"} & {name.split(".")[-1] for name in MODULES}


def docstring_of(path: Path) -> str | None:
    return ast.get_docstring(nodes_of(path)[0])


def test_every_module_says_what_it_is():
    assert not [name for name, path in MODULES.items() if source_of(path).strip() and not docstring_of(path)]


def test_no_text_names_a_place_on_somebodys_machine():
    files = [REPO / "README.md", REPO / "CHANGELOG.md", REPO / "train.py", REPO / "predict.py", *MODULES.values()]
    files += [path for folder in ("docs", "parse") for path in (REPO / folder).glob("*.*") if path.suffix != ".jpg"]
    private = re.compile(r"\.\./shared|(?<![\w.])/(?:work|root|home|tmp|Users|mnt)/")
    found = {path.name: private.findall(source_of(path)) for path in files}
    assert {name: places for name, places in found.items() if places} == {}


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


HEAVY = (
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "clip",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "pandas",
    "pyarrow",
    "scipy",
    "sklearn",
    "matplotlib",
    "PIL",
    "tqdm",
    "asyncio",
    *EXTRAS,
)


@pytest.mark.parametrize(
    "code", ["import clipcap", "import clipcap.cli.main", "import clipcap.cli.main; clipcap.cli.main.build_parser()"]
)
def test_the_front_door_loads_nothing_heavy(code):
    loaded = run_python(f"import sys; {code}; print([name for name in {HEAVY} if name in sys.modules])")
    assert loaded.strip() == "[]"


def test_reading_a_set_loads_no_torch():
    heavy = ("torch", "transformers")
    code = f"import sys, clipcap.sources.readers; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_reading_features_loads_no_encoder():
    heavy = ("clip", "torchvision", "transformers")
    code = f"import sys, clipcap.features.files; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_every_module_imports_with_the_base_dependencies_alone():
    names = [f"clipcap.{module}" for module in MODULES if module and module != "__main__"]
    run_python(
        "import importlib, sys\n"
        f"for name in {EXTRAS}: sys.modules[name] = None\n"  # an import of it raises ImportError
        f"for name in {names}: importlib.import_module(name)"
    )


def test_every_package_goes_into_the_wheel():
    from setuptools import find_packages

    options = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    written = {path.parent.relative_to(REPO).as_posix().replace("/", ".") for path in PACKAGE.rglob("__init__.py")}
    assert set(find_packages(str(REPO), **options)) == written
