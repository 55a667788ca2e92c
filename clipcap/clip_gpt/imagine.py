"""`clipcap imagine`: words → the CLIP embedding that CLIP-GPT predicts → the nearest pictures, as table and grid."""

from __future__ import annotations

from clipcap.captioning.config import DecodeConfig
from clipcap.clip_gpt.captioner import load_clip_gpt_captioner
from clipcap.clip_gpt.config import ImagineConfig
from clipcap.errors import ClipcapError
from clipcap.retrieval.index import Index, Match
from clipcap.retrieval.results import check_out, show
from clipcap.runtime.places import writes_to
from clipcap.runtime.text import printable

ROUND_TRIP = DecodeConfig(beam=True)


@writes_to("config.out")
def imagine(caption: str, config: ImagineConfig) -> list[Match]:
    """Print the pictures nearest to what a caption describes and, with `out`, write or draw them.

    With `round_trip` the imagined embedding is put into words again, which shows what of the caption it holds.

    Returns:
        the matches, best first.
    Raises:
        ClipcapError: no CLIP-GPT, a bad index or another encoder's, or `out` cannot be written.
    """
    if not caption.strip():
        raise ClipcapError("the caption is empty: describe what the picture shows")
    check_out(config.out)
    index = Index.open(config.index, config.load.clip_model_type)
    clip_gpt = load_clip_gpt_captioner(config.load)
    own = clip_gpt.model.config
    index.check_encoder(own.encoder, own.encoder_weights_id, own.clip_dim, f"the checkpoint {config.load.load_pt}")
    imagined = clip_gpt.imagine([caption])  # [1, D]
    [found] = index.search(imagined, config.k)
    show([caption], [found], config.out)
    if config.round_trip:
        [[again, *_]] = clip_gpt.caption_embeddings(imagined, ROUND_TRIP)
        print(f"round trip: {printable(again.text)}")
    return found
