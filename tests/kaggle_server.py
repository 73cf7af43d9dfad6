"""A server that speaks Kaggle's API as its client sends it, keeps what it gets, and fails on order.

It runs in a thread of the tests, or alone: `python -m tests.kaggle_server`.
"""

from __future__ import annotations

import base64
import io
import json
import random
import re
import socket
import struct
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

TOKEN = "KGAT-a-token-of-the-tests-0123456789"
USER, KEY = "someone", "a-key-of-the-tests-0123456789"
ACCEPTED = (
    f"Bearer {TOKEN}",
    "Basic " + base64.b64encode(f"{USER}:{KEY}".encode()).decode(),
)
SLUG = "toy-competition"
SERVICE = "/api/v1/competitions.CompetitionApiService/"

Json = dict[str, Any]

# A fault is what happens to one call of a method. `before` is before the server has done its work,
# `after` when it has; what is left of the answer then is up to the fault.
FAULTS = (
    "401", "403", "404", "429", "400", "500 before", "500 after", "503 before", "drop before",
    "drop after", "hang before", "hang after", "html", "truncated", "code 500", "code 403",
    "no number",
)  # fmt: skip
# after which of them the server has done its work
DONE = {"500 after", "drop after", "hang after", "html", "truncated", "code 500", "no number"}
CLEAR = {"401", "403", "404", "429", "400", "500 before", "503 before", "drop before",
         "hang before", "code 403"}  # fmt: skip


@dataclass
class Server:
    """What Kaggle has and does; every attribute may be changed while it runs."""

    limit: int = 5  # submissions a day
    visible_after: float = 0.0  # seconds until the list shows a new submission
    scored_after: float = 0.0
    hang: float = 3.0  # seconds
    page: int = 20
    score: Callable[[bytes], float] = lambda content: 0.5
    outcome: str = "COMPLETE"
    reason: str = ""
    rank: int = 12
    faults: dict[str, list[str]] = field(default_factory=dict)  # by method, one a call
    submissions: list[Json] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    heard: list[str] = field(default_factory=list)  # method and headers, of everything
    files: dict[str, bytes] = field(default_factory=dict)
    archive: bytes | None = None
    blob: str = "archive.zip"  # what the storage calls it
    ranges: bool = True
    tag: str = '"one"'
    cut: list[int] = field(default_factory=list)  # bytes after which the next downloads break
    on_call: Callable[[str], None] = lambda method: None
    redirects: bool = True  # the blob is elsewhere, as at Kaggle

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"kaggle": self})
        self.http = _Quiet(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)

    @property
    def port(self) -> int:
        return int(self.http.server_address[1])

    def environment(self) -> dict[str, str]:
        """What makes a client come here, and nowhere else."""
        proxy = f"http://127.0.0.1:{self.port}"
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "KAGGLE_API_TOKEN": TOKEN, "no_proxy": "",
            "NO_PROXY": "", "http_proxy": proxy, "https_proxy": proxy, "HTTP_PROXY": proxy,
            "HTTPS_PROXY": proxy, "ALL_PROXY": proxy, "all_proxy": proxy,
        }  # fmt: skip

    def __enter__(self) -> Server:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def fail(self, method: str, *faults: str) -> None:
        with self.lock:
            self.faults.setdefault(method, []).extend(faults)

    def refs(self, marker: str = "") -> list[int]:
        with self.lock:
            return [item["ref"] for item in self.submissions if marker in item["description"]]

    # -- what the methods do: JSON in, JSON out

    def ListSubmissions(self, asked: Json) -> Json:
        now = time.time()
        shown = [self._shown(s) for s in self.submissions if now - s["at"] >= self.visible_after]
        shown.reverse()
        size = min(asked.get("pageSize", 20), self.page)
        start = int(asked.get("pageToken") or size * (asked.get("page", 1) - 1))
        more = {"nextPageToken": str(start + size)} if len(shown) > start + size else {}
        return {"submissions": shown[start : start + size], **more}

    def GetSubmission(self, asked: Json) -> Json:
        found = [s for s in self.submissions if s["ref"] == asked["ref"]]
        return self._shown(found[0]) if found else {"code": 404, "message": "no such submission"}

    def GetSubmissionLimits(self, asked: Json) -> Json:
        today = len(self.submissions)
        left = max(0, self.limit - today)
        return {"numToday": today, "numTotal": today, **({"numAllowedNow": left} if left else {})}

    def StartSubmissionUpload(self, asked: Json) -> Json:
        token = f"blob-{random.randrange(1 << 60):x}"
        self.blobs[token] = b""
        return {"token": token, "createUrl": f"http://storage.example/upload/{token}"}

    def CreateSubmission(self, asked: Json) -> Json:
        if len(self.submissions) >= self.limit:
            return {"code": 400, "message": "Your team has used its daily Submission allowance, "
                    "the daily limit is reached"}  # fmt: skip
        content = self.blobs.get(asked["blobFileTokens"], b"")
        if not content:
            return {"code": 400, "message": "the file did not arrive"}
        ref = 1000 + len(self.submissions)
        made = {"ref": ref, "at": time.time(), "content": content, "fileName": "submission.csv"}
        made["description"] = asked.get("submissionDescription", "")
        self.submissions.append(made)
        return {"message": "Successfully submitted to Toy", "ref": ref}

    def ListCompetitions(self, asked: Json) -> Json:
        url = f"https://www.kaggle.com/competitions/{SLUG}"
        rank = {"userRank": self.rank} if self.rank else {}
        return {"competitions": [{"ref": url, "teamCount": 340, **rank}]}

    def GetLeaderboard(self, asked: Json) -> Json:
        start = int(asked.get("pageToken") or 0)
        teams = [{"teamName": f"team {number}", "score": "0.9"} for number in range(300)]
        teams[150]["teamName"] = "ours"
        more = {"nextPageToken": str(start + 100)} if start < 200 else {}
        return {"submissions": teams[start : start + 100], **more}

    def ListDataFiles(self, asked: Json) -> Json:
        names = [{"name": n, "totalBytes": len(c)} for n, c in self.files.items()]
        start = int(asked.get("pageToken") or 0)
        more = {"nextPageToken": str(start + 2)} if len(names) > start + 2 else {}
        return {"files": names[start : start + 2], **more}

    def _shown(self, item: Json) -> Json:
        when = datetime.fromtimestamp(item["at"], UTC) - timedelta(0)
        shown = {
            "ref": item["ref"], "date": when.strftime("%Y-%m-%dT%H:%M:%S.%f0Z"),
            "description": item["description"], "fileName": item["fileName"],
            "totalBytes": len(item["content"]), "teamName": "ours", "status": "PENDING",
        }  # fmt: skip
        if time.time() - item["at"] >= self.scored_after:
            shown["status"] = self.outcome
            if self.outcome == "COMPLETE":
                shown["publicScore"] = f"{self.score(item['content']):.5f}"
            elif self.reason:
                shown["errorDescription"] = self.reason
        return shown

    def body(self) -> bytes:
        """All files in one zip."""
        if self.archive is not None:
            return self.archive
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name, content in self.files.items():
                archive.writestr(zipfile.ZipInfo(name), content)
        return buffer.getvalue()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what many tests are about."""


class _Handler(BaseHTTPRequestHandler):
    kaggle: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        # a client behind a proxy waits for this with its body: 40 ms a call otherwise
        if hasattr(socket, "TCP_QUICKACK"):
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        super().handle_one_request()

    def log_message(self, *_: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        self.send_error(502)  # nothing may leave this machine

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        if not path.startswith(SERVICE):
            self._say(404, {"code": 404, "message": "no such path"})
            return
        method = path.removeprefix(SERVICE)
        self._heard(method)
        self.kaggle.on_call(method)
        fault = self._fault(method)
        if self.headers.get("Authorization") not in ACCEPTED or fault == "401":
            given = self.headers.get("Authorization", "")
            self._say(401, {"code": 401, "message": f"Unauthenticated: {given}"})
        elif self._before(fault):
            return
        elif method in ("DownloadDataFiles", "DownloadDataFile"):
            self._redirect()
        else:
            self._answer(method, json.loads(content or b"{}"), fault)

    def _answer(self, method: str, asked: Json, fault: str) -> None:
        with self.kaggle.lock:
            answer = getattr(self.kaggle, method)(asked)
        self.kaggle.on_call(f"{method} done")
        if self._after(fault):
            return
        if fault == "no number":
            answer.pop("ref", None)
        # as Kaggle does: an error may come with status 200
        self._say(200, answer, fault)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._heard("PUT")
        assert "Authorization" not in self.headers, "a signed address needs no credentials"
        self.kaggle.on_call("PUT")
        fault = self._fault("PUT")
        if self._before(fault):
            return
        self.kaggle.blobs[urlsplit(self.path).path.rsplit("/", 1)[-1]] = content
        if not self._after(fault):
            self._say(200, {})

    def do_GET(self) -> None:
        self._heard("GET")
        if self.headers.get("Authorization") and self.kaggle.redirects:
            self._say(500, {"message": "credentials were sent to the storage"})
            return
        if not self._before(self._fault("GET")):
            self._blob()

    def _redirect(self) -> None:
        if not self.kaggle.redirects:
            self._blob()
            return
        self.send_response(302)
        signature = random.randrange(1 << 60)
        self.send_header(
            "Location", f"http://storage.example/bundle/{self.kaggle.blob}?Signature={signature}"
        )
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _blob(self) -> None:
        kaggle = self.kaggle
        body, start = kaggle.body(), 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and kaggle.ranges and self.headers.get("If-Range") == kaggle.tag:
            start = int(wanted[1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "application/zip")
        self.send_header("Content-Length", str(len(body) - start))
        if kaggle.tag:
            self.send_header("ETag", kaggle.tag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        end = len(body)
        if kaggle.cut:
            end = min(end, start + kaggle.cut.pop(0))
        self.wfile.write(body[start:end])
        if end < len(body):  # without a reset, which would take back what is under way
            self.close_connection = True

    # -- faults

    def _fault(self, method: str) -> str:
        with self.kaggle.lock:
            waiting = self.kaggle.faults.get(method, [])
            return waiting.pop(0) if waiting else ""

    def _before(self, fault: str) -> bool:
        """Whether the call is over before the work is done."""
        if fault in ("400", "403", "404", "407"):
            self._say(int(fault), {"code": int(fault), "message": ""})
        elif fault == "code 403":
            self._say(200, {"code": 403, "message": "You must accept the rules"})
        elif fault == "429":
            self._say(429, {"message": "Too many requests"}, headers={"Retry-After": "0.05"})
        elif fault == "429 long":
            self._say(429, {"message": "Too many requests"}, headers={"Retry-After": "5000"})
        elif fault in ("500 before", "503 before"):
            self._say(int(fault[:3]), {"code": 500, "message": "internal"})
        elif fault == "drop before":
            self._drop()
        elif fault == "hang before":
            time.sleep(self.kaggle.hang)
            self._drop()
        else:
            return False
        return True

    def _after(self, fault: str) -> bool:
        """Whether the answer to work that is done does not come."""
        if fault == "500 after":
            self._say(500, {"code": 500, "message": "internal"})
        elif fault == "code 500":
            self._say(200, {"code": 500, "message": "internal"})
        elif fault == "drop after":
            self._drop()
        elif fault == "hang after":
            time.sleep(self.kaggle.hang)
            self._drop()
        else:
            return False
        return True

    def _drop(self) -> None:
        """End the connection as a broken line does: with a reset."""
        self.close_connection = True
        try:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _say(
        self, code: int, answer: Json, fault: str = "", headers: dict[str, str] | None = None
    ) -> None:
        body, kind = json.dumps(answer).encode(), "application/json; charset=utf-8"
        if fault == "html":
            body, kind = b"<html><body>a page</body></html>", "text/html"
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if fault == "truncated":
            self.wfile.write(body[: len(body) // 2])
            self._drop()
            return
        self.wfile.write(body)

    def _heard(self, method: str) -> None:
        with self.kaggle.lock:
            self.kaggle.calls[method] += 1
            self.kaggle.heard.append(f"{method} {dict(self.headers)}")
