"""The command: quick help, one line for every mistake, scripts that equal subcommands, a doctor for the sick."""

from __future__ import annotations

import errno
import os
import runpy
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
import torch
from support.road import REPO, draw_photos, draw_set, run, save_captioner, start

import clipcap
from clipcap.cli.commands import COMMANDS, SOURCES
from clipcap.cli.main import build_parser, main
from clipcap.errors import ClipcapError
from clipcap.sources.readers import READERS

NAMES = tuple(command.name for command in COMMANDS)


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, cwd=REPO, capture_output=True, text=True
    )


def test_help_answers_before_torch_is_imported():
    pages = [["--help"], *([command, "--help"] for command in NAMES), *(["parse", s, "--help"] for s in SOURCES)]
    done = python(
        "import sys\nfrom clipcap.cli.main import main\n"
        f"for page in {pages}:\n"
        "    try: main(page)\n"
        "    except SystemExit as stop: assert stop.code == 0, page\n"
        "assert not {'torch', 'transformers', 'PIL', 'numpy'} & set(sys.modules)",
        PYTHONIOENCODING="ascii",  # and where the terminal knows no arrows
    )
    assert done.returncode == 0, done.stderr
    for command in NAMES:
        assert command in done.stdout


STARTED = """
import gc, sys
{before}
from clipcap.cli.main import main
{collector}
assert main(["predict", "--img", "docs/captions.jpg"]) == 0
print(gc.isenabled(), gc.get_freeze_count() > 100_000)
"""


def test_the_garbage_collector_passes_over_what_a_command_imports():
    done = python(STARTED.format(before="", collector=""))
    assert done.stdout.splitlines()[-1] == "True True", done.stderr


@pytest.mark.parametrize(
    ("before", "collector", "enabled"), [("import torch", "", True), ("", "gc.disable()", False)]
)
def test_the_collector_of_a_program_that_imports_torch_or_does_without_one_is_left_alone(before, collector, enabled):
    done = python(STARTED.format(before=before, collector=collector))
    assert done.stdout.splitlines()[-1] == f"{enabled} False", done.stderr


def test_one_photo_is_captioned_without_what_takes_long_to_import():
    heavy = ("transformers", "torchvision", "torch._dynamo", "sympy", "clip", "huggingface_hub", "pyarrow", "scipy")
    done = python(
        "import sys\nfrom clipcap.cli.main import main\n"
        "assert main(['predict', '--beam', '--img', 'docs/captions.jpg']) == 0\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_console_command_is_this_one():
    (command,) = (e for e in entry_points(group="console_scripts") if e.name == "clipcap")
    assert command.load() is main


def test_every_source_has_a_door_and_a_script():
    assert set(SOURCES) == set(READERS) == {path.stem for path in (REPO / "parse").glob("*.py")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["parse"], "the following arguments are required: SOURCE"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["predct", "--img", "x.jpg"], "invalid choice: 'predct'; did you mean predict?"),
        (["parse", "flickr8", "--data_path", "x"], "did you mean flickr8k?"),
        (
            ["parse", "food", "--data", "x"],
            "unrecognized arguments: --data x; did you mean --data_path?",
        ),
        (
            ["predict", "--imgs", "x.jpg"],
            "did you mean --img? (flags: clipcap predict --help)",
        ),
        (["doctor", "who"], "unrecognized arguments: who (flags: clipcap doctor --help)"),
        (["parse", "food", "--dtype", "int8"], "invalid choice: 'int8' (choose from"),
        (["parse", "food", "--batch_size", "many"], "invalid int value: 'many'"),
        (["predict", "--temp"], "expected one argument"),
        (["features", "merge", "x"], "the following arguments are required: --out"),
    ],
)
def test_mistakes_in_the_flags_are_one_line(words, said, capsys):
    status, out, err = run(capsys, *words)
    assert (status, out, len(err)) == (2, [], 1)
    assert err[0].startswith("clipcap: error: ")
    assert said in err[0]
    assert "--help)" in err[0]


def test_hyphens_are_as_good_as_underscores():
    words = ["predict", "--load-pt", "x-y", "--num-captions", "2", "--top-p=0.5", "--no-beam"]
    args = build_parser().parse_args(words)
    assert (args.load_pt, args.num_captions, args.top_p, args.beam) == ("x-y", 2, 0.5, False)


def test_help_tells_defaults_that_are_zero_and_how_to_turn_off_what_is_on(capsys):
    text = " ".join(run(capsys, "train", "--help")[1])
    assert "AdamW weight decay (default: 0.0)" in text
    assert "--dropout, --no_dropout" in text
    args = build_parser().parse_args(["train", "--no-dropout", "--share_prefix"])
    assert (args.dropout, args.share_prefix) == (False, True)


def fail(error):
    def report() -> str:
        raise error

    return report


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ClipcapError("a:\n  what is\twrong"), 1, "clipcap: error: a: what is wrong"),
        (ClipcapError("a\x1b[2J.jpg: no é"), 1, r"clipcap: error: a\x1b[2J.jpg: no é"),
        (KeyboardInterrupt(), 130, "clipcap: interrupted"),
        (KeyboardInterrupt("a\nis kept"), 130, r"clipcap: interrupted; a\nis kept"),
        (PermissionError(errno.EACCES, "Permission denied", "x/y"), 1, "clipcap: error: x/y: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "clipcap: error: No space left on device"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried …"), 1,
         "clipcap: error: the GPU's memory is full: lower --batch_size, or use --device cpu"),
    ],
)  # fmt: skip
def test_every_failure_is_one_line(error, status, line, capsys, monkeypatch):
    monkeypatch.setattr("clipcap.cli.doctor.report", fail(error))
    assert run(capsys, "doctor") == (status, [], [line])


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("clipcap.cli.doctor.report", fail(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["doctor"])


def test_a_reader_who_has_had_enough_is_no_error():
    process = start("doctor")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 0


# --- scripts ------------------------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs a script of the repository: (status, lines on stdout, lines on stderr)."""

    def run_script(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(REPO / name), run_name="__main__")
        out, err = capsys.readouterr()
        return stop.value.code, out.splitlines(), err.splitlines()

    return run_script


def test_parse_scripts_are_the_subcommands(script, capsys, clip_file, tmp_path):
    photos = draw_set(tmp_path / "set", 3)
    words = ["--data_path", photos, "--clip_model_type", clip_file, "--device", "cpu", "--workers", 0, "--out"]
    assert script("parse/custom.py", *words, tmp_path / "a" / "f.pkl")[0] == 0
    assert run(capsys, "parse", "custom", *words, tmp_path / "b" / "f.pkl")[0] == 0
    assert (tmp_path / "a" / "f.pkl").read_bytes() == (tmp_path / "b" / "f.pkl").read_bytes()
    for source in SOURCES:
        assert script(f"parse/{source}.py", "--data_path", "/no/such")[0] == 1
        assert script(f"parse/{source}.py", "--data_path", "/no/such") == run(capsys, "parse", source, "--data_path",
                                                                             "/no/such")  # fmt: skip


def test_predict_is_the_subcommand(script, capsys, lm_folder, clip_file, tmp_path):
    folder = save_captioner(tmp_path / "c", lm_folder, clip_file)
    words = ["--load_pt", folder, "--beam", "--device", "cpu", "--img", *draw_photos(tmp_path, 2)]
    assert script("predict.py", *words) == run(capsys, "predict", *words)


def test_train_is_the_subcommand(script, capsys):
    words = ["--data", "/no/such.pkl"]
    assert script("train.py", *words) == run(capsys, "train", *words)


@pytest.mark.parametrize("name", ["train.py", "predict.py", *(f"parse/{s}.py" for s in SOURCES)])
def test_importing_a_script_does_nothing(name, capsys):
    runpy.run_path(str(REPO / name), run_name="imported")
    assert capsys.readouterr() == ("", "")


# --- doctor, extras -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_both_flags_print_the_version(flag, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([flag])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"clipcap {clipcap.__version__}\n"


def test_the_doctor_tells_versions_devices_memory_and_caches(capsys):
    status, out, _ = run(capsys, "doctor")
    report = "\n".join(out)
    assert status == 0
    for word in ("python 3.", "torch 2.", "clipcap 0", "cores: ", "memory: ", "GPU: ", "java: ", "hub: offline",
                 "torch is built for: ", "--device auto: ", "OpenAI CLIP weights: ", "hub weights: "):  # fmt: skip
        assert word in report


def test_a_broken_clip_package_is_named_by_the_doctor_and_by_the_commands(tmp_path):
    """setuptools 82 has no pkg_resources, which clip-anytorch imports."""
    folder = draw_set(tmp_path / "set", 2)
    done = python(
        "import sys; sys.modules['pkg_resources'] = None\n"
        "from clipcap.cli.main import main\n"
        f"words = ['--data_path', {str(folder)!r}, '--out', {str(tmp_path / 'f.pkl')!r}]\n"
        "assert main(['doctor']) == 0; sys.exit(main(['parse', 'custom', *words]))"
    )
    mend = "OpenAI's clip package cannot be imported"
    assert mend in done.stdout
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"clipcap: error: {mend}")
    assert "pip install clip-anytorch 'setuptools>=77.0.3,<82'" in last
    assert "Traceback" not in done.stderr


def test_a_missing_extra_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    words = ["parse", "custom", "--data_path", draw_set(tmp_path / "set", 2), "--out", tmp_path / "f.pkl"]
    status, _, err = run(capsys, *words, "--clip_model_type", "open_clip:ViT-B-32/openai")
    assert status == 1
    assert err[-1].endswith("needs the open_clip package: pip install 'clipcap-toolkit[open_clip]'")


def test_a_repeated_img_adds_photos():
    args = build_parser().parse_args(["predict", "--img", "a.jpg", "--img", "b.jpg", "c.jpg"])
    assert args.img == ["a.jpg", "b.jpg", "c.jpg"]
