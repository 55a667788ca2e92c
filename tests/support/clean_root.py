"""A clean Debian root by debootstrap, in which the steps of a Dockerfile run without Docker."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from support.road import REPO

MIRROR = "http://deb.debian.org/debian"
PYTHON = "python3,python3-pip,ca-certificates"
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
# What a container has besides its files. It is mounted for the step alone: nothing of this machine hangs in the root
# that is deleted afterwards.
ENTER = 'mount -t proc proc "$0/proc" && mount -t tmpfs -o mode=1777 shm "$0/dev/shm" && exec chroot "$@"'


def docker_steps(path: Path) -> list[tuple[str, str]]:
    """(instruction, words) of each step of a Dockerfile."""
    lines = path.read_text().replace("\\\n", " ").splitlines()
    return [(name, words) for name, words in (line.split(maxsplit=1) for line in lines if line and line[0] != "#")]


class CleanRoot:
    """The root, and what the steps so far have set: variables, folder, user, command.

    Args:
        path: a new folder.
        arguments: values of the Dockerfile's ARGs in place of its own.
    """

    def __init__(self, path: Path, arguments: dict[str, str]):
        self.path, self.arguments = path, arguments
        self.environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.folder, self.user, self.command = "/", "root", []

    def steps(self, steps: list[tuple[str, str]]) -> None:
        """Run them all, in their order."""
        for name, words in steps:
            print(f"{name} {words}", flush=True)
            getattr(self, f"_{name.lower()}")(words)

    def _from(self, image: str) -> None:
        python, release = re.fullmatch(r"python:(3\.\d+)-slim-(\w+)", image).groups()
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PYTHON}", release, self.path, MIRROR], check=True
        )
        (self.path / f"usr/lib/python{python}/EXTERNALLY-MANAGED").unlink()  # the image has none
        shutil.copy("/etc/resolv.conf", self.path / "etc")
        if "PIP_CERT" in os.environ:  # of a network with certificates of its own
            shutil.copy(os.environ["PIP_CERT"], self.path / CERTIFICATES)
            self.environment["PIP_CERT"] = f"/{CERTIFICATES}"

    def _arg(self, words: str) -> None:
        name, _, value = words.partition("=")
        self.environment[name] = self.arguments.get(name, value)

    def _env(self, words: str) -> None:
        self.environment |= dict(word.split("=", 1) for word in words.split())

    def _run(self, words: str) -> None:
        subprocess.run(self._inside("/bin/sh", "-c", words), check=True)

    def _workdir(self, folder: str) -> None:
        (self.path / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def _copy(self, words: str) -> None:
        *sources, target = words.split()
        place = self.path / self.folder.lstrip("/") / target
        for source in sources:
            if (REPO / source).is_dir():
                shutil.copytree(REPO / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(REPO / source, place)

    def _user(self, name: str) -> None:
        self.user = name

    def _expose(self, port: str) -> None:
        """Ports of the root are ports of this machine."""

    def _volume(self, folder: str) -> None:
        assert (self.path / folder.lstrip("/")).is_dir()

    def _entrypoint(self, words: str) -> None:
        self.command = json.loads(words)

    def _inside(self, *words: str) -> list[str]:
        home = "/root" if self.user == "root" else f"/home/{self.user}"
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        # env -i: as in a container, nothing of this machine's variables is there
        inner = [
            "env",
            "-i",
            *variables,
            f"HOME={home}",
            "sh",
            "-c",
            f'cd {self.folder}; exec "$@"',
            "sh",
        ]
        enter = ["unshare", "--mount", "sh", "-c", ENTER, str(self.path)]
        return [*enter, f"--userspec={self.user}", str(self.path), *inner, *words]

    def start(self, command: list[str]) -> subprocess.Popen:
        """The command as a process that can be ended as a whole."""
        return subprocess.Popen(self._inside(*command), stdout=subprocess.PIPE, text=True, start_new_session=True)
