"""Loading by hub name or local folder: the cache first, the network second, one clear line when neither works."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

from safetensors import SafetensorError

from clipcap.errors import ClipcapError
from clipcap.runtime.bundled import DEMO
from clipcap.runtime.safe_load.wrong_bytes import check_folder
from clipcap.runtime.text import one_line

HUB_TIMEOUT_S = 5.0
# What transformers lets through: files missing or not JSON, unknown kinds, damaged or misfitting weights.
_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust has given up: its exceptions are not derived from `Exception`."""
    return type(error).__name__ == "PanicException"


class PretrainedClass(Protocol):
    """Any class of transformers with `from_pretrained`."""

    @property
    def from_pretrained(self) -> Callable[..., Any]:
        """Loads by name."""
        ...


def absolute(name: str) -> str:
    """A local path made absolute, so that it holds wherever it is read again; other names as they are."""
    path = Path(name).expanduser()
    return str(path.absolute()) if name != DEMO and path.exists() else name


def is_local(name: str) -> bool:
    """Whether `name` is a folder on this machine and not a hub name."""
    return name != DEMO and Path(name).expanduser().is_dir()


def cached_folder(name: str) -> Path | None:
    """Where the files of a hub name or local folder lie on this machine; None where they do not."""
    if is_local(name):
        return Path(name).expanduser()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # not in the cache, or no name the hub could have
        return None


def load_pretrained(loader: PretrainedClass, name: str, what: str, flag: str, **kwargs: Any) -> Any:
    """`loader.from_pretrained(name)`, downloading only what the cache lacks; code beside the weights is not run.

    Args:
        loader: a class of transformers with `from_pretrained`.
        name: hub name or local folder.
        what: what is loaded, for the error message ("tokenizer").
        flag: the option `name` came from, for the error message ("--lm").

    Raises:
        ClipcapError: the folder does not hold it, or the hub cannot be reached.
    """
    if getattr(loader, "__name__", "").startswith("Auto"):  # asked nothing, transformers asks whether to run it
        kwargs["trust_remote_code"] = False
    if is_local(name):
        check_folder(Path(name).expanduser(), f"{flag} {name}")
        try:
            return loader.from_pretrained(str(Path(name).expanduser()), local_files_only=True, **kwargs)
        except UnpicklingError as error:  # torch's own message says how to run the code nevertheless
            raise ClipcapError(
                f"{flag} {name}: cannot load the {what}: its weights are a damaged pickle, or one with code"
            ) from error
        except Exception as error:  # of damaged and hostile files transformers lets through almost anything
            raise ClipcapError(f"{flag} {name}: cannot load the {what}: {one_line(error)}") from error
        except BaseException as error:
            if not is_panic(error):
                raise
            raise ClipcapError(f"{flag} {name}: the {what}'s files are damaged: {one_line(error)}") from error
    if Path(name).expanduser().is_file():
        raise ClipcapError(f"{flag} {name}: is a file: pass the folder of the {what}'s files, or a name on the hub")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ClipcapError(f"{flag} {name}: there is no such folder")
    from huggingface_hub import snapshot_download

    try:  # by its folder in the cache: given the name, transformers asks the hub for optional files even so
        return loader.from_pretrained(snapshot_download(name, local_files_only=True), **kwargs)
    except _LOAD_ERRORS:
        require_hub(name, what, flag)
    try:
        return loader.from_pretrained(name, **kwargs)
    except _LOAD_ERRORS as error:
        raise ClipcapError(f"{flag} {name}: the hub does not give this {what}: {one_line(error)}") from error


def fetch_repository(name: str, what: str, flag: str) -> str:
    """The local folder of a repository named as on the hub (`user/name`); local paths are returned as they are.

    Raises:
        ClipcapError: as `load_pretrained`.
    """
    path = Path(name).expanduser()
    mistyped = path.parent.exists() or path.suffix == ".pt" or name.startswith((".", "~"))
    if path.exists() or name.count("/") != 1 or mistyped:
        return name
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, local_files_only=True)
    except (OSError, ValueError):  # not in the cache, or no name the hub could have
        require_hub(name, what, flag)
    try:
        return snapshot_download(name)
    except Exception as error:  # the hub client's exception types differ between its releases
        raise ClipcapError(f"{flag} {name}: no such path here, and the hub says: {one_line(error)}") from error


def require_hub(name: str, what: str, flag: str) -> None:
    """Fail within seconds where the hub cannot be reached (the hub's own client retries for half a minute).

    Raises:
        ClipcapError: offline, with the way to bring the files by hand.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
    if not reason:
        try:
            get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
            return
        except Exception as error:  # the session's own exception types differ between hub releases
            reason = f"{constants.ENDPOINT} cannot be reached: {one_line(error)}"
    raise ClipcapError(
        f"the {what} {name!r} is not on this machine and cannot be downloaded ({reason}): run `hf download {name}` "
        f"where there is a network and copy {os.path.join(constants.HF_HUB_CACHE, '')} here, "
        f"or pass {flag} FOLDER with its files"
    )


def check_login(name: str) -> None:
    """Fail before any work where nothing could be uploaded at its end.

    Args:
        name: of the repository.
    Raises:
        ClipcapError: offline, or nobody is logged in.
    """
    if name.count("/") != 1 or not all(name.split("/")):
        raise ClipcapError(f"--push_to_hub {name}: must be USER/NAME")
    from huggingface_hub import HfApi

    try:
        HfApi().whoami()
    except Exception as error:  # the hub client's exception types differ between its releases
        raise ClipcapError(f"--push_to_hub {name}: {one_line(error)}: log in by `hf auth login`") from error
