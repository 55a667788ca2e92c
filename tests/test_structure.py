"""How the house is built: imports point back along the data flow, files stay small, torch comes when it is needed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import clipcap

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "clipcap"
MAX_LINES = 300  # beyond, a module is two stages in one room
EXTRAS = (
    "open_clip",
    "peft",
    "pycocoevalcap",
    "tensorboard",
    "wandb",
    "webdataset",
    "faiss",
    "gradio",
    "playwright",
    "pytest",
    "hypothesis",
)

# The rooms along the data flow, and the rooms that each may import from (`errors` stands open to all).
# A room is a module or a package; a module with a line of its own is a room apart from its package.
WALL = {
    "errors": "",
    "config": "",
    "flags": "",
    "start_up": "",
    "contrastive_config": "config",
    "train_config": "config",
    "retrieval_config": "config",
    "text": "",
    "ptb": "",
    "java": "ptb",
    "caption_tokens": "ptb java",
    "bootstrap": "",
    "metrics": "ptb java caption_tokens bootstrap rouge",
    "clip_score": "",
    "rouge": "",
    "curves": "",
    "atomic": "hub",
    "pooling": "",
    "sources": "config text",
    "images": "sources",
    "sources.report": "text sources images",
    "sources.download": "atomic sources images",
    "bundled": "",
    "hub": "bundled",
    "process_group": "",
    "launch": "config hub",
    "scripted": "features",
    "tensor_files": "",
    "openai_clip": "bundled atomic hub scripted tensor_files",
    "packed": "",
    "image_tower": "packed",
    "encoders": "hub openai_clip image_tower pooling",
    "features": "atomic",
    "feature_tools": "config text features",
    "bad_images": "text atomic",
    "partial": "atomic",
    "interrupts": "",
    "decoders": "interrupts",
    "encoding": "config hub sources images encoders decoders interrupts partial",
    "lm": "bundled hub",
    "parsing": "config launch sources sources.report encoders encoding features bad_images partial lm",
    "token_file": "features",
    "order": "features",
    "dataset": "features token_file order",
    "mapping": "",
    "head_loss": "",
    "shared_prefix": "",
    "last_block": "",
    "model": "config mapping head_loss last_block shared_prefix",
    "compiling": "hub model",
    "kv_cache": "",
    "hypotheses": "config kv_cache last_block model",
    "beam": "config hypotheses",
    "sampling": "config hypotheses",
    "decoding": "config model hypotheses beam sampling",
    "mistaken": "",
    "reference": "config features atomic hub lm mistaken model tensor_files",
    "checkpoint": "bundled config atomic hub lm mistaken model reference",
    "exporting": "features hub model reference checkpoint",
    "optimiser": "config",
    "task": "",
    "run_folder": "config atomic checkpoint",
    "loop": "config atomic hub launch checkpoint optimiser task run_folder tensor_files",
    "feature_task": "config train_config text metrics features dataset shared_prefix model decoding",
    "caption_task": "config train_config features dataset model compiling decoding checkpoint launch optimiser "
    "feature_task",
    "training_features": "train_config text openai_clip features",
    "training": "config train_config text hub features lm model checkpoint launch run_folder loop caption_task "
    "training_features",
    "int8": "",
    "captioner": "config text hub images int8 packed encoders model decoding checkpoint",
    "prediction": "bundled config text atomic hub images features decoding captioner",
    "retrieval": "features",
    "catalogue": "features",
    "index_parts": "features retrieval catalogue",
    "faiss_index": "retrieval",
    "index": "retrieval_config atomic features retrieval catalogue index_parts faiss_index",
    "indexing": "retrieval_config atomic features retrieval catalogue index_parts faiss_index index",
    "grid": "images",
    "matches": "text atomic index grid",
    "report": "atomic images",
    "evaluation_config": "config",
    "caption_files": "text features",
    "evaluation": "evaluation_config text atomic launch encoders features clip_score metrics caption_files captioner "
    "prediction report",
    "comparison": "evaluation_config text bootstrap caption_files metrics report evaluation",
    "searching": "retrieval_config images encoders index matches",
    "retrieval_cli": "flags start_up retrieval_config indexing searching",
    "clip_gpt_config": "config train_config",
    "interleaved": "bundled clip_gpt_config config text atomic hub encoders features dataset lm head_loss model "
    "decoding metrics mistaken checkpoint launch run_folder loop feature_task training_features captioner retrieval "
    "index matches",
    "clip_gpt_cli": "flags start_up clip_gpt_config prediction interleaved",
    "towers": "contrastive_config hub openai_clip pooling encoders",
    "pictures": "decoders sources images encoders",
    "pairs": "sources dataset pictures towers",
    "clip_loss": "pictures towers",
    "held_out": "sources retrieval towers pictures pairs",
    "contrastive": "contrastive_config text sources launch bad_images dataset loop curves towers pictures pairs "
    "clip_loss held_out run_folder",
    "app_config": "config",
    "app": "app_config config text images encoders features model decoding captioner prediction index report "
    "interleaved demo",
    "app_cli": "flags start_up app_config app",
    "doctor": "openai_clip encoders",
    "cli": "everything",
    "__main__": "cli",
    "demo": "everything",
}


def module_name(path: Path) -> str:
    """`clipcap/sources/food.py` → `sources.food`; the package itself is the empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Our modules that a file imports, at its top or within its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import; name the module in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            public = [clipcap._PUBLIC.get(alias.name) for alias in node.names if node.module == "clipcap"]
            found |= {name if name.removeprefix("clipcap.") in MODULES else node.module for name in names}
            found |= {name for name in public if name}
    return {name.removeprefix("clipcap.") for name in found if name.startswith("clipcap.")}


def room_of(module: str) -> str:
    """The longest name on the wall that the module is, or lies in."""
    parts = module.split(".")
    rooms = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((room for room in rooms if room in WALL), "")


@pytest.mark.parametrize("module", [module for module in MODULES if module])
def test_imports_point_back_along_the_flow(module):
    room = room_of(module)
    assert room, f"{module} has no room yet: give it a line in WALL, with what it may import"
    allowed = set(WALL) if WALL[room] == "everything" else {*WALL[room].split(), "errors", room}
    for imported in imports(MODULES[module]):
        assert room_of(imported) in allowed, f"{module} must not import {imported}: move one of them, or the wall"


def test_there_are_no_circles():
    arrows = {module: imports(path) for module, path in MODULES.items() if module}
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' ← '.join(error.args[1])}")


@pytest.mark.parametrize("module", MODULES)
def test_no_file_is_too_long(module):
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_there_is_no_room_for_odds_and_ends():
    assert not {"utils", "util", "helpers", "common", "misc"} & {name.split(".")[-1] for name in MODULES}


def test_every_module_says_what_it_is():
    sources = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
    assert not [
        name for name, source in sources.items() if source.strip() and not ast.get_docstring(ast.parse(source))
    ]


def test_no_text_names_a_place_on_somebodys_machine():
    files = [REPO / "README.md", REPO / "CHANGELOG.md", REPO / "train.py", REPO / "predict.py", *MODULES.values()]
    files += [path for folder in ("docs", "parse") for path in (REPO / folder).glob("*.*") if path.suffix != ".jpg"]
    private = re.compile(r"\.\./shared|(?<![\w.])/(?:work|root|home|tmp|Users|mnt)/")
    found = {path.name: private.findall(path.read_text(encoding="utf-8")) for path in files}
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
    "code", ["import clipcap", "import clipcap.cli", "import clipcap.cli; clipcap.cli.build_parser()"]
)
def test_the_front_door_loads_nothing_heavy(code):
    loaded = run_python(f"import sys; {code}; print([name for name in {HEAVY} if name in sys.modules])")
    assert loaded.strip() == "[]"


def test_reading_a_set_loads_no_torch():
    code = "import sys, clipcap.sources; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_every_module_imports_with_the_base_dependencies_alone():
    names = [f"clipcap.{module}" for module in MODULES if module and module != "__main__"]
    run_python(
        "import importlib, sys\n"
        f"for name in {EXTRAS}: sys.modules[name] = None\n"  # an import of it raises ImportError
        f"for name in {names}: importlib.import_module(name)"
    )
