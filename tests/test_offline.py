"""Nothing leaves the machine: the main road and the web page without a network, every connection written down."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.road import REPO

from clipcap.demo.plates import write_set

_CONNECT = re.compile(r"connect\(\d+, \{sa_family=(\w+)(?:, (.*?))?\}, \d+\)")
_PROGRAM = """
import json, os, signal, subprocess, sys, time, urllib.request
subprocess.run([sys.executable, "-c", "import fcntl, socket, struct; s = socket.socket(); "
    "fcntl.ioctl(s, 0x8914, struct.pack('16sh22x', b'lo', 0x49))"], check=True)  # loopback up, for the page
from clipcap.cli.main import main
for words in json.loads(sys.argv[1]):
    assert main(words) == 0, words
page = subprocess.Popen([sys.executable, "-m", "clipcap", "app", "--port", "0", "--device", "cpu"],
                        stdout=subprocess.PIPE, text=True)
address = page.stdout.readline().strip()
print(urllib.request.urlopen(address, timeout=60).status, len(urllib.request.urlopen(address).read()), address)
page.send_signal(signal.SIGINT)
page.wait(60)
"""


def needed(*command: str) -> None:
    """Skip where a command is not there or not permitted."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not on this machine")
    tried = subprocess.run(command, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"{' '.join(command)} is not permitted here: {tried.stderr.strip()}")


def steps(folder: Path) -> list[list[str]]:
    """Parse, train, predict and evaluate on a few plates, with the bundled models."""
    plates = write_set(folder / "plates", 6, seed=1)
    features, run, photo = folder / "f.pkl", folder / "run", next((plates / "dataset").iterdir())
    scores = folder / "scores"
    lines = (
        f"parse food --data_path {plates} --out {features} --clip_model_type demo --device cpu",
        f"train --data {features} --lm demo --only_prefix --epochs 1 --out_dir {run} --val 0.3 --val_captions 1",
        f"predict --load_pt {run} --img {photo} --beam --device cpu",
        f"evaluate --load_pt {run} --data {features} --out {scores} --max_new_tokens 8 --no_java --device cpu",
    )
    return [line.split() for line in lines]


def local(family: str, rest: str) -> bool:
    """Whether an address is of this machine alone."""
    if family in ("AF_UNIX", "AF_NETLINK", "AF_UNSPEC"):
        return True
    return '"127.' in rest or '"::1"' in rest


def test_the_main_road_and_the_page_run_without_a_network_and_connect_to_nobody(tmp_path):
    pytest.importorskip("gradio", reason="no gradio: pip install 'clipcap-toolkit[app]'")
    needed("unshare", "--net", "true")
    needed("strace", "-f", "-e", "trace=connect", "true")
    log = tmp_path / "connections"
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        ["unshare", "--net", "strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", log,
         sys.executable, "-c", _PROGRAM, json.dumps(steps(tmp_path))],
        cwd=REPO, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "200 " in done.stdout and "http://127.0.0.1:" in done.stdout  # the page answered
    connections = [(m[1], m[2] or "") for m in _CONNECT.finditer(log.read_text(errors="replace"))]
    assert connections, "strace has seen the request to the page, at least"
    assert [c for c in connections if not local(*c)] == []
    assert not re.findall(r"send(?:to|msg)\(.*sin_addr=inet_addr\(\"(?!127\.)", log.read_text(errors="replace"))


def test_strace_would_see_a_connection(tmp_path):
    """What the test above rests on."""
    needed("strace", "-f", "-e", "trace=connect", "true")
    log = tmp_path / "log"
    code = "import socket; s = socket.socket(); s.settimeout(1); s.connect_ex(('192.0.2.1', 9))"
    subprocess.run(["strace", "-f", "-qq", "-e", "trace=connect", "-o", log, sys.executable, "-c", code], check=True)
    assert not all(local(m[1], m[2] or "") for m in _CONNECT.finditer(log.read_text()))
