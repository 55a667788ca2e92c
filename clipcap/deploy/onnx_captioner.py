"""Captions by the ONNX graphs of a folder that `clipcap export --format onnx` writes, without torch and clipcap.

The folder holds this file as `caption.py`: python caption.py photo.jpg

It needs numpy, Pillow and onnxruntime. Captions are written by the beam search of clipcap (ClipCap, section 3.4).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

try:
    from clipcap.captioning.tidy import tidy
except ImportError:  # the folder's own copy
    from tidy import tidy  # pyright: ignore[reportMissingImports]

RIBBON = 32  # images longer than this many times their width are cut
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
CONFIG, TOKENS = "captioner.json", "tokens.json"


@dataclass(frozen=True)
class OnnxCaption:
    """A caption, its token ids, and its average log-probability, which ranks it."""

    text: str
    token_ids: list[int]
    score: float


def preprocess(image: Image.Image, how: dict[str, Any]) -> np.ndarray:
    """An RGB image as the encoder takes it: float32 [3, R, R].

    Args:
        how: `shorter` (pixels of the shorter side) or `size` [height, width], `filter`, `crop` [height, width] of the
            middle or None, `mean` and `std` of the channels.
    """
    image = _without_ribbon(image)
    width, height = image.size
    if "shorter" in how:
        short, long = sorted((width, height))
        longer = int(how["shorter"] * long / short)
        size = (how["shorter"], longer) if width <= height else (longer, how["shorter"])
    else:
        size = (how["size"][1], how["size"][0])
    if size != image.size:
        image = image.resize(size, FILTERS[how["filter"]])
    if how["crop"]:
        tall, wide = how["crop"]
        left, top = round((image.width - wide) / 2), round((image.height - tall) / 2)
        image = image.crop((left, top, left + wide, top + tall))
    pixels = np.asarray(image, dtype=np.float32) / 255  # [R, R, 3]
    normal = (pixels - np.array(how["mean"], np.float32)) / np.array(how["std"], np.float32)
    return normal.transpose(2, 0, 1)


def _without_ribbon(image: Image.Image) -> Image.Image:
    """The middle of an image far longer than wide; others as they are."""
    width, height = image.size
    longest = RIBBON * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    return image.crop((left, top, width - left, height - top))


def open_photo(photo: Any) -> Image.Image:
    """A path, open file or Pillow image as upright RGB; what is transparent is white."""
    image = photo if isinstance(photo, Image.Image) else Image.open(photo)
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


class OnnxCaptioner:
    """Writes captions with the graphs of a folder.

    Args:
        folder: of `clipcap export --format onnx`.
        threads: of onnxruntime (default: its own choice).
    """

    def __init__(self, folder: str | Path, threads: int = 0):
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        self.folder = Path(folder)
        self.config: dict[str, Any] = json.loads((self.folder / CONFIG).read_text(encoding="utf-8"))
        tokens = json.loads((self.folder / TOKENS).read_text(encoding="utf-8"))
        self.tokens = [token.encode("latin-1") for token in tokens]  # bytes of each token id
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self._graphs: dict[str, Any] = {
            part: onnxruntime.InferenceSession(self.folder / f"{part}.onnx", options, ["CPUExecutionProvider"])
            for part in ("encoder", "mapper", "language_model")
        }

    def run(self, part: str, **inputs: np.ndarray) -> list[np.ndarray]:
        """The outputs of one of the graphs: encoder, mapper or language_model."""
        return self._graphs[part].run(None, inputs)

    def __call__(self, photos: Any) -> str | list[str]:
        """The best caption of a photo, or of each of several."""
        if isinstance(photos, (str, Path, Image.Image)) or hasattr(photos, "read"):
            return self.caption(photos)[0].text
        return [self.caption(photo)[0].text for photo in photos]

    def embed(self, photo: Any) -> np.ndarray:
        """The photo's CLIP embedding, float32 [1, D]."""
        pixels = preprocess(open_photo(photo), self.config["preprocess"])
        return self.run("encoder", pixels=pixels[None])[0]

    def caption(self, photo: Any, beams: int | None = None, num_captions: int = 1) -> list[OnnxCaption]:
        """Captions of a photo, best first; with one beam it is greedy search."""
        return self.caption_embedding(self.embed(photo), beams, num_captions)

    def caption_embedding(
        self, embedding: np.ndarray, beams: int | None = None, num_captions: int = 1
    ) -> list[OnnxCaption]:
        """As `caption`, of a CLIP embedding [1, D]."""
        prefix = self.run("mapper", clip_embedding=embedding)[0]  # [1, P, E]
        width = max(beams or int(self.config["beam_size"]), num_captions)
        return [self._caption(*found) for found in self._search(prefix, width)[:num_captions]]

    def logits(
        self, prefix: np.ndarray, input_ids: np.ndarray, past: list[np.ndarray] | None = None
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Logits [B, V] after prefix [B, P, E] and tokens [B, T], where P or T may be 0, and the cache with them."""
        empty = np.zeros((len(prefix), self.config["heads"], 0, self.config["head_width"]), np.float32)
        before = [empty] * (2 * self.config["layers"]) if past is None else past
        states = {f"past_key_values.{i // 2}.{('key', 'value')[i % 2]}": x for i, x in enumerate(before)}
        logits, *present = self.run("language_model", prefix=prefix, input_ids=input_ids.astype(np.int64), **states)
        return logits, present

    def _search(self, prefix: np.ndarray, beams: int) -> list[tuple[list[int], float]]:
        """Beam search: (token ids, average log-probability) of each beam, best first."""
        stop, most = self.config["stop_ids"], self.config["max_new_tokens"]
        logits, past = self.logits(prefix, np.zeros((1, 0)))
        search = _log_softmax(logits)[0]  # [V]
        token = _top(search, beams)  # [K]
        total, length, stopped = search[token], np.ones(beams, np.float32), np.isin(token, stop)
        tokens = np.zeros((beams, most), np.int64)
        tokens[:, 0] = token
        past = [states.repeat(beams, axis=0) for states in past]
        for position in range(1, most):
            if stopped.all():
                break
            no_prefix = np.zeros((beams, 0, prefix.shape[2]), np.float32)
            logits, past = self.logits(no_prefix, tokens[:, position - 1 : position], past)
            search = _log_softmax(logits)  # [K, V]
            found = np.stack([_top(row, beams) for row in search])  # [K, K]
            gain = np.take_along_axis(search, found, axis=1)
            gain[stopped], found[stopped] = -np.inf, 0
            gain[stopped, 0] = 0  # a finished beam is one candidate: itself
            longer = length + ~stopped
            average = ((total[:, None] + gain) / longer[:, None]).ravel()  # [K·K]
            best = _top(average, beams)
            parent = best // beams
            tokens, length, stopped = tokens[parent], longer[parent], stopped[parent]
            tokens[:, position] = found.ravel()[best]
            total = average[best] * length
            stopped = stopped | np.isin(tokens[:, position], stop)
            past = [states[parent] for states in past]
        score = total / length
        order = np.argsort(-score, kind="stable")
        return [(tokens[k][: int(length[k])].tolist(), float(score[k])) for k in order]

    def _caption(self, ids: list[int], score: float) -> OnnxCaption:
        shown = ids[:-1] if ids[-1] in self.config["hidden_ids"] else ids
        text = b"".join(self.tokens[token] for token in shown).decode("utf-8", "replace")
        return OnnxCaption(tidy(text), ids, score)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """[.., V] logits → log-probabilities."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _top(values: np.ndarray, k: int) -> np.ndarray:
    """Places of the k largest of [n] values, largest first."""
    some = np.argpartition(-values, k - 1)[:k] if k < len(values) else np.arange(len(values))
    return some[np.lexsort((some, -values[some]))]


def main(photos: Iterable[str]) -> None:
    """Print a caption for each photo."""
    captioner = OnnxCaptioner(Path(__file__).resolve().parent)
    for photo in photos:
        print(f"{photo}\t{captioner(photo)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
