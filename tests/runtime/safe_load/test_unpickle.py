"""Pickles are read as data: what plain pickle would give, and nothing that a hostile file asks for."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from clipcap.errors import ClipcapError
from clipcap.features.files import read_features
from clipcap.runtime.safe_load.objects import CALLS, INERT
from clipcap.runtime.safe_load.tensors import load_storage, storage_bytes
from clipcap.runtime.safe_load.unpickle import plain_data

CAPTION = {"image_id": "7", "id": 0, "caption": "A dog — brown 🐕.", "clip_embedding": 1}


class Reduced:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.reduced = (function, args)

    def __reduce__(self):
        return self.reduced


def content(**changes):
    return {"clip_embedding": torch.arange(8.0).reshape(2, 4), "captions": [CAPTION], **changes}


def saved(folder: Path, data) -> Path:
    path = folder / "features.pkl"
    path.write_bytes(data if isinstance(data, bytes) else pickle.dumps(data))
    return path


def refusal(folder: Path, data) -> str:
    """The line with which the file is refused: it names the file, and did not cost the reader minutes of work."""
    path = saved(folder, data)
    start = time.process_time()  # not wall time: the machine may be busy with other things
    with pytest.raises(ClipcapError) as refused:
        read_features(path)
    assert time.process_time() - start < 30
    message = str(refused.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_what_pickle_gives(protocol):
    shared = ["twice"]
    value = {
        "numbers": [0, 1, -1, 255, 256, 65536, -(2**31), 2**31, 2**70, -(2**300), 1.5, -0.0, float("inf")],
        "texts": ["", "é\n\\u", "🍕", "x" * 300, "y" * 70_000],
        "bytes": [b"", b"\x00\xff", b"z" * 70_000, bytearray(b"ab")],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "constants": [None, True, False],
        "shared": [shared, shared],
        5: {},
    }
    result = plain_data(io.BytesIO(pickle.dumps(value, protocol=protocol)), CALLS, INERT)
    assert result == value
    assert result["shared"][0] is result["shared"][1]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_tensors_of_any_protocol_and_type(tmp_path, protocol, dtype):
    tensor = torch.arange(12.0, dtype=dtype).reshape(3, 4)
    for stored in (tensor, tensor[1:], tensor.T, torch.nn.functional.pad(tensor, (1, 1))[:, 1:-1]):
        features = read_features(saved(tmp_path, pickle.dumps(content(clip_embedding=stored), protocol=protocol)))
        assert features.embeddings.dtype == dtype
        assert torch.equal(features.rows(slice(None)), stored.float())


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_storages_saved_on_a_gpu_and_in_zip_format_load():
    values = torch.arange(6, dtype=torch.float16)
    on_gpu = storage_bytes(values.numpy()).replace(b"\x03\x00\x00\x00cpu", b"\x06\x00\x00\x00cuda:0")
    assert b"cuda:0" in on_gpu
    assert torch.equal(load_storage(on_gpu), values)
    stream = io.BytesIO()
    torch.save(values.storage(), stream)
    assert stream.getvalue()[:2] == b"PK"
    assert torch.equal(load_storage(stream.getvalue()), values)


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_values_need_no_numpy_of_the_same_version(tmp_path, protocol):
    embeddings = np.arange(8, dtype=">f4").reshape(2, 4, order="F")
    caption = {**CAPTION, "image_id": np.int32(7), "clip_embedding": np.int64(1)}
    data = pickle.dumps({"clip_embedding": embeddings, "captions": [caption]}, protocol=protocol)
    if protocol < 4:  # where names are lines of their own, the module can be given its name of numpy 1
        data = data.replace(b"numpy._core", b"numpy.core")
    features = read_features(saved(tmp_path, data))
    assert np.array_equal(features.rows([0, 1]).numpy(), embeddings.astype(np.float32))
    assert features.caption_rows.tolist() == [1]
    assert features.image_ids == ["row 0", "7"]


@pytest.mark.parametrize("storage", ["python", "pyarrow"])
@pytest.mark.parametrize("protocol", range(6))
def test_rows_of_pandas_are_read(tmp_path, protocol, storage):
    with pd.option_context("mode.string_storage", storage):
        table = pd.DataFrame({"image_id": [5, 6], "caption": ["One é.", "Two."], "clip_embedding": [1, 0]})
        rows = [table.iloc[i] for i in range(2)]
    features = read_features(saved(tmp_path, pickle.dumps(content(captions=rows), protocol=protocol)))
    assert features.captions == ["One é.", "Two."]
    assert features.caption_rows.tolist() == [1, 0]
    assert features.image_ids == ["6", "5"]


def test_text_of_python_2_is_read(tmp_path):
    name = "é".encode()
    python2 = b"\x80\x02}q\x00(U\x07captionq\x01U" + bytes([len(name)]) + name + b"U\x0eclip_embeddingK\x01u."
    assert plain_data(io.BytesIO(python2), CALLS, INERT) == {"caption": "é", "clip_embedding": 1}
    as_text = storage_bytes(np.arange(3, dtype=np.float32)).decode("latin-1")
    assert load_storage(as_text).tolist() == [0, 1, 2]


def hostile(path: Path) -> dict[str, tuple[object, str]]:
    """Files that would make a trusting reader create `path`, and the name each must be refused by."""
    command = f"touch {path}"
    row = pd.Series({"caption": Reduced(os.system, command), "clip_embedding": 0})
    nested = pickle.dumps(Reduced(os.system, command), protocol=2)
    system = os.system.__module__ + ".system"
    return {
        "a call": (content(meta=Reduced(os.system, command)), system),
        "a call of protocol 0": (pickle.dumps(Reduced(os.system, command), protocol=0), system),
        "a call inside a row of pandas": (content(captions=[row]), system),
        "an old instance": (f"(S'{command}'\nios\nsystem\n.".encode(), "os.system"),
        "eval": (content(meta=Reduced(eval, f"open('{path}', 'w')")), "builtins.eval"),
        "getattr": (content(meta=Reduced(getattr, "", "join")), "builtins.getattr"),
        "a dotted name": (b"\x80\x04\x8c\x0ctorch._utils\x8c\x0atorch.load\x93.", "torch._utils.torch.load"),
        "a name of a harmless module": (content(meta=Reduced(np.load, str(path))), "numpy.load"),
        "torch.load": (content(meta=Reduced(torch.load, str(path))), "torch.serialization.load"),
        "a pickle inside a storage": (content(meta=Reduced(torch.storage._load_from_bytes, nested)), system),
        "a name never called": (content(meta=os.system), system),
        "a huge array": (content(clip_embedding=Reduced(np.empty, 10**12)), "empty"),
        "multiplied bytes": (content(meta=Reduced(bytes, 10**12)), "unknown spelling"),
        "an extension code": (b"\x80\x02\x82\x01.", "EXT1"),
        "a persistent id": (b"}(Pos.system\n.", "PERSID"),
    }


@pytest.mark.parametrize("attack", hostile(Path("x")))
def test_hostile_pickles_are_refused_by_name_and_run_nothing(tmp_path, attack):
    victim = tmp_path / "created"
    data, name = hostile(victim)[attack]
    assert name in refusal(tmp_path, data)
    assert not victim.exists()


def greedy() -> dict[str, tuple[bytes, str]]:
    """Files that crash or stall Python's own unpickler, or make it take all memory, and words of the refusal."""
    depth = 300_000
    nested = b"K\x01" + b"\x85" * depth  # ((((1,),),),)
    doubling = b"N\x94" + b"".join(bytes((*b"h", i, *b"h", i)) + b"\x86\x94" for i in range(100))
    many_bytes = b"c_codecs\nencode\nq\x00X" + struct.pack("<I", 100_000) + b"x" * 100_000 + b"q\x01"
    return {
        "a memo index": (b"\x80\x04}r\xff\xff\xff\x7f.", "expected the keys"),
        "bytes of 2**60": (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x", "truncated"),
        "a text of 4 GB": (b"\x80\x04X\xff\xff\xff\xffx", "truncated"),
        "a bytearray of 2**62": (b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"x", "truncated"),
        "a deep tuple as a key": (b"\x80\x04}" + nested + b"K\x01s.", "dictionary key"),
        "a deep tuple as a row": (b"\x80\x04" + nested + b".", "found tuple"),
        "a deep list": (b"\x80\x04" + b"]" * depth + b"K\x01" + b"a" * depth + b".", "found list"),
        "marks": (b"\x80\x04" + b"(" * depth, "truncated"),
        "a list of itself": (b"\x80\x04]\x94h\x00a.", "found list"),
        "doubling tuples as a key": (b"\x80\x04" + doubling + b"}h\x64Ns.", "dictionary key"),
        "the same bytes again": (b"\x80\x02" + many_bytes + b"h\x00h\x01\x85R" * 100_000 + b".", "again and again"),
        "an empty stack": (b"\x80\x04s.", "IndexError"),
        "no memo": (b"\x80\x04h\x05.", "KeyError"),
        "a state of a number": (b"\x80\x04K\x01}b.", "damaged"),
        "a call of a number": (b"\x80\x04K\x01)R.", "damaged"),
        "a name that is not text": (b"\x80\x04K\x01K\x02\x93.", "not text"),
    }


@pytest.mark.parametrize("attack", greedy())
def test_pickles_that_would_crash_or_fill_the_memory_are_refused(tmp_path, attack):
    data, words = greedy()[attack]
    tracemalloc.start()
    try:
        assert words in refusal(tmp_path, data)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "args",
    [(0, (1000, 1000), (0, 0)), (0, (2, 4), (4, 2)), (1, (2, 4), (4, 1)), (-1, (2, 4), (4, 1)), (0, (-2, 4), (4, 1))],
)
def test_tensors_that_reach_outside_their_storage_are_refused(tmp_path, args):
    storage = Reduced(torch.storage._load_from_bytes, storage_bytes(np.zeros(8, dtype=np.float32)))
    tensor = Reduced(torch._utils._rebuild_tensor_v2, storage, *args, False, OrderedDict())
    refusal(tmp_path, content(clip_embedding=tensor))


def test_storages_that_claim_more_than_is_there_are_refused(tmp_path):
    claim = storage_bytes(np.zeros(8, dtype=np.float32)).replace(b"K\x08", b"K\xff")
    for data in (claim, storage_bytes(np.zeros(8, dtype=np.float32))[:-1], b"", b"PK\x03\x04", pickle.dumps(1)):
        refusal(tmp_path, content(clip_embedding=Reduced(torch.storage._load_from_bytes, data)))


def test_a_zip_bomb_in_a_storage_is_refused(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    bomb = Reduced(torch.storage._load_from_bytes, stream.getvalue())
    assert "compressed" in refusal(tmp_path, content(clip_embedding=bomb))


def test_a_pickle_cut_anywhere_says_that_it_is_truncated(tmp_path):
    whole = pickle.dumps(content())
    for size in range(1, len(whole)):
        assert f"truncated at {size:,} bytes" in refusal(tmp_path, whole[:size])


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_damaged_bytes_give_features_or_one_clear_line(tmp_path):
    table = pd.DataFrame({"image_id": [5, 6], "caption": ["One.", "Two."], "clip_embedding": [1, 0]})
    chance = random.Random(0)
    for protocol in (0, 2, 4):
        whole = pickle.dumps(content(captions=[table.loc[0], CAPTION]), protocol=protocol)
        for _ in range(300):
            data = bytearray(whole)
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            try:
                read_features(saved(tmp_path, bytes(data)))
            except ClipcapError as error:
                assert "\n" not in str(error)
