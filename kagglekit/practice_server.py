"""Kaggle in a box: takes submissions to practice data, scores them and keeps the leaderboard.

It speaks the part of Kaggle's API that kagglekit uses, on this machine alone, so that the whole way
to a score can be tried without an account; tests make it fail on order.
"""

from __future__ import annotations

import io
import json
import random
import re
import socket
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import files, folders, problem, scoring
from .errors import UserError

TOKEN = "KGAT-of-the-practice-server"  # opens nothing else
SERVICE = "/api/v1/competitions.CompetitionApiService/"
_DOWNLOADS = ("DownloadDataFiles", "DownloadDataFile")
_METHODS = (
    *_DOWNLOADS, "ListSubmissions", "GetSubmission", "GetSubmissionLimits", "CreateSubmission",
    "StartSubmissionUpload", "ListCompetitions", "GetLeaderboard", "ListDataFiles",
)  # fmt: skip

Json = dict[str, Any]


def environment(port: int, token: str = TOKEN) -> dict[str, str]:
    """What makes a client come to the server at `port`, and nowhere else."""
    proxy = f"http://127.0.0.1:{port}"
    names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    told = {"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "KAGGLE_API_TOKEN": token}
    return {**told, "no_proxy": "", "NO_PROXY": "", **dict.fromkeys(names, proxy)}


@dataclass
class Server:
    """What Kaggle has and does for one competition; every attribute may change while it runs."""

    slug: str
    accepted: tuple[str, ...] = (f"Bearer {TOKEN}",)  # headers of those who may come in
    limit: int = 5  # submissions a day
    score: Callable[[bytes], float] = lambda content: 0.5  # UserError: it cannot be scored
    greater_is_better: bool = True
    rivals: dict[str, float] = field(default_factory=dict)  # teams and their scores
    visible_after: float = 0.0  # seconds until the list shows a new submission
    scored_after: float = 0.0
    page: int = 20
    at_port: int = 0  # 0 = any that is free
    memory: Path | None = None  # where submissions are kept when the server ends
    submissions: list[Json] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)  # of the competition
    blob: str = "archive.zip"  # what the storage calls them
    tag: str = '"one"'

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        handler = type("Handler", (self.handler,), {"kaggle": self})
        try:
            self.http = _Quiet(("127.0.0.1", self.at_port), handler)
        except OSError as error:
            raise UserError(
                f"port {self.at_port} cannot be listened at ({error.strerror}): name another with "
                "--port"
            ) from error
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        if self.memory is not None and self.memory.exists():
            self.submissions = files.read_json(self.memory)

    @property
    def handler(self) -> type[Handler]:
        """The class of what answers the calls."""
        return Handler

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.http.server_address[1])

    def __enter__(self) -> Server:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    # -- what the methods do: JSON in, JSON out

    def ListSubmissions(self, asked: Json) -> Json:
        """A page of the submissions, the newest first."""
        now = time.time()
        shown = [self._shown(s) for s in self.submissions if now - s["at"] >= self.visible_after]
        shown.reverse()
        size = min(asked.get("pageSize", 20), self.page)
        start = int(asked.get("pageToken") or size * (asked.get("page", 1) - 1))
        more = {"nextPageToken": str(start + size)} if len(shown) > start + size else {}
        return {"submissions": shown[start : start + size], **more}

    def GetSubmission(self, asked: Json) -> Json:
        """One submission by its number."""
        found = [s for s in self.submissions if s["ref"] == asked["ref"]]
        return self._shown(found[0]) if found else {"code": 404, "message": "no such submission"}

    def GetSubmissionLimits(self, asked: Json) -> Json:
        """What is left of today's; what is zero is left out, as at Kaggle."""
        today, left = self._today(), max(0, self.limit - self._today())
        told = {"numToday": today, "numTotal": len(self.submissions)}
        return {**told, **({"numAllowedNow": left} if left else {})}

    def StartSubmissionUpload(self, asked: Json) -> Json:
        """A place to upload to."""
        token = f"blob-{random.randrange(1 << 60):x}"
        self.blobs[token] = b""
        return {"token": token, "createUrl": f"http://storage.example/upload/{token}"}

    def CreateSubmission(self, asked: Json) -> Json:
        """Make a submission of what was uploaded, and score it."""
        if self._today() >= self.limit:
            return {"code": 400, "message": "Your team has used its daily Submission allowance, "
                    "the daily limit is reached"}  # fmt: skip
        content = self.blobs.get(asked["blobFileTokens"], b"")
        if not content:
            return {"code": 400, "message": "the file did not arrive"}
        ref = 1000 + len(self.submissions)
        made = {
            "ref": ref, "at": time.time(), "fileName": "submission.csv", "bytes": len(content),
            "description": asked.get("submissionDescription", ""), **self._scored(content),
        }  # fmt: skip
        self.submissions.append(made)
        if self.memory is not None:
            files.write_json(self.memory, self.submissions)
        return {"message": f"Successfully submitted to {self.slug}", "ref": ref}

    def ListCompetitions(self, asked: Json) -> Json:
        """The competition, and our rank in it."""
        url = f"https://www.kaggle.com/competitions/{self.slug}"
        board = self._board()
        rank = {"userRank": board.index("ours") + 1} if "ours" in board else {}
        return {"competitions": [{"ref": url, "teamCount": len(board), **rank}]}

    def GetLeaderboard(self, asked: Json) -> Json:
        """The teams, best first."""
        return {"submissions": [{"teamName": name} for name in self._board()]}

    def ListDataFiles(self, asked: Json) -> Json:
        """A page of the competition's files."""
        names = [{"name": n, "totalBytes": len(c)} for n, c in self.files.items()]
        start = int(asked.get("pageToken") or 0)
        more = {"nextPageToken": str(start + 2)} if len(names) > start + 2 else {}
        return {"files": names[start : start + 2], **more}

    def body(self) -> bytes:
        """All files in one zip."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name, content in self.files.items():
                archive.writestr(zipfile.ZipInfo(name), content)
        return buffer.getvalue()

    def _today(self) -> int:
        day = datetime.now(UTC).date()
        return sum(datetime.fromtimestamp(s["at"], UTC).date() == day for s in self.submissions)

    def _scored(self, content: bytes) -> Json:
        """The outcome of a submission: a score, or why there is none."""
        try:
            return {"score": self.score(content)}
        except UserError as error:
            return {"score": None, "reason": str(error)}

    def _board(self) -> list[str]:
        ours = [s["score"] for s in self.submissions if s.get("score") is not None]
        best = {"ours": (max if self.greater_is_better else min)(ours)} if ours else {}
        teams = {**self.rivals, **best}
        return sorted(teams, key=lambda team: teams[team], reverse=self.greater_is_better)

    def _shown(self, item: Json) -> Json:
        when = datetime.fromtimestamp(item["at"], UTC)
        shown = {
            "ref": item["ref"], "date": when.strftime("%Y-%m-%dT%H:%M:%S.%f0Z"),
            "description": item["description"], "fileName": item["fileName"],
            "totalBytes": item["bytes"], "teamName": "ours", "status": "PENDING",
        }  # fmt: skip
        if time.time() - item["at"] >= self.scored_after:
            shown |= self._outcome(item)
        return shown

    def _outcome(self, item: Json) -> Json:
        if item["score"] is not None:
            return {"status": "COMPLETE", "publicScore": f"{item['score']:.8g}"}
        return {"status": "ERROR", "errorDescription": item["reason"]}


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is its own business."""


class Handler(BaseHTTPRequestHandler):
    """Answers one connection. What tests let go wrong, they do in what they override here."""

    kaggle: Any
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        """Without the pause that a client behind a proxy makes before its body: 40 ms a call."""
        if hasattr(socket, "TCP_QUICKACK"):
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        super().handle_one_request()

    def log_message(self, *_: object) -> None:
        """Nothing: what matters is in `submissions`."""

    def do_CONNECT(self) -> None:
        """Nothing leaves this machine."""
        self.send_error(502)

    def do_POST(self) -> None:
        """A method of the API."""
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        method = path.removeprefix(SERVICE)
        if not path.startswith(SERVICE) or method not in _METHODS:
            self.say(404, {"code": 404, "message": "no such path"})
            return
        if self.arrived(method):
            return
        if self.headers.get("Authorization") not in self.kaggle.accepted:
            given = self.headers.get("Authorization", "")
            self.say(401, {"code": 401, "message": f"Unauthenticated: {given}"})
        elif method in _DOWNLOADS:
            self.redirect()
        else:
            with self.kaggle.lock:
                answer = getattr(self.kaggle, method)(json.loads(content or b"{}"))
            if not self.worked(method, answer):
                self.say(200, answer)

    def do_PUT(self) -> None:
        """An upload."""
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.arrived("PUT"):
            return
        self.kaggle.blobs[urlsplit(self.path).path.rsplit("/", 1)[-1]] = content
        if not self.worked("PUT", {}):
            self.say(200, {})

    def do_GET(self) -> None:
        """A download."""
        if not self.arrived("GET"):
            self.send_blob()

    def arrived(self, method: str) -> bool:
        """A call has come; whether it is over before anything was done."""
        return False

    def worked(self, method: str, answer: Json) -> bool:
        """The work is done; whether the answer is not to come."""
        return False

    def redirect(self) -> None:
        """Send the client to the storage, as Kaggle does."""
        self.send_response(302)
        signature = random.randrange(1 << 60)
        self.send_header(
            "Location", f"http://storage.example/bundle/{self.kaggle.blob}?Signature={signature}"
        )
        self.send_header("Content-Length", "0")
        self.end_headers()

    def start_of(self) -> int:
        """The byte from which the client wants the files, if they are still the same."""
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") == self.kaggle.tag
        return int(wanted[1]) if wanted and same else 0

    def send_blob(self) -> None:
        """All files, or what is left of them."""
        body, start = self.kaggle.body(), self.start_of()
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "application/zip")
        self.send_header("Content-Length", str(len(body) - start))
        if self.kaggle.tag:
            self.send_header("ETag", self.kaggle.tag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        self.write_blob(body[start:])

    def write_blob(self, body: bytes) -> None:
        """The bytes themselves."""
        self.wfile.write(body)

    def say(self, code: int, answer: Json, headers: dict[str, str] | None = None) -> None:
        """Answer with JSON; as at Kaggle, an error may come with status 200."""
        self.send_body(code, json.dumps(answer).encode(), "application/json; charset=utf-8",
                       headers or {})  # fmt: skip

    def send_body(self, code: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        """Answer with bytes of a kind."""
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


# --- for users ----------------------------------------------------------------------------------


def of_practice(name: str, slug: str | None = None, port: int = 0, limit: int = 5) -> Server:
    """A server of a competition's practice data, which are made where there are none.

    Its leaderboard has the sample submission and us. Submissions are kept beside the practice
    data. Raises UserError for a competition without practice data.
    """
    competition = problem.find(name, slug)
    home, hidden = folders.practice_folder(name), folders.practice_answers(name)
    if not (hidden / "solution.csv").is_file():
        problem.practise(name, competition, replace_data=False)
    data = problem.load(competition, home)
    target = scoring.solution(data, hidden / "solution.csv")

    def score(content: bytes) -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "submission.csv")
            path.write_bytes(content)
            competition.submission.check(data, path)
            decided = competition.submission.read(data, path)
        return float(competition.metric(target, decided, data.test))

    found = {path: full.read_bytes() for path, full in files.visible_files(home).items()}
    server = Server(
        competition.slug, limit=limit, score=score, at_port=port, files=found,
        greater_is_better=competition.metric.greater_is_better,
        memory=home.with_name(f"{home.name}-kaggle") / "submissions.json",
    )  # fmt: skip
    sample = next((c for n, c in found.items() if n.endswith("sample_submission.csv")), None)
    if sample is not None:
        server.rivals["sample submission"] = score(sample)
    return server
