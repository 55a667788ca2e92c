"""The container's steps in a clean Debian root: everything installs, and the page captions a plate there.

CLIPCAP_CLEAN_ROOT=/var/tmp/root python -m pytest tests/docs/test_clean_root.py -s

CLIPCAP_CLEAN_ROOT names a new folder with room for torch; CLIPCAP_TORCH_INDEX a mirror of its index.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
from pathlib import Path

import pytest
from support.clean_root import CleanRoot, docker_steps
from support.road import REPO

from clipcap.captioning.captioner import Captioner
from clipcap.demo.plates import write_set
from clipcap.runtime.bundled import DEMO


@pytest.fixture
def root():
    """A root in which every step has run; it is deleted afterwards."""
    if not (place := os.environ.get("CLIPCAP_CLEAN_ROOT")):
        pytest.skip("CLIPCAP_CLEAN_ROOT names no folder for a Debian root (minutes, gigabytes and a network)")
    if os.geteuid() or not shutil.which("debootstrap"):
        pytest.skip("a Debian root is made by root, with debootstrap (Debian: apt-get install debootstrap)")
    index = os.environ.get("CLIPCAP_TORCH_INDEX")
    path = Path(place)
    path.mkdir()
    try:
        built = CleanRoot(path, {"TORCH_INDEX": index} if index else {})
        built.steps(docker_steps(REPO / "Dockerfile"))
        yield built
    finally:
        shutil.rmtree(path)


def test_the_steps_of_the_dockerfile_give_a_page_that_captions(root, tmp_path):
    photo = next(iter((write_set(tmp_path, 1, seed=1) / "dataset").iterdir()))
    command = ["0" if word.isdecimal() else word for word in root.command]  # any free port
    page = root.start(command)
    try:
        port = int(page.stdout.readline().strip().rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        connection.request("GET", "/")
        assert connection.getresponse().read().count(b"<html") == 1
        body = json.dumps({"image": base64.b64encode(photo.read_bytes()).decode()})
        connection.request("POST", "/caption", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
    finally:
        page.terminate()
        page.wait(60)
    expected = Captioner.from_pretrained(DEMO, device="cpu").caption([photo])[0][0]
    assert answer["captions"][0]["caption"] == expected.text
