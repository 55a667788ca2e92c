"""`POST /caption`: forms and JSON, what is refused, many at once, and clients that leave."""

from __future__ import annotations

import base64
import http.client
import json
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.road import REPO, start

from clipcap.captioning.captioner import Captioner
from clipcap.demo.plates import write_set
from clipcap.runtime.bundled import DEMO

MAX_MB = 1
JSON, SIGN = "application/json", "0f1e2d3c4b5a69788796a5b4c3d2e1f0"  # the same in each process that runs tests
FORM = f"multipart/form-data; boundary={SIGN}"


def form(content: bytes, **settings: object) -> bytes:
    """The body of a form with a photo."""
    head = f'--{SIGN}\r\nContent-Disposition: form-data; name="image"; filename="photo.jpg"\r\n\r\n'
    fields = "".join(
        f'--{SIGN}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in settings.items()
    )
    return fields.encode() + head.encode() + content + f"\r\n--{SIGN}--\r\n".encode()


def as_json(content: bytes, **settings: object) -> bytes:
    return json.dumps({"image": base64.b64encode(content).decode(), **settings}).encode()


@pytest.fixture(scope="module")
def plates(tmp_path_factory):
    return sorted((write_set(tmp_path_factory.mktemp("plates"), 4, seed=1) / "dataset").iterdir())


@pytest.fixture(scope="module")
def captions(plates):
    return Captioner.from_pretrained(DEMO, device="cpu").caption(plates, num_captions=3)


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Gives a function: (status, answer) of a request to a running page."""
    pytest.importorskip("gradio", reason="no gradio: pip install 'clipcap-toolkit[app]'")
    folder = tmp_path_factory.mktemp("page")
    process = start("app", "--port", 0, "--max_mb", MAX_MB, "--max_megapixels", 1, TMPDIR=str(folder))
    port = int(process.stdout.readline().strip().rpartition(":")[2])

    def ask(body, kind=JSON, method="POST", path="/caption", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            connection.request(method, path, body, {"Content-Type": kind, **headers})
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        finally:
            connection.close()

    ask.port = port
    yield ask
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=90)
    assert process.returncode == 0


@pytest.mark.parametrize("address", ["", "data:image/jpeg;base64,"])
def test_a_form_and_json_give_the_captions_of_python(ask, plates, captions, address):
    content = plates[0].read_bytes()
    status, answer = ask(form(content, num_captions=3), FORM)
    assert status == 200 and answer["caption"] == captions[0][0].text
    assert [row["caption"] for row in answer["captions"]] == [c.text for c in captions[0]]
    body = json.loads(as_json(content, num_captions=3))
    body["image"] = address + body["image"]
    assert ask(json.dumps(body).encode()) == (200, answer)


def test_settings_of_sampling_and_prompt(ask, plates):
    content = plates[1].read_bytes()
    one, again = (ask(as_json(content, temperature=1.5, seed=3, prompt="two ")) for _ in range(2))
    assert one == again and one[0] == 200 and one[1]["caption"].startswith("two")


def test_thirty_two_requests_at_once_each_get_their_own_captions(ask, plates, captions):
    bodies = [(form(plates[i % 4].read_bytes()), FORM) if i % 2 else (as_json(plates[i % 4].read_bytes()), JSON)
              for i in range(32)]  # fmt: skip
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda sent: ask(*sent), bodies))
    assert [status for status, _ in answers] == [200] * 32
    assert [answer["caption"] for _, answer in answers] == [captions[i % 4][0].text for i in range(32)]


@pytest.mark.parametrize(
    ("body", "kind", "status", "reason"),
    [
        (b"", JSON, 400, "is not JSON"),
        (b"[]", JSON, 422, "needs `image`"),
        (b'{"image": 3}', JSON, 422, "needs `image`"),
        (b'{"image": "?"}', JSON, 422, "is not base64"),
        (b'{"image": ""}', JSON, 422, "missing or empty"),
        (as_json(b"no photo"), JSON, 422, "image"),
        (as_json(b"x", colour=1), JSON, 422, "there is no setting 'colour'"),
        (as_json(b"x", num_captions=11), JSON, 422, "num_captions is 11; at most 10"),
        (as_json(b"x", num_captions="many"), JSON, 422, "num_captions is 'many'"),
        (as_json(b"x", temperature=-1), JSON, 422, "temp"),
        (as_json(b"x" * 1_000_001), JSON, 413, "at most 1,000,000"),
        (as_json(b"x" * 1_200_000), JSON, 413, "more than"),
        (form(b"x" * 1_000_001), FORM, 413, "at most 1,000,000"),
        (form(b"", num_captions=1), FORM, 422, "missing or empty"),
        (b"--" + SIGN.encode(), FORM, 422, "`image`"),
        (b"x", "image/jpeg", 415, "send multipart/form-data"),
    ],
)
def test_what_is_wrong_with_a_request_is_one_line(ask, body, kind, status, reason):
    found, answer = ask(body, kind)
    assert (found, reason in answer["detail"]) == (status, True), answer
    assert "\n" not in answer["detail"] and "/tmp" not in answer["detail"]


def test_pages_elsewhere_cannot_ask(ask, plates):
    status, answer = ask(form(plates[0].read_bytes()), FORM, Origin="http://elsewhere.example")
    assert status == 403 and "a page elsewhere" in answer["detail"]


def test_openapi_describes_it(ask):
    status, document = ask(None, method="GET", path="/openapi.json")
    operation = document["paths"]["/caption"]["post"]
    assert status == 200 and set(operation["requestBody"]["content"]) == {"multipart/form-data", JSON}
    fields = operation["requestBody"]["content"][JSON]["schema"]["properties"]
    assert fields["num_captions"]["maximum"] == 10 and fields["temperature"]["description"]


def test_a_client_that_leaves_frees_its_place(ask, plates):
    for _ in range(6):
        connection = http.client.HTTPConnection("127.0.0.1", ask.port, timeout=60)
        connection.request("POST", "/caption", as_json(plates[0].read_bytes()), {"Content-Type": JSON})
        connection.close()
    began = time.monotonic()
    assert ask(as_json(plates[0].read_bytes()))[0] == 200
    assert time.monotonic() - began < 60


def test_the_example_of_the_guide_runs_as_printed(ask, plates, captions, tmp_path):
    text = (REPO / "docs" / "guide" / "deploy.md").read_text()
    examples = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    [example] = [code for code in examples if "/caption" in code]
    (tmp_path / "photo.jpg").write_bytes(plates[0].read_bytes())
    code = example.replace("7860", str(ask.port))
    done = subprocess.run(["bash", "-ec", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.count(captions[0][0].text) >= 2, done.stderr
