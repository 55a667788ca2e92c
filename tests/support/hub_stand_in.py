"""A small stand-in of the Hugging Face hub: repositories in memory, created, uploaded to and downloaded over HTTP."""

from __future__ import annotations

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The few addresses that creating, committing and fetching a repository use."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, content=b"", status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def do_POST(self):
        server, body = self.server, self.body()
        if self.headers.get("Authorization") != "Bearer secret":
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            server.repositories.setdefault(name, {})
            server.private[name] = wanted.get("visibility") == "private" or wanted.get("private")
            return self.answer({"url": f"{server.address}/{name}"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        if self.path.endswith("/info/lfs/objects/batch"):
            actions = [
                {**found, "actions": {"upload": {"href": f"{server.address}/lfs/{found['oid']}"}}}
                for found in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": actions})
        if "/commit/" in self.path:
            name = self.path.split("/api/models/")[1].split("/commit/")[0]
            for line in body.splitlines():
                operation = json.loads(line)
                value = operation["value"]
                if operation["key"] == "file":
                    server.repositories[name][value["path"]] = base64.b64decode(value["content"])
                elif operation["key"] == "lfsFile":
                    server.repositories[name][value["path"]] = server.large[value["oid"]]
            return self.answer({"commitUrl": f"{server.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
        return self.answer({"error": "not found"}, 404)

    def do_PUT(self):
        self.server.large[self.path.removeprefix("/lfs/")] = self.body()
        self.answer()

    def do_GET(self):
        files = next((f for n, f in self.server.repositories.items() if f"/{n}/" in self.path), None)
        if self.path == "/":
            self.answer()
        elif self.path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == "Bearer secret"
            self.answer({"name": "someone"} if known else {"error": "who?"}, 200 if known else 401)
        elif files is None:
            self.answer({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in self.path:
            found = [{"type": "file", "path": n, "size": len(f), "oid": COMMIT} for n, f in files.items()]
            self.answer(found, **{"Content-Type": "application/json"})
        elif self.path.startswith("/api/models/"):
            name = self.path.split("/api/models/")[1].split("/revision/")[0]
            self.answer({"id": name, "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]})
        else:
            name = self.path.split(f"/resolve/{COMMIT}/")[-1]
            self.answer(files[name], **{"ETag": f'"{abs(hash(name))}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET


@contextmanager
def hub():
    """The running stand-in; its `address` is the endpoint, `repositories` holds the files by name."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.repositories, server.private, server.large = {}, {}, {}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
