"""Write the seeds of the corpus, small sound files of every kind: `python fuzz/seeds.py fuzz/corpus`."""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import write_features
from clipcap.retrieval.entries import SCHEMA, entries_table
from clipcap.runtime.safe_load.tensors import storage_bytes

TEXTS = {
    0: ',Index,Captions\n0,a,"A dog, running"\n1,b,two\n',
    1: '[{"image_id": "7", "caption": "a dog"}, {"image_id": 8, "caption": "é"}]',
    2: '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "id": 2, "caption": "a"}]}',
    3: '{"images": [{"filename": "a.jpg", "cocoid": 3, "split": "restval", "sentences": [{"raw": "a dog"}]}]}',
    4: "image,caption\na.jpg,A dog runs .\n",
    5: "a.jpg#0\tA dog runs .\n",
    6: "a dog\thttp://a/1.jpg\n",
    7: 'image,caption,split\na.jpg,"a ""dog""",train\nb.jpg,x,val\n',
    8: "file\ttext\na.jpg\ta dog\n",
    9: '{"a.jpg": ["a dog", "two"], "b.jpg": "c"}',
    10: '{"image": "a.jpg", "captions": ["x", null]}\n{"image": "b", "captions": "y"}\n',
    13: "a dog\n\ntwo\n",
    14: '[{"image_id": 1, "caption": "a"}]',
    15: '{"image": "a.jpg", "caption": "x"}\n',
    16: "image,caption\n'=a.jpg,x\n",
    17: "0,http://a/1.jpg,HTTP 404\n",
}


def readers() -> dict[str, bytes]:
    """One file for each kind of `readers.KINDS`."""
    seeds = {f"text{number}": bytes([number]) + text.encode() for number, text in TEXTS.items()}
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": ["a.jpg"], "caption": [["x", "y"]]}), stream, compression="none")
    seeds["parquet"] = bytes([11]) + stream.getvalue()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in (("0.jpg", b"x"), ("0.txt", b"a dog"), ("1.json", b'{"caption": "b"}'), ("1.png", b"y")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return seeds | {"tar": bytes([12]) + stream.getvalue()[: 9 * 512]}


def unpickle() -> dict[str, bytes]:
    """Feature files of every protocol, storages of both formats, an archive."""
    caption = {"image_id": "7", "id": 0, "caption": "A dog.", "clip_embedding": 1}
    content = {"clip_embedding": torch.arange(4.0).reshape(2, 2), "captions": [caption]}
    seeds = {f"torch{protocol}": b"\0" + pickle.dumps(content, protocol) for protocol in range(6)}
    content["clip_embedding"] = np.arange(4, dtype=np.float16).reshape(2, 2)
    seeds |= {f"numpy{protocol}": b"\0" + pickle.dumps(content, protocol) for protocol in (0, 2, 5)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f.pkl"
        write_features(path, embeddings=torch.ones(1, 2), image_ids=["a"], image_paths=[None], captions=[("x",)],
                       meta=FeatureMeta())  # fmt: skip
        seeds["ours"] = b"\0" + path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))
        seeds["archive"] = b"\2" + path.read_bytes()
    seeds["storage"] = b"\1" + storage_bytes(np.arange(3, dtype=np.float32))
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(torch.ones(2).storage(), stream)
    return seeds | {"zipped": b"\1" + stream.getvalue()}


def weights() -> dict[str, bytes]:
    """A wrapped state dict in both formats, a TorchScript archive, a training state."""
    names = ("gpt.transformer.wte.weight", "clip_project.model.0.weight", "visual.conv1.weight")
    content = {"state_dict": {f"model.{name}": torch.ones(2, 2) for name in names}, "epoch": 1, "args": Path("x")}
    progress = {"epoch": 1, "step": 0, "loss_sum": 0.0, "loss_weight": 0.0, "best": 1.0, "stale": 0, "reductions": 0}
    state = {"identity": {"seed": 1}, "progress": {**progress, "history": [{"train_loss": 1.0}]}, "scaler": None}
    state |= {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}}
    seeds = {}
    for name, byte, value in (("wrapped", 0, content), ("state", 2, {**state, "scheduler": {"last_epoch": 1}})):
        for zipped in (True, False):
            stream = io.BytesIO()
            torch.save(value, stream, _use_new_zipfile_serialization=zipped)
            seeds[f"{name}{'' if zipped else '-stream'}"] = bytes([byte]) + stream.getvalue()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(1, 1)).save(f"{folder}/a.pt")
        return seeds | {"archive": b"\1" + Path(folder, "a.pt").read_bytes()}


def entries() -> dict[str, bytes]:
    """A part of an index of three rows."""
    stream = io.BytesIO()
    with pa.ipc.new_file(stream, SCHEMA) as file:
        file.write_table(entries_table(["a", "b", "c"], ["a.jpg", None, "c.jpg"], [["x", "yy"], [], ["z"]]))
    return {"three": stream.getvalue()}


def flax() -> dict[str, bytes]:
    """Parameters in nested maps, and an array in chunks, as msgpack."""
    content = b"\x93\x91\x02\xa7float32\xc4\x08" + bytes(8)  # (shape [2], dtype, bytes)
    array = b"\xc7" + bytes([len(content)]) + b"\x01" + content  # an extension of type 1
    chunked = b"\x83\xb9__msgpack_chunked_array__\xc3\xa5shape\x81\xa10\x02\xa6chunks\x81\xa10" + array
    return {"nested": b"\x81\xa1a\x82\xa1b" + array + b"\xa1c" + array, "chunked": b"\x81\xa1a" + chunked}


def main(corpus: Path) -> None:
    """Write the seeds of every target."""
    for target in (readers, unpickle, weights, entries, flax):
        folder = corpus / target.__name__
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in target().items():
            (folder / name).write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
