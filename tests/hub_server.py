"""A small Hugging Face hub on the loopback address, for tests of the real `huggingface_hub` client.

    with Hub() as hub:
        hub.add("me/model", {"config.json": b"{}"})
        ...  # a process with HF_ENDPOINT=hub.url and HF_HUB_DISABLE_XET=1 downloads from it and pushes to it

It answers what the client asks of model repositories: their revisions, trees and files, and commits with and without
LFS. The headers and error codes are the hub's own; xet, branches other than a commit's target and rights are left out.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS = (".safetensors", ".bin", ".pt")  # the endings of files that are pushed as LFS objects


class Refusal(Exception):
    """An answer that is an error: its status, the hub's code for it (`X-Error-Code`) and a message."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


class Hub:
    """A hub with its repositories, running from `with` to its end or to `stop`.

    `requests` are the (method, path) pairs that were asked, without the queries, and `ranges` the `Range` headers among
    them. `break_after`: the next GET of a file longer than this many bytes sends only these and closes the connection,
    once. `fail_with`: the status that every request below `/api/` is answered with.
    """

    def __init__(self):
        self.revisions: dict[str, dict[str, str]] = {}  # repository -> branch, tag or sha -> sha
        self.commits: dict[str, dict[str, bytes]] = {}  # sha -> files
        self.objects: dict[str, bytes] = {}  # sha256 -> content pushed by LFS
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        self.break_after: int | None = None
        self.fail_with: int | None = None
        self.lock = threading.Lock()

    def __enter__(self) -> "Hub":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop answering: connections to `url` are refused from then on."""
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo_id: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Make a commit of exactly these files and move a branch or tag to it; return the commit's sha."""
        sha = hashlib.sha1(f"{repo_id} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.revisions.setdefault(repo_id, {}).update({revision: sha, sha: sha})
        return sha

    def sha(self, repo_id: str, revision: str = "main") -> str:
        """Return the commit that a branch, tag or sha of a repository stands for."""
        if repo_id not in self.revisions:
            raise Refusal(404, "RepoNotFound", "Repository not found")
        if revision not in self.revisions[repo_id]:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.revisions[repo_id][revision]

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a repository at a revision."""
        return self.commits[self.sha(repo_id, revision)]

    def asked(self, part: str) -> list[tuple[str, str]]:
        """Return the requests with `part` in their path."""
        return [(method, path) for method, path in self.requests if part in path]

    def take_break(self, length: int) -> int | None:
        """Return where to break off a file of `length` bytes: `break_after`, which is used up, or None."""
        with self.lock:
            if self.break_after is None or self.break_after >= length:
                return None
            after, self.break_after = self.break_after, None
            return after


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _oid(path: str, content: bytes) -> str:
    """The name of a file's content: what its ETag is, and what the client compares before it pushes."""
    return hashlib.sha256(content).hexdigest() if path.endswith(LFS) else _git_oid(content)


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests; an `_answer_…` method's value is sent as JSON, None where it sent its own."""

    protocol_version = "HTTP/1.1"
    server_hub: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing on standard error."""

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        hub = self.server_hub
        hub.requests.append((self.command, path))
        body = self._body()
        try:
            if hub.fail_with is not None and path.startswith("/api/"):
                raise Refusal(hub.fail_with, "", "The hub was told to fail")
            for methods, pattern, answer in _ROUTES:
                match = re.fullmatch(pattern, path)
                if self.command in methods.split() and match:
                    value = answer(self, *match.groups(), *([body] if body else []))
                    if value is not None:
                        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})
                    return
            raise Refusal(404, "", f"This hub knows no {self.command} {path}")
        except Refusal as error:
            headers = {"X-Error-Message": str(error), **({"X-Error-Code": error.code} if error.code else {})}
            self._send(error.status, json.dumps({"error": str(error)}).encode(), headers)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, status: int, content: bytes, headers: dict[str, str], end: int | None = None) -> None:
        """Send an answer; only its first `end` bytes, and then close the connection, where that is given."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:end])
        self.close_connection = self.close_connection or end is not None

    def _answer_info(self, repo_id: str, revision: str = "main") -> dict[str, Any]:
        sha = self.server_hub.sha(repo_id, revision)
        siblings = [{"rfilename": path} for path in self.server_hub.commits[sha]]
        return {"id": repo_id, "modelId": repo_id, "sha": sha, "private": False, "tags": [], "siblings": siblings}

    def _answer_tree(self, repo_id: str, revision: str) -> list[dict[str, Any]]:
        entries = []
        for path, content in self.server_hub.files(repo_id, revision).items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
            if path.endswith(LFS):
                entry["lfs"] = {"oid": _oid(path, content), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return entries

    def _answer_file(self, repo_id: str, revision: str, path: str) -> None:
        hub = self.server_hub
        sha = hub.sha(repo_id, revision)
        if path not in hub.commits[sha]:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        content = hub.commits[sha][path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_oid(path, content)}"', "Accept-Ranges": "bytes"}
        end = hub.take_break(len(content)) if self.command == "GET" else None
        wanted = self.headers.get("Range")
        if wanted is None:
            return self._send(200, content, headers, end)
        hub.ranges.append(wanted)
        first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
        part = content[int(first) : int(last) + 1 if last else None]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        return self._send(206, part, headers, end)

    def _answer_create(self, body: bytes) -> dict[str, Any] | None:
        asked = json.loads(body)
        repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
        answer = {"url": f"{self.server_hub.url}/{repo_id}", "name": repo_id}
        if repo_id in self.server_hub.revisions:
            answer["error"] = "You already created this model repo"
            return self._send(409, json.dumps(answer).encode(), {})
        self.server_hub.add(repo_id, {})
        return answer

    def _answer_preupload(self, repo_id: str, revision: str, body: bytes) -> dict[str, Any]:
        there = self.server_hub.files(repo_id, revision)
        files = []
        for path in (file["path"] for file in json.loads(body)["files"]):
            mode = "lfs" if path.endswith(LFS) else "regular"
            oid = {"oid": _oid(path, there[path])} if path in there else {}
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **oid})
        return {"files": files}

    def _answer_lfs(self, repo_id: str, body: bytes) -> dict[str, Any]:
        self.server_hub.sha(repo_id)
        answers = []
        for item in json.loads(body)["objects"]:
            address = {"upload": {"href": f"{self.server_hub.url}/objects/{item['oid']}"}}
            answers.append({**item, **({} if item["oid"] in self.server_hub.objects else {"actions": address})})
        return {"transfer": "basic", "objects": answers}

    def _answer_upload(self, oid: str, body: bytes) -> dict[str, Any]:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(422, "", "The content is not what its name says")
        self.server_hub.objects[oid] = body
        return {}

    def _answer_commit(self, repo_id: str, revision: str, body: bytes) -> dict[str, Any]:
        files = dict(self.server_hub.files(repo_id, revision))
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server_hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.server_hub.add(repo_id, files, revision)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.server_hub.url}/{repo_id}/commit/{sha}"}


_ID, _REV = r"([^/]+/[^/]+)", r"(.+)"
_ROUTES: list[tuple[str, str, Any]] = [
    ("GET", rf"/api/models/{_ID}/revision/{_REV}", _Handler._answer_info),
    ("GET", rf"/api/models/{_ID}", _Handler._answer_info),
    ("GET", rf"/api/models/{_ID}/tree/{_REV}", _Handler._answer_tree),
    ("GET HEAD", rf"/{_ID}/resolve/([^/]+)/(.+)", _Handler._answer_file),
    ("POST", r"/api/repos/create", _Handler._answer_create),
    ("POST", r"/api/validate-yaml", lambda self, body: {"errors": [], "warnings": []}),
    ("POST", rf"/api/models/{_ID}/preupload/{_REV}", _Handler._answer_preupload),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", _Handler._answer_lfs),
    ("PUT", r"/objects/([0-9a-f]{64})", _Handler._answer_upload),
    ("POST", rf"/api/models/{_ID}/commit/{_REV}", _Handler._answer_commit),
    ("GET", r"/api/whoami-v2", lambda self: {"type": "user", "name": "me", "orgs": []}),
]
