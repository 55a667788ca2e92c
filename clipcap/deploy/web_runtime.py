"""onnxruntime-web, which runs graphs in a browser: from a folder or archive, the cache, or once from npm."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

from huggingface_hub import constants

from clipcap.errors import ClipcapError
from clipcap.runtime.files import replaced_file
from clipcap.runtime.messages import logger
from clipcap.runtime.text import one_line

VERSION = "1.30.0"
URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
LIBRARY, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"  # without WebGL, WebGPU, NPU
TIMEOUT_S = 60.0
LARGEST = 100_000_000  # bytes of an archive that is read


@dataclass(frozen=True)
class WebRuntime:
    """The library and its WebAssembly."""

    library: bytes
    wasm: bytes


def load_runtime(place: str | None = None) -> WebRuntime:
    """Read onnxruntime-web, and download it where it is not on this machine.

    Args:
        place: a folder with its files, at whatever depth npm puts them, or its .tgz (default: the cache).
    Raises:
        ClipcapError: it is not there, or not what the checksum says, or there is no network.
    """
    if place is not None:
        path = Path(place).expanduser()
        if path.is_dir():
            return _of_folder(path)
        return _of_archive(_read(path, "--runtime"), f"--runtime {place}")
    cached = cache_folder() / Path(URL).name
    if cached.is_file():
        content = _read(cached, "the cache")
        if _is_right(content):
            return _of_archive(content, str(cached))
    content = _download()
    cached.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(cached) as draft:
        draft.write_bytes(content)
    return _of_archive(content, URL)


def cache_folder() -> Path:
    """Where the archive is kept after its download."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipcap"


def _download() -> bytes:
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        logger.info(f"downloading onnxruntime-web {VERSION}, 33 MB, once …")
        with urlopen(Request(URL, headers={"User-Agent": "clipcap"}), timeout=TIMEOUT_S) as response:
            content = response.read(LARGEST)
    except (OSError, ValueError) as error:
        raise ClipcapError(
            f"--format web needs onnxruntime-web {VERSION}, which is not on this machine and cannot be downloaded "
            f"({one_line(error)}): run `npm pack onnxruntime-web@{VERSION}` where there is a network, and pass its "
            f".tgz with --runtime"
        ) from error
    if not _is_right(content):
        raise ClipcapError(f"{URL}: the file has another checksum than the published one: try again")
    return content


def _is_right(content: bytes) -> bool:
    return base64.b64encode(hashlib.sha512(content).digest()).decode() == SHA512


def _read(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ClipcapError(f"{where} {path}: cannot be read ({error.strerror or error})") from error


def _of_folder(folder: Path) -> WebRuntime:
    for below in ("", "dist", "package/dist", "node_modules/onnxruntime-web/dist"):
        if all((folder / below / name).is_file() for name in (LIBRARY, WASM)):
            return WebRuntime(*(_read(folder / below / name, "--runtime") for name in (LIBRARY, WASM)))
    raise ClipcapError(f"--runtime {folder}: no {LIBRARY} and {WASM} in it: pass the npm package onnxruntime-web")


def _of_archive(content: bytes, where: str) -> WebRuntime:
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            files = [archive.extractfile(f"package/dist/{name}") for name in (LIBRARY, WASM)]
            return WebRuntime(*(file.read(LARGEST) for file in files if file is not None))
    except (tarfile.TarError, KeyError, OSError, EOFError, TypeError) as error:
        raise ClipcapError(f"{where}: is not the .tgz of npm's onnxruntime-web ({one_line(error)})") from error
