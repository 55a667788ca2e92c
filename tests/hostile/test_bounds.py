"""Memory, time and native code that files could take: tars, tables, entries, numbers, pictures, streams."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPO
from PIL import Image
from support.road import picture, run
from support.small import feature_file

from clipcap.captioning.tidy import tidy
from clipcap.cli.main import LONGEST_ERROR
from clipcap.errors import ClipcapError
from clipcap.features.folder import read_metadata
from clipcap.images.memory import middle_frame
from clipcap.retrieval.entries import SCHEMA, StoredCatalogue, entries_table, map_entries
from clipcap.runtime.json_text import to_json
from clipcap.runtime.safe_load.parquet import OversizedTable, read_batches
from clipcap.runtime.safe_load.torchscript import scripted_state
from clipcap.runtime.safe_load.unpickle import UnreadablePickle, plain_data
from clipcap.sources.collector import Collector
from clipcap.sources.config import SourceConfig
from clipcap.sources.tables import read_table
from clipcap.sources.tars import add_tars


def header(name: bytes, size: bytes = b"00000000000\0", kind: bytes = b"0") -> bytes:
    """A tar header with its checksum."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[124:136], block[156:157] = b"0000644\0", size, kind
    block[257:265], block[148:156] = b"ustar\x0000", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def long_name(content: bytes = b"b.jpg\0") -> bytes:
    return header(b"././@LongLink", b"%011o\0" % len(content), b"L") + content + bytes(-len(content) % 512)


TARS = {
    "a chain of names": long_name() * 400 + header(b"a.jpg"),
    "a size that leads back": header(b"n.txt", b"\xff" + (2**88 - 512).to_bytes(11, "big")) + header(b"a.jpg"),
    "a name that leads back": header(b"././@LongLink", b"\xff" + (2**88 - 512).to_bytes(11, "big"), b"L"),
    "a name of a gigabyte": header(b"././@LongLink", b"%011o\0" % 2**30, b"L"),
}


@pytest.mark.parametrize("kind", TARS)
def test_tars_end(kind, tmp_path):
    (tmp_path / "t.tar").write_bytes(TARS[kind] + bytes(1024))
    with pytest.raises(ClipcapError, match=r"t.tar: damaged tar"):
        add_tars(Collector("custom"), [tmp_path / "t.tar"])


def test_sound_tars_of_every_format_are_read(tmp_path):
    for number, form in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        long = "d" * 80 + "/" + "e" * 90 + "é"[: number > 0]
        with tarfile.open(tmp_path / "t.tar", "w", format=form) as tar:
            for name, content in ((f"{long}.jpg", b"x"), (f"{long}.txt", b"a dog")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        collector = Collector("custom")
        add_tars(collector, [tmp_path / "t.tar"])
        found = collector.finish(SourceConfig(data_path=str(tmp_path / "t.tar"))).records
        assert [(record.image_id, record.captions) for record in found] == [(f"t/{long}", ("a dog",))]


class TestTables:
    def repeated(self, path):
        table = {"image": ["p.jpg"] * 40, "caption": pa.array([["x" * 1_000_000] * 100] * 40)}
        pq.write_table(pa.table(table), path, compression="zstd")
        return path

    def test_texts_that_repeat_to_gigabytes(self, tmp_path):
        path = self.repeated(tmp_path / "c.parquet")
        before = pa.total_allocated_bytes()
        with pytest.raises(OversizedTable):
            for _ in read_batches(path, ["image", "caption"]):
                assert pa.total_allocated_bytes() - before < 2**28
        with pytest.raises(ClipcapError, match="takes more than"):
            list(read_table(path).rows("caption"))
        with pytest.raises(ClipcapError, match="takes more than"):
            read_metadata(path, ("caption",))

    @pytest.mark.parametrize("longest", [10, 100_000])
    def test_sound_ones_are_read_as_pyarrow_reads_them(self, longest, tmp_path):
        """Also where one long text makes the slow reader count each batch."""
        texts = ["short", None, "x" * longest] + [f"caption {n}" for n in range(5000)]
        columns = {
            "text": texts,
            "several": [[text, "again"] for text in texts],
            "number": list(range(len(texts))),
            "image": [{"bytes": b"1", "path": "a"}, None] + [{"bytes": b"2", "path": None}] * (len(texts) - 2),
        }
        path = tmp_path / "t.parquet"
        pq.write_table(pa.table(columns), path)
        found = [
            row for batch in read_batches(path, list(columns)) for row in batch.select(list(columns)).to_pylist()
        ]
        assert found == pq.read_table(path).to_pylist()


class TestEntries:
    def written(self, path):
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            ids = [f"image {n}" for n in range(300)]
            writer.write_table(entries_table(ids, [None, *ids[1:]], [[f"caption {n}", "two"] for n in range(300)]))
        return path

    def test_sound_ones_are_read(self, tmp_path):
        table = map_entries(self.written(tmp_path / "e.arrow"))
        entry = StoredCatalogue([table], [600], []).entry(7)
        assert entry == ("image 7", "image 7", ["caption 7", "two"])

    @pytest.mark.parametrize(
        "bad", [(2**40,), (-8,), (2**62,), (2**40, 2**20 - 2**63)]
    )  # the last: steps wrap around
    @pytest.mark.parametrize("which", ["texts", "lists"])
    def test_offsets_outside_of_the_file(self, bad, which, tmp_path):
        path = self.written(tmp_path / "e.arrow")
        offsets = np.cumsum([0, *(len(f"image {n}") for n in range(300))]) if which == "texts" else np.arange(301) * 2
        good = offsets.astype("<i8").tobytes()
        changed = offsets.astype("<i8")
        changed[150 : 150 + len(bad)] = bad
        assert good in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(good, changed.tobytes()))
        with pytest.raises(ClipcapError, match="truncated or damaged"):
            map_entries(path)

    def test_texts_that_are_no_utf8(self, tmp_path):
        path = self.written(tmp_path / "e.arrow")
        path.write_bytes(path.read_bytes().replace(b"caption 7two", b"captio\xff 7two"[:12]))
        with pytest.raises(ClipcapError, match="texts are damaged"):
            StoredCatalogue([map_entries(path)], [600], []).entry(7)


def test_whole_numbers_that_python_does_not_print():
    data = (1 << 24_000).to_bytes(3001, "little")
    with pytest.raises(UnreadablePickle, match="a whole number of 24,001 bits"):
        plain_data(io.BytesIO(b"\x80\x02\x8b" + struct.pack("<i", len(data)) + data + b"."), {}, None)


def test_a_scripted_module_that_holds_itself_under_a_long_name(tmp_path):
    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value

    module = b"\x80\x02c__torch__\nM\n)\x81q\x00}(" + text(b"n" * 20_000) + b"h\x00ub."
    code = "class M(Module):\n  __parameters__ = []\n  __buffers__ = []\n"
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as file:
        for name, content in (("data.pkl", module), ("constants.pkl", b"\x80\x02)."), ("code/__torch__.py", code)):
            file.writestr(f"a/{name}", content)
    with pytest.raises(UnreadablePickle, match="within itself"):
        scripted_state(tmp_path / "m.pt")


def test_an_error_that_quotes_a_file_is_cut(tmp_path, capsys):
    feature_file(tmp_path / "f")
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"(" * 4000 + b")" * 4000 + b")}"
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    data = b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head
    (tmp_path / "f" / "img_emb" / "img_emb_0.npy").write_bytes(data)
    status, _, err = run(capsys, "features", "info", tmp_path / "f")
    assert status == 1 and len(err) == 1
    assert err[0].startswith(f"clipcap: error: {tmp_path}/f/img_emb/img_emb_0.npy") and err[0].endswith("again")
    assert len(err[0]) < LONGEST_ERROR + 50


def test_long_animations_are_shown_at_an_earlier_frame(tmp_path):
    frames = [picture(n, (8, 8)) for n in range(10)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.gif") as short:
        assert middle_frame(short) == 5

    class Long:
        width = height = 10_000
        n_frames = 1000

    assert middle_frame(Long()) == 20


def test_json_has_no_words_that_are_none():
    value = {"a": [1.5, float("nan"), (float("inf"), "x")], "b": {"c": -float("inf")}, "d": True}
    assert json.loads(to_json(value), parse_constant=pytest.fail) == {
        "a": [1.5, None, [None, "x"]], "b": {"c": None}, "d": True,
    }  # fmt: skip


def test_chinese_is_written_without_blanks():
    assert tidy("红 色 的 车 , 和 狗 。") == "红色的车, 和狗。"
    assert tidy("a red car") == "a red car"
    assert tidy("빨간 차가 있다") == "빨간 차가 있다"


SHRUNK = """
import os, sys
import numpy as np
from clipcap.runtime.streams import report_shrunk_files
report_shrunk_files()
np.save(sys.argv[1], np.ones((10_000, 100), np.float32))
mapped = np.load(sys.argv[1], mmap_mode="r")
os.truncate(sys.argv[1], 1000)
print(mapped.sum())
"""
CLOSED = """
import os, sys
from clipcap.runtime.streams import ensure_streams
ensure_streams()
print("unheard")
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2
"""


def python(code: str, *words: object, shell: str = "") -> subprocess.CompletedProcess:
    command = ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-c", code, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), *filter(None, sys.path)])}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_a_mapped_file_that_shrinks_ends_in_one_line(tmp_path):
    done = python(SHRUNK, tmp_path / "a.npy")
    assert done.returncode == 1
    assert done.stderr.startswith("clipcap: error: a file became shorter") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_files_of_ours(closed, tmp_path):
    done = python(CLOSED, tmp_path / "x", shell=closed)
    assert done.returncode == 0 and (tmp_path / "x").read_text() == ""
