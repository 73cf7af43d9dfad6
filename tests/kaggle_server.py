"""The practice server, which keeps what it hears and fails on order: Kaggle as tests need it."""

from __future__ import annotations

import base64
import json
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kagglekit import practice_server

TOKEN = "KGAT-a-token-of-the-tests-0123456789"
USER, KEY = "someone", "a-key-of-the-tests-0123456789"
ACCEPTED = (
    f"Bearer {TOKEN}",
    "Basic " + base64.b64encode(f"{USER}:{KEY}".encode()).decode(),
)
SLUG = "toy-competition"

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
class Server(practice_server.Server):
    """What a test may change, beside what any server has."""

    slug: str = SLUG
    accepted: tuple[str, ...] = ACCEPTED
    hang: float = 3.0  # seconds
    outcome: str = "COMPLETE"
    reason: str = ""
    rank: int = 12
    faults: dict[str, list[str]] = field(default_factory=dict)  # by method, one a call
    calls: Counter[str] = field(default_factory=Counter)
    heard: list[str] = field(default_factory=list)  # method and headers, of everything
    archive: bytes | None = None
    ranges: bool = True
    cut: list[int] = field(default_factory=list)  # bytes after which the next downloads break
    on_call: Callable[[str], None] = lambda method: None
    redirects: bool = True  # the blob is elsewhere, as at Kaggle

    @property
    def handler(self) -> type[practice_server.Handler]:
        return _Handler

    def environment(self) -> dict[str, str]:
        """What makes a client come here, and nowhere else."""
        return practice_server.environment(self.port, TOKEN)

    def __enter__(self) -> Server:
        super().__enter__()
        return self

    def fail(self, method: str, *faults: str) -> None:
        with self.lock:
            self.faults.setdefault(method, []).extend(faults)

    def refs(self, marker: str = "") -> list[int]:
        with self.lock:
            return [item["ref"] for item in self.submissions if marker in item["description"]]

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

    def body(self) -> bytes:
        return super().body() if self.archive is None else self.archive

    def _scored(self, content: bytes) -> Json:
        return {"score": None, "content": content}

    def _outcome(self, item: Json) -> Json:
        if self.outcome != "COMPLETE":
            reason = {"errorDescription": self.reason} if self.reason else {}
            return {"status": self.outcome, **reason}
        return {"status": "COMPLETE", "publicScore": f"{self.score(item['content']):.5f}"}


class _Handler(practice_server.Handler):
    def do_GET(self) -> None:
        if self.headers.get("Authorization") and self.kaggle.redirects:
            self._heard("GET")
            self.say(500, {"message": "credentials were sent to the storage"})
            return
        super().do_GET()

    def redirect(self) -> None:
        if self.kaggle.redirects:
            super().redirect()
        else:
            self.send_blob()

    def start_of(self) -> int:
        return super().start_of() if self.kaggle.ranges else 0

    def write_blob(self, body: bytes) -> None:
        end = min(len(body), self.kaggle.cut.pop(0)) if self.kaggle.cut else len(body)
        self.wfile.write(body[:end])
        if end < len(body):  # without a reset, which would take back what is under way
            self.close_connection = True

    # -- faults

    def arrived(self, method: str) -> bool:
        self._heard(method)
        if method == "PUT":
            assert "Authorization" not in self.headers, "a signed address needs no credentials"
        if method != "GET":
            self.kaggle.on_call(method)
        with self.kaggle.lock:
            waiting = self.kaggle.faults.get(method, [])
            self.fault = waiting.pop(0) if waiting else ""
        return self._before(self.fault)

    def worked(self, method: str, answer: Json) -> bool:
        if method != "PUT":
            self.kaggle.on_call(f"{method} done")
        if self._after(self.fault):
            return True
        if self.fault == "no number":
            answer.pop("ref", None)
        return False

    def _before(self, fault: str) -> bool:
        """Whether the call is over before the work is done."""
        if fault == "401":
            given = self.headers.get("Authorization", "")
            self.say(401, {"code": 401, "message": f"Unauthenticated: {given}"})
        elif fault in ("400", "403", "404", "407"):
            self.say(int(fault), {"code": int(fault), "message": ""})
        elif fault == "code 403":
            self.say(200, {"code": 403, "message": "You must accept the rules"})
        elif fault == "429":
            self.say(429, {"message": "Too many requests"}, {"Retry-After": "0.05"})
        elif fault == "429 long":
            self.say(429, {"message": "Too many requests"}, {"Retry-After": "5000"})
        elif fault in ("500 before", "503 before"):
            self.say(int(fault[:3]), {"code": 500, "message": "internal"})
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
            self.say(500, {"code": 500, "message": "internal"})
        elif fault == "code 500":
            self.say(200, {"code": 500, "message": "internal"})
        elif fault == "drop after":
            self._drop()
        elif fault == "hang after":
            time.sleep(self.kaggle.hang)
            self._drop()
        elif fault == "html":
            self.send_body(200, b"<html><body>a page</body></html>", "text/html", {})
        elif fault == "truncated":
            self._truncate()
        elif fault == "drip":
            self._drip()
        else:
            return False
        return True

    def _drip(self) -> None:
        """An answer that goes on for ever, so slowly that no single wait is long."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        with suppress(OSError):  # until the other side has had enough
            while True:
                self.wfile.write(b" ")
                time.sleep(0.02)

    def _truncate(self) -> None:
        body = json.dumps({"message": "half of an answer"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self._drop()

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

    def _heard(self, method: str) -> None:
        with self.kaggle.lock:
            self.kaggle.calls[method] += 1
            self.kaggle.heard.append(f"{method} {dict(self.headers)}")
