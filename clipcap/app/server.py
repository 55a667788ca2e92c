"""`clipcap app`: loads the models, builds the page and serves it until it is stopped."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, cast

from clipcap.app.calls import Calls
from clipcap.app.checkpoints import Checkpoints, further_checkpoints
from clipcap.app.config import AppConfig
from clipcap.app.drawing import Drawing, label_photo
from clipcap.app.guard import Guard, is_loopback
from clipcap.app.log import SafeStream, hide_cancelled_requests
from clipcap.app.page import SCRIPT, STYLE, build_page, theme
from clipcap.app.post_caption import add_caption_route, is_connected
from clipcap.app.service import CaptionService, PictureSearch, text_search
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.load_captioner import load_captioner
from clipcap.clip_gpt.captioner import ClipGptCaptioner
from clipcap.demo.plates import draw, scenes
from clipcap.errors import ClipcapError
from clipcap.images.write import write_picture
from clipcap.models.config import ModelConfig
from clipcap.retrieval.index import Index
from clipcap.runtime.messages import logger
from clipcap.runtime.text import printable
from clipcap.text_to_image.config import DrawConfig
from clipcap.text_to_image.draw import Drawer

EXAMPLES = "examples"  # their folder
EXAMPLE_COUNT, EXAMPLE_SIZE = 6, 384  # pictures, pixels
KEPT_S = 1800  # age after its last use at which an upload is removed
TIDY_EVERY_S = 60
ROOM = 100_000  # bytes of a request beside its photo in base64
SESSIONS = 64  # whose state Gradio keeps, 0.1 MB each


def serve(config: AppConfig) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        ClipcapError: no gradio, no such checkpoint or index, or the port is taken.
    """
    if find_spec("gradio") is None:
        raise ClipcapError("the web page needs the gradio package: pip install 'clipcap-toolkit[app]'")
    if config.clip_gpt and not config.index:
        raise ClipcapError("--clip_gpt needs --index: the pictures to choose from")
    with _listening(config) as listener:
        turn, max_pixels = Lock(), config.max_megapixels * 1_000_000
        captioner = load_captioner(config.load)
        _ = captioner.encoder  # load it now, so that an error ends the command before the first photo
        service = CaptionService(captioner, max_pixels, turn)
        searches = _searches(config, captioner, max_pixels, turn)
        checkpoints = _checkpoints(config, service, max_pixels, turn)
        more = _drawing(config, turn), partial(label_photo, lambda: captioner.encoder, turn, max_pixels)
        with tempfile.TemporaryDirectory(prefix="clipcap-app-") as folder:
            try:
                _run(
                    config,
                    Path(folder),
                    listener,
                    (service, checkpoints),
                    _about(config, captioner),
                    (*searches, *more),
                )
            except KeyboardInterrupt:
                logger.info("stopped")


def _listening(config: AppConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host.strip("[]"), config.port), family=family)
    except OSError as error:
        raise ClipcapError(
            f"--host {config.host} --port {config.port}: cannot listen ({error.strerror}): choose another --port"
        ) from error


def _run(
    config: AppConfig,
    folder: Path,
    listener: socket.socket,
    services: tuple[CaptionService, Checkpoints],
    model: str,
    further: tuple[Any, ...],
) -> None:
    # Gradio reads these when it is imported: no telemetry, and a folder of our own for files.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1", GRADIO_TEMP_DIR=str(folder))
    tempfile.tempdir = str(folder)
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
    from gradio.context import LocalContext

    service, checkpoints = services
    examples = _draw_examples(folder / EXAMPLES)
    gr.set_static_paths(folder / EXAMPLES)
    page = build_page(checkpoints, config, model, examples, (TIDY_EVERY_S, KEPT_S), *further)
    page.state_session_capacity = SESSIONS
    api = FastAPI()
    max_bytes = config.max_mb * 1_000_000
    add_caption_route(api, service, max_bytes)
    app = gr.mount_gradio_app(
        api, page, path="", server_name=config.host, max_file_size=f"{config.max_mb}mb", show_error=False,
        ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False, run_history=False,
        footer_links=["api"], theme=theme(), css_paths=STYLE,
        js=SCRIPT.read_text(encoding="utf-8"),
    )  # fmt: skip
    calls = Calls(page)
    service.is_awaited = lambda: is_connected() and calls.is_awaited(LocalContext.event_id.get(None))
    guard = Guard(app, folder, config.host, config.max_photos * max_bytes, calls, max_bytes * 4 // 3 + ROOM)
    host, port = listener.getsockname()[:2]
    print(f"http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    if not is_loopback(host):
        logger.warning("other machines can reach this page: anybody there can use it")
    stop = Event()
    Thread(target=_keep_tidy, args=(folder, stop), daemon=True).start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM removes the folder too
    hide_cancelled_requests()
    try:
        with redirect_stderr(SafeStream(sys.stderr)):
            uvicorn.Server(uvicorn.Config(guard, log_level="warning", timeout_graceful_shutdown=1)).run([listener])
    finally:
        stop.set()


def _checkpoints(config: AppConfig, first: CaptionService, max_pixels: int, turn: Lock) -> Checkpoints:
    """The captioner that is served, and the other checkpoints of its run folder."""
    name, others = further_checkpoints(config.load.load_pt)

    def load(folder: Path) -> CaptionService:
        other = load_captioner(replace(config.load, load_pt=str(folder)))
        return CaptionService(other, max_pixels, turn)

    return Checkpoints(first, others, load, name or "the model")


def _about(config: AppConfig, captioner: Captioner) -> str:
    """A line about the model that reveals no paths of this machine."""
    if config.load.load_pt is None:
        return "The bundled demo model, which knows only drawn plates of food"
    own = cast(ModelConfig, captioner.model.config)  # a ClipCap: load_captioner reads no other kind
    parts = [
        _name(config.load.load_pt),
        f"{own.mapping_type} mapper with a prefix of {own.prefix_length}",
        f"language model {_name(own.lm)}",
        f"encoder {_name(own.encoder or 'unknown')}",
    ]
    return " · ".join(parts)


def _name(part: str) -> str:
    """A file's name without its folders; anything else as it is."""
    return Path(part).name if os.path.exists(part) else part


def _searches(
    config: AppConfig, captioner: Captioner, max_pixels: int, turn: Lock
) -> tuple[PictureSearch | None, PictureSearch | None]:
    """The search by the text tower, and the search by CLIP-GPT's imagined embeddings."""
    if not config.index:
        return None, None
    index = Index.open(config.index)
    search = text_search(index, captioner, max_pixels, turn, config.load.tokenizer)
    if not config.clip_gpt:
        return search, None
    clip_gpt = ClipGptCaptioner.from_pretrained(config.clip_gpt, device=config.load.device)
    logger.info(printable(clip_gpt.summary))
    own = clip_gpt.model.config
    index.check_encoder(own.encoder, own.encoder_weights_id, own.clip_dim, f"--clip_gpt {config.clip_gpt}")
    return search, PictureSearch(index, clip_gpt.imagine, max_pixels, turn)


def _drawing(config: AppConfig, turn: Lock) -> Drawing | None:
    """The Draw tab, if models are named for it or the demo model is served."""
    if not (config.draw or config.generator) and config.load.load_pt is not None:
        return None
    drawing = DrawConfig(load_pt=config.draw, generator=config.generator, device=config.load.device)
    if config.draw or config.generator:
        Drawer(drawing)  # load it now, so that an error ends the command before the first text
    return Drawing(drawing, turn)


def _draw_examples(folder: Path) -> Sequence[Path]:
    folder.mkdir()
    paths = []
    for number, scene in enumerate(islice(scenes("val"), EXAMPLE_COUNT), 1):
        paths.append(folder / f"plate{number}.jpg")
        write_picture(draw(scene, EXAMPLE_SIZE), paths[-1], "JPEG", quality=90)
    return paths


def _keep_tidy(folder: Path, stop: Event) -> None:
    while not stop.wait(TIDY_EVERY_S):
        tidy(folder, time.time() - 2 * KEPT_S)  # twice the age, as Gradio first removes the files on its own lists


def tidy(folder: Path, oldest: float) -> None:
    """Remove what is older than `oldest`: uploads, tables, and leftovers of broken connections."""
    for path in sorted(folder.rglob("*"), reverse=True):  # files before the folders that they lie in
        if folder / EXAMPLES in (path, *path.parents):
            continue
        try:
            if path.stat().st_mtime < oldest:
                path.rmdir() if path.is_dir() else path.unlink()
        except OSError:  # the folder is not empty, or the file was removed meanwhile
            pass
