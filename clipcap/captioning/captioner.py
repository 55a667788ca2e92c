"""The public face for inference: images or embeddings in, captions out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
import torch
from torch import Tensor

from clipcap.captioning.batches import CaptionedBatch, caption_batches, stored_embeddings
from clipcap.captioning.config import DecodeConfig, decoding
from clipcap.captioning.decode import Caption, decode
from clipcap.captioning.image_inputs import (
    ImageLike,
    as_image,
    embed_pictures,
    embedding_of,
    is_image,
    is_picture,
    listed,
)
from clipcap.captioning.memory import TextMemory
from clipcap.captioning.prompting import open_consensus, open_prompter, with_prompts, with_retrieved
from clipcap.captioning.tidy import tidy
from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Features
from clipcap.images.read import open_image
from clipcap.models.base import PrefixLM
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.checkpoint import load_checkpoint, name_in_card, read_card, save_checkpoint
from clipcap.models.encoders.base import Encoder, pick_device
from clipcap.models.encoders.encode_images import EncodedImages, encode_images
from clipcap.models.encoders.load import load_encoder
from clipcap.models.given import Given
from clipcap.models.kernels.bfloat16 import pick_cpu_dtype
from clipcap.models.kernels.int8 import quantised
from clipcap.models.kernels.packed_linear import pack_for_rows, packable
from clipcap.options import at_least
from clipcap.runtime.text import one_line

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from clipcap.captioning.consensus import Consensus
    from clipcap.prompts.prompter import Prompter


class Captioner:
    """Writes captions with a trained model.

    Examples:
        >>> captioner = Captioner.from_pretrained("checkpoints")
        >>> captioner(["a.jpg", "b.jpg"])
        ['a plate of sushi', 'two cherry muffins on a board']

    Args:
        model: in evaluation mode.
        tokenizer: of its language model.
        encoder: frozen CLIP; loaded when the first image comes, by the name the checkpoint stores.
        device: where the model runs.
    """

    def __init__(self, model: PrefixLM, tokenizer: Tokenizer, encoder: Encoder | None = None, device: str = "auto"):
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.tokenizer = tokenizer
        self.summary = ""
        self._card = ""  # of the checkpoint's folder
        self._encoder = encoder
        self.encoder_tokenizer: str | None = None  # of an hf: encoder whose folder has none
        self._judges: dict[str, Encoder] = {}
        self._rounded = self._decode_only = False
        self.dtype = torch.float32  # of the products of model and encoder
        self.memory: TextMemory | None = None  # images are projected on, where there is one
        self.prompter: Prompter | None = None  # finds the prompts that the model reads, where it does
        self.consensus: Consensus | None = None  # orders captions by those of similar images
        self._images = 0  # captioned so far

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        lm: str | None = None,
        clip_model_type: str | None = None,
        normalize_prefix: bool | None = None,
        num_heads: int | None = None,
        device: str = "auto",
        dtype: str = "float32",
        datastore: str | Path | None = None,
        entities: str | Path | None = None,
        prompt_gate: float | None = None,
        tokenizer: str | None = None,
        decode_only: bool = False,
    ) -> Captioner:
        """Load a checkpoint: a native folder, a `.pt` of the original, a folder holding one, or a hub name.

        `dtype` bfloat16 lets model and encoder multiply in bfloat16, auto does so on a CPU where the processor is
        faster in it, and int8, on a CPU, rounds the language model's matrices to eight bits. What a captioner reads
        before it writes comes from its own datastore, or from `datastore` with another gate; or from the file
        `entities`. `tokenizer` is that of an `hf:` encoder whose folder has none. `decode_only` gives a captioner
        that cannot be saved: a GPT-2 on a CPU loads without transformers then, two seconds sooner.

        Raises:
            ClipcapError: it cannot be loaded; the message says how to fix it.
        """
        decode_only = decode_only and pick_device(device).type == "cpu"  # a GPU's fixed steps need transformers'
        loaded = load_checkpoint(path, lm, num_heads, normalize_prefix, clip_model_type, decode_only)
        captioner = cls(loaded.model, loaded.tokenizer, device=device)
        captioner._decode_only = decode_only
        captioner.encoder_tokenizer = tokenizer
        captioner.summary = loaded.summary
        captioner._card = read_card(loaded.path)
        if dtype == "int8":
            captioner.round_to_int8()
        else:
            captioner.multiply_in(dtype)
        captioner.prompter = open_prompter(
            loaded.model.config, captioner.tokenizer, captioner.judge, datastore, entities, prompt_gate
        )
        captioner.consensus = open_consensus(loaded.model.config, datastore, captioner.prompter)
        return captioner

    def multiply_in(self, dtype: str) -> None:
        """Let the products of model and encoder be in float32, bfloat16, or what is faster here of both, auto.

        All else stays in float32, weights too. On a GPU auto is float32.

        Raises:
            ClipcapError: this device, torch or CLIPCAP_PLAIN does not allow bfloat16.
        """
        auto = dtype == "auto"
        chosen = torch.float32 if auto and self.device.type != "cpu" else pick_cpu_dtype(dtype)
        if chosen == torch.bfloat16 and not packable(self.model, chosen):
            if not auto:
                raise ClipcapError(
                    f"--dtype bfloat16 is not possible on {self.device}: it does not multiply in it, the model is "
                    "too large for a second copy, this torch has no oneDNN, or CLIPCAP_PLAIN is set: drop it"
                )
            chosen = torch.float32
        self.dtype = chosen
        if chosen == torch.bfloat16:
            pack_for_rows(self.model, chosen)

    def round_to_int8(self) -> None:
        """Round the language model's matrices to eight bits: on a CPU about twice as fast, and cannot be saved.

        Raises:
            ClipcapError: it is not on a CPU.
        """
        if self.device.type != "cpu":
            raise ClipcapError(f"--dtype int8 is for CPUs: add --device cpu, or drop it to use {self.device}")
        self.model.lm = quantised(self.model.lm)
        self._rounded = True

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write a native checkpoint folder.

        Raises:
            ClipcapError: its language model was rounded to int8, or it was loaded to decode alone.
        """
        if self._decode_only:
            raise ClipcapError("a captioner loaded with decode_only cannot be saved: load it without")
        if self._rounded:
            raise ClipcapError("a captioner rounded to int8 cannot be saved: load it in float32")
        return save_checkpoint(cast(ClipCaptionModel, self.model), self.tokenizer, Path(folder))  # others override it

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
        """Upload the checkpoint to the hub (the one at HF_ENDPOINT); returns its address.

        Its card is the folder's own, where it was loaded from one; the snippet in it names the repository.

        Raises:
            ClipcapError: offline, no such account, or no right to write there.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            draft = self.save_pretrained(Path(folder) / "checkpoint")
            name_in_card(draft, repo_id, self._card)
            try:
                address = api.create_repo(repo_id, private=private, exist_ok=True)
                api.upload_folder(repo_id=repo_id, folder_path=draft, commit_message="Upload with clipcap")
            except Exception as error:  # the hub client's exception types differ between its releases
                raise ClipcapError(f"{repo_id}: not uploaded to {api.endpoint}: {one_line(error)}") from error
        return str(address)

    @property
    def encoder(self) -> Encoder:
        """The frozen encoder of the features this model was trained on.

        Raises:
            ClipcapError: the checkpoint does not name it, or another one is found under its name.
        """
        if self._encoder is None:
            if self.model.config.encoder is None:
                raise ClipcapError(
                    f"the checkpoint does not say its encoder ({self.model.config.clip_dim} wide): "
                    f"pass --clip_model_type"
                )
            self._encoder = self._load_encoder(self.model.config.encoder)
            self._check(self._encoder)
        return self._encoder

    def judge(self, name: str | None) -> Encoder:
        """The encoder that captions are judged by: the second one of `--score_with`, or this captioner's own.

        Raises:
            ClipcapError: it cannot be loaded.
        """
        if name is None:
            return self.encoder
        if name not in self._judges:
            self._judges[name] = self._load_encoder(name)
        return self._judges[name]

    def _load_encoder(self, name: str) -> Encoder:
        bfloat16 = self.dtype == torch.bfloat16
        return load_encoder(name, str(self.device), "bfloat16" if bfloat16 else None, self.encoder_tokenizer)

    def _check(self, encoder: Encoder) -> None:
        config = self.model.config
        if encoder.dim != config.clip_dim:
            raise ClipcapError(
                f"{encoder.name} gives embeddings {encoder.dim} wide, this checkpoint expects {config.clip_dim}: "
                f"pass --clip_model_type of the encoder it was trained with"
            )
        if config.encoder_weights_id not in (None, encoder.weights_id):
            raise ClipcapError(
                f"{encoder.name} has other weights ({encoder.weights_id}) than the encoder this checkpoint was "
                f"trained with ({config.encoder}, {config.encoder_weights_id}): pass that one as --clip_model_type"
            )

    def open(self, image: ImageLike, upright: bool = True) -> Tensor:
        """Read and preprocess one image: [3, R, R]."""
        return self.encoder.preprocess(open_image(image, upright=upright))

    def embed(self, pixels: Sequence[Tensor]) -> Tensor:
        """Encode preprocessed images [3, R, R]: float32 [B, D]."""
        return self.encoder.encode_images(torch.stack(list(pixels)))  # [B, 3, R, R] -> [B, D]

    @overload  # an open file is an iterable too, but of lines
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, images: ImageLike, config: DecodeConfig | None = None, **options: Any
    ) -> str: ...

    @overload
    def __call__(
        self, images: Iterable[ImageLike | Tensor | np.ndarray], config: DecodeConfig | None = None, **options: Any
    ) -> list[str]: ...

    def __call__(self, images: Any, config: DecodeConfig | None = None, **options: Any) -> str | list[str]:
        """The best caption of an image, or of each of several.

        An image is a path, an http address, bytes, an open file, a Pillow image, an array [H, W, 3] or [H, W] of
        uint8, or, in a list, an embedding [D].
        """
        single = is_image(images) or is_picture(images)
        captions = [found[0].text for found in self.caption([images] if single else images, config, **options)]
        return captions[0] if single else captions

    def caption(
        self,
        images: Iterable[ImageLike | Tensor | np.ndarray],
        config: DecodeConfig | None = None,
        batch_size: int = 16,
        **options: Any,
    ) -> list[list[Caption]]:
        """Captions of each image, best first.

        >>> captioner.caption(["a.jpg"], beam=True, num_captions=3)

        Args:
            images: paths, bytes, Pillow images, embeddings [D], or what is `Given` of one image, in any mixture.
            config: how to decode (default: beam search; sampling where an option of it is given).
            batch_size: images decoded together.
            options: in place of those of `config`, by the names of the flags of `clipcap predict`.
        Raises:
            ClipcapError: an image cannot be read, or an embedding is of another width or not finite.
        """
        images, config = listed(images), decoding(config, options)
        at_least("batch_size", batch_size, 1)
        numbers = range(len(images))
        parts = (numbers[start : start + batch_size] for start in range(0, len(images), batch_size))
        batches = (
            EncodedImages(list(part), self._read(images[part.start : part.stop], config, part)) for part in parts
        )
        return [
            captions for _, found in self.caption_batches(batches, config, images.__getitem__) for captions in found
        ]

    def caption_batches(
        self,
        batches: Iterable[EncodedImages],
        config: DecodeConfig,
        picture: Callable[[int], Any] | None = None,
    ) -> Iterator[CaptionedBatch]:
        """Caption batches of embeddings as they come.

        Args:
            batches: of embeddings, with the numbers of their images.
            config: how to decode.
            picture: number → the image itself, for a second encoder that orders the captions.
        Returns:
            each batch with its captions.
        """

        def write(given: Given, numbers: Sequence[int]) -> list[list[Caption]]:
            pictures = [picture(number) for number in numbers] if picture else None
            return self.caption_embeddings(given, config, numbers, pictures)

        return caption_batches(write, batches)

    def caption_rows(
        self,
        features: Features,
        rows: Sequence[int],
        config: DecodeConfig,
        batch_size: int = 16,
        numbers: Sequence[int] | None = None,
    ) -> Iterator[CaptionedBatch]:
        """Caption rows of a feature file, a batch at a time; those that are not finite are in `bad` of its batch.

        Args:
            rows: R of the file.
            config: how to decode.
            batch_size: rows decoded together.
            numbers: R, of their images in the run, on which samples depend (default: 0, 1, …).
        """
        row_of = dict(zip(range(len(rows)) if numbers is None else numbers, rows))
        return self.caption_batches(
            stored_embeddings(features, rows, batch_size, numbers),
            config,
            lambda number: features.image_paths[row_of[number]],
        )

    def _read(self, images: Sequence, config: DecodeConfig, numbers: Sequence[int]) -> Given:
        """What is given of a mixture of images and embeddings, which have these numbers in messages."""
        images = [as_image(image) for image in images]
        given = {
            i: x if isinstance(x, Given) else Given(embedding_of(x, numbers[i], self.model.config.clip_dim)[None])
            for i, x in enumerate(images)
            if isinstance(x, Tensor | np.ndarray | Given)
        }
        rest = [i for i in range(len(images)) if i not in given]
        for i in rest:
            if not is_image(images[i]):
                raise ClipcapError(
                    f"image {numbers[i]} is {images[i]!r:.60}: an image is a path, bytes, an open file, a Pillow "
                    f"image or an embedding"
                )
        if rest:
            upright = config.recipe != "reference"
            layout = self.model.token_layout
            how: dict[str, Any] = {"upright": upright, "tokens": layout}
            [encoded] = encode_images(self.encoder, [images[i] for i in rest], len(rest), **how)
            if encoded.bad or encoded.given is None:
                raise next(iter(encoded.bad.values()))
            given |= {i: encoded.given[[place]] for place, i in enumerate(rest)}
        return Given.together([given[i].to(self.device) for i in range(len(images))])

    def caption_embeddings(
        self,
        given: Given | Tensor,
        config: DecodeConfig,
        numbers: Sequence[int] | None = None,
        pictures: Sequence[Any] | None = None,
    ) -> list[list[Caption]]:
        """Captions for one batch of images, best first.

        Args:
            given: of B images; a tensor is their embeddings [B, D].
            config: how to decode.
            numbers: B, of the images in the run, as `decode` takes them.
            pictures: B, the images themselves, for a second encoder that orders the captions.
        Raises:
            ClipcapError: the captions do not fit the language model, or a picture is needed and cannot be read.
        """
        config = config.resolved()
        given = Given.of(given).to(self.device)
        given = replace(given, vectors=given.vectors.float())
        reranked = config.rerank != "none"
        wanted = config.num_captions
        if reranked:
            several = config.beam_size if config.beam else None
            config = replace(config, num_captions=max(several or config.candidates, wanted))
        self._prepare(len(given), config)
        tidied = config.recipe != "reference"
        given, retrieved = with_prompts(
            given, self.prompter, lambda name: self._seen_by(self.judge(name), pictures, tidied, "retrieve_with")
        )
        found = with_retrieved(self._decode(given, config, numbers), retrieved)
        if tidied:
            found = [[replace(c, text=tidy(c.text)) for c in captions] for captions in found]
        if config.rerank == "consensus":
            from clipcap.captioning.consensus import consensus_of

            return [captions[:wanted] for captions in consensus_of(self.consensus).order(given.vectors, found)]
        if reranked:
            judge, seen = self._seen_by_judge(given.vectors, pictures, config)
            found = [self.rerank(row, captions, judge)[:wanted] for row, captions in zip(seen, found)]
        return found

    def _prepare(self, images: int, config: DecodeConfig) -> None:
        """Pack the language model's weights where they meet several rows: not for one image, which is sooner done."""
        self._images += images
        rows = images * ((config.beam and config.beam_size) or config.num_captions)
        if rows > 1 and self._images > 1 and self.dtype == torch.float32 and self._packable:
            pack_for_rows(self.model.lm)

    @cached_property
    def _packable(self) -> bool:
        return not self._rounded and packable(self.model.lm)

    def _decode(self, given: Given, config: DecodeConfig, numbers: Sequence[int] | None) -> list[list[Caption]]:
        return decode(self.model, self.tokenizer, self._remembered(given), config, numbers)

    def _remembered(self, given: Given) -> Given:
        """What is given, with vectors as the memory of texts gives them, where there is one."""
        return given if self.memory is None else replace(given, vectors=self.memory.project(given.vectors))

    def _seen_by_judge(
        self, embeddings: Tensor, pictures: Sequence[Any] | None, config: DecodeConfig
    ) -> tuple[Encoder, Tensor]:
        """(the encoder that orders captions, its embeddings of the images)."""
        judge = self.judge(config.score_with)
        if config.score_with is None:
            return judge, embeddings
        return judge, self._seen_by(judge, pictures, config.recipe != "reference", "score_with")

    def _seen_by(self, encoder: Encoder, pictures: Sequence[Any] | None, upright: bool, flag: str) -> Tensor:
        """The pictures themselves as a second encoder sees them, [B, D]."""
        if pictures is None or not all(map(is_image, pictures)):
            raise ClipcapError(
                f"--{flag} {encoder.name} looks at the photos themselves, and here are none: pass photos, "
                f"or leave it out"
            )
        return embed_pictures(encoder, pictures, upright=upright)

    def rerank(self, embedding: Tensor, captions: Sequence[Caption], judge: Encoder | None = None) -> list[Caption]:
        """Order captions by the cosine of their text embedding and the image's; sets `clip_score`.

        Args:
            embedding: of the image, [D], by `judge`.
            captions: of it.
            judge: a dual encoder (default: the captioner's own).
        """
        return sorted(self.scored(embedding, captions, judge), key=lambda c: -(c.clip_score or 0.0))

    def scored(self, embedding: Tensor, captions: Sequence[Caption], judge: Encoder | None = None) -> list[Caption]:
        """Captions with their `clip_score`, in their order; arguments as those of `rerank`."""
        texts = (judge or self.encoder).encode_texts([c.text for c in captions])  # [K, D]
        scores = torch.cosine_similarity(texts, embedding[None].to(texts), dim=-1).tolist()  # [K]
        return [replace(c, clip_score=s) for c, s in zip(captions, scores)]

    @torch.inference_mode()
    def explain(self, image: ImageLike | Tensor | Given, top: int = 5) -> list[list[tuple[str, float]]]:
        """Nearest vocabulary words of each prefix position, with their cosine (paper, section 4)."""
        given = image if isinstance(image, Given) else self._read([image], DecodeConfig(), [0])  # of one image
        whole = self.model.prefix(self._remembered(given.to(self.device)))[0]  # [before + P + after, E]
        prefix = torch.nn.functional.normalize(whole[self.model.image_span], dim=-1)  # [P, E]
        vocabulary = torch.nn.functional.normalize(self.model.token_embeddings.weight, dim=-1)  # [V, E]
        cosine, token = (prefix @ vocabulary.T).topk(top, dim=-1)  # [P, V] -> [P, top]
        return [
            [(str(self.tokenizer.decode([t])), c) for t, c in zip(tokens, cosines)]
            for tokens, cosines in zip(token.tolist(), cosine.tolist())
        ]
