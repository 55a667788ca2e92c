"""clipcap: frozen CLIP → mapping network → GPT-2 prefix → caption (ClipCap, arXiv 2111.09734).

>>> from clipcap import Captioner
>>> Captioner.from_pretrained("checkpoints").caption(["photo.jpg"], beam=True, num_captions=3)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # what `_PUBLIC` loads when it is first asked for
    from clipcap.captioning.captioner import Captioner
    from clipcap.captioning.config import DecodeConfig
    from clipcap.captioning.decode import Caption
    from clipcap.classification.classify import classify
    from clipcap.clip_gpt.captioner import ClipGptCaptioner
    from clipcap.errors import ClipcapError
    from clipcap.evaluation.config import EvaluateConfig
    from clipcap.evaluation.evaluate import evaluate
    from clipcap.features.config import ParseConfig
    from clipcap.features.feature_set import Features
    from clipcap.features.files import read_features, write_features
    from clipcap.features.parse import parse
    from clipcap.images.read import open_image
    from clipcap.models.caption_model import ClipCaptionModel
    from clipcap.models.encoders.base import Encoder
    from clipcap.models.encoders.load import load_encoder
    from clipcap.retrieval.index import Index
    from clipcap.training.config import TrainConfig
    from clipcap.training.train import train

_PUBLIC = {
    "Caption": "clipcap.captioning.decode",
    "Captioner": "clipcap.captioning.captioner",
    "ClipCaptionModel": "clipcap.models.caption_model",
    "ClipGptCaptioner": "clipcap.clip_gpt.captioner",
    "ClipcapError": "clipcap.errors",
    "DecodeConfig": "clipcap.captioning.config",
    "Encoder": "clipcap.models.encoders.base",
    "EvaluateConfig": "clipcap.evaluation.config",
    "Features": "clipcap.features.feature_set",
    "Index": "clipcap.retrieval.index",
    "ParseConfig": "clipcap.features.config",
    "TrainConfig": "clipcap.training.config",
    "classify": "clipcap.classification.classify",
    "evaluate": "clipcap.evaluation.evaluate",
    "load_encoder": "clipcap.models.encoders.load",
    "open_image": "clipcap.images.read",
    "parse": "clipcap.features.parse",
    "read_features": "clipcap.features.files",
    "train": "clipcap.training.train",
    "write_features": "clipcap.features.files",
}
__all__ = [
    "Caption",
    "Captioner",
    "ClipCaptionModel",
    "ClipGptCaptioner",
    "ClipcapError",
    "DecodeConfig",
    "Encoder",
    "EvaluateConfig",
    "Features",
    "Index",
    "ParseConfig",
    "TrainConfig",
    "__version__",
    "classify",
    "evaluate",
    "load_encoder",
    "open_image",
    "parse",
    "read_features",
    "train",
    "write_features",
]


def __getattr__(name: str) -> object:  # torch and transformers are imported when first needed
    if name not in _PUBLIC:
        raise AttributeError(f"module 'clipcap' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
