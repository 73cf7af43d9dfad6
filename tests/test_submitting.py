"""A submission reaches Kaggle at most once, whatever fails; its score comes home."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests import toys
from tests.children import small_disk
from tests.kaggle_server import CLEAR, DONE, FAULTS, TOKEN, Server
from tests.typist import ROOT, Ended, Typist

SCHEDULES = int(os.environ.get("KAGGLEKIT_SCHEDULES", "8"))
LOST = ("500 before", "503 before", "drop before", "hang before")  # unclear, and not done
YES = ("--yes", "--wait")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, typist: Typist) -> Path:
    """A project with two runs."""
    home = tmp_path_factory.mktemp("trained")
    before = os.getcwd()
    os.chdir(home)
    try:
        toys.write(home)
        for recipe in ("line", "curve"):
            done = typist.type("train", "toy", recipe, KAGGLEKIT_COMPETITIONS="competitions")
            assert done.code == 0, done.err
    finally:
        os.chdir(before)
    return home


@pytest.fixture
def server(
    trained: Path, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Server]:
    """Kaggle, and a project with two runs that has never submitted."""
    shutil.copytree(trained, project, dirs_exist_ok=True)
    with Server() as kaggle:
        environment = kaggle.environment()
        environment |= {"KAGGLEKIT_PATIENCE": "0.5", "KAGGLEKIT_COMPETITIONS": "competitions"}
        environment |= {"PYTHONPATH": str(ROOT)}
        for name, value in {**environment, "HOME": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        yield kaggle


@pytest.fixture
def typed(typist: Typist, server: Server) -> Callable[..., Ended]:
    return typist.type


def journals() -> dict[str, dict]:
    found = Path("submissions/toy").glob("[!.]*.json")
    return {path.stem: json.loads(path.read_text()) for path in found}


def journal() -> dict:
    (only,) = journals().values()
    return only


def forget(server: Server) -> None:
    """As if nothing had ever been submitted."""
    server.submissions.clear()
    server.faults.clear()
    shutil.rmtree("submissions/toy/.locks", ignore_errors=True)
    for path in Path("submissions/toy").glob("*.json"):
        path.unlink()


# --- the usual way ------------------------------------------------------------------------------


def test_the_best_run_is_sent_once_and_its_score_comes_home(
    server: Server, typed: Callable[..., Ended]
) -> None:
    server.score = lambda content: 0.25
    ended = typed("submit", "toy", *YES, "--json")
    result = json.loads(ended.out)
    assert (ended.code, result["state"], result["public"]) == (0, "scored", 0.25)
    assert result["run"].startswith("line-")
    assert (result["rank"]["rank"], result["rank"]["teams"]) == (12, 340)
    (sent,) = server.submissions
    assert sent["content"] == Path(result["file"]).read_bytes()
    assert sent["description"].startswith(f"{result['run']} CV 0.")
    assert result["marker"] in sent["description"]
    assert (journal()["state"], journal()["public"], journal()["ref"]) == ("scored", 0.25, 1000)
    board = json.loads(typed("leaderboard", "toy", "--json").out)
    assert [row["public_lb"] for row in board["runs"]] == [0.25, None]
    assert board["kaggle"]["rank"]["rank"] == 12
    listed = json.loads(typed("submissions", "toy", "--json").out)
    (entry,) = listed["submissions"]
    assert (entry["run"], entry["state"], entry["public"]) == (result["run"], "scored", 0.25)
    assert listed["quota"]["left"] == 4


def test_each_step_is_on_the_disk_before_it_is_taken(
    server: Server, typed: Callable[..., Ended]
) -> None:
    seen: list[tuple[str, str | None, bool]] = []

    def look(method: str) -> None:
        for told in journals().values():
            seen.append((method, told["state"], told["sent"] is not None))

    server.on_call = look
    assert typed("submit", "toy", *YES).code == 0
    assert ("StartSubmissionUpload", "planned", False) in seen
    assert ("PUT", "planned", False) in seen
    assert ("CreateSubmission", "uploaded", True) in seen
    assert ("GetSubmission", "created", True) in seen


def test_without_a_terminal_nothing_is_sent_unless_it_says_yes(
    server: Server, typed: Callable[..., Ended]
) -> None:
    ended = typed("submit", "toy")
    assert ended.code == 2
    assert "`kagglekit submit toy --yes` sends it" in ended.complaint
    assert "5 left today, resets in" in ended.out
    assert (server.submissions, journals()) == ([], {})


def test_without_waiting_the_score_comes_with_the_list(
    server: Server, typed: Callable[..., Ended]
) -> None:
    server.scored_after = 0.5
    ended = typed("submit", "toy", "curve", "--yes")
    assert (ended.code, "brings the score" in ended.out) == (0, True)
    assert journal()["state"] == "created"
    time.sleep(0.5)
    assert "scored" in typed("submissions", "toy").out
    assert journal()["public"] == 0.5


def test_a_file_of_ones_own_is_checked_and_sent(
    server: Server, typed: Callable[..., Ended]
) -> None:
    (run,) = Path("submissions/toy").glob("line-*.csv")
    lines = run.read_text().splitlines()
    Path("mine.csv").write_text("\n".join([*lines[:-1], lines[-1].split(",")[0] + ",7.5"]) + "\n")
    assert typed("submit", "toy", "mine.csv", *YES).code == 0
    assert server.submissions[0]["content"] == Path("mine.csv").read_bytes()
    Path("wrong.csv").write_text("\n".join(lines[:-1]) + "\n")
    ended = typed("submit", "toy", "wrong.csv", *YES)
    assert (ended.code, "wrong.csv lacks 1 id" in ended.complaint) == (2, True)
    assert len(server.submissions) == 1


# --- what is refused ----------------------------------------------------------------------------


def test_the_same_file_and_the_same_answers_are_refused_with_their_score(
    server: Server, typed: Callable[..., Ended]
) -> None:
    assert typed("submit", "toy", "line", *YES).code == 0
    again = typed("submit", "toy", "line", *YES)
    assert (again.code, "the same file was submitted" in again.complaint) == (2, True)
    assert "public 0.50000" in again.complaint
    (run,) = Path("submissions/toy").glob("line-*.csv")
    table = [line.split(",") for line in run.read_text().splitlines()]
    spelled = [",".join([name, value if name == "id" else f"{float(value):.17e}"])
               for name, value in table]  # fmt: skip
    Path("spelled.csv").write_text("\n".join(spelled) + "\n")
    other = typed("submit", "toy", "spelled.csv", *YES)
    assert (other.code, "the same answers were submitted" in other.complaint) == (2, True)
    assert len(server.submissions) == 1
    assert typed("submit", "toy", "line", "--again", *YES).code == 0
    assert len(server.submissions) == 2
    assert len(journal()["earlier"]) == 1


def test_a_worse_cv_than_one_submitted_is_pointed_out(
    server: Server, typed: Callable[..., Ended]
) -> None:
    typed("submit", "toy", "line", *YES)
    assert "is worse than 0." in typed("submit", "toy", "curve").out


def test_a_used_up_day_is_told_before_anything_is_sent(
    server: Server, typed: Callable[..., Ended]
) -> None:
    server.limit = 0
    ended = typed("submit", "toy", *YES)
    assert (ended.code, "daily limit" in ended.complaint) == (4, True)
    assert "resets in" in ended.complaint
    assert server.calls["StartSubmissionUpload"] == 0


def test_a_limit_reached_meanwhile_is_no_success(
    server: Server, typed: Callable[..., Ended]
) -> None:
    def use_up(method: str) -> None:
        if method == "PUT":
            server.limit = 0

    server.on_call = use_up
    ended = typed("submit", "toy", *YES)
    assert (ended.code, "limit" in ended.complaint) == (4, True)
    assert journal()["state"] == "uploaded"
    server.on_call, server.limit = (lambda method: None), 5
    assert typed("submit", "toy", *YES).code == 0
    assert len(server.submissions) == 1


def test_answers_to_practice_data_are_never_sent_to_kaggle_itself(
    server: Server, typed: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree("data/toy")
    made = json.loads(typed("train", "toy", "ridge=0.5", "--json").out)["run"]
    real = next(Path("submissions/toy").glob("curve-*.csv")).stem
    for environment in ("LOCALHOST", "PROD"):
        monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", environment)
        ended = typed("submit", "toy", real, *YES)
        assert (ended.code, "here are only practice data" in ended.complaint) == (2, True), (
            ended.err
        )
    ended = typed("submit", "toy", made, *YES)
    assert (ended.code, f"{made} answers practice data" in ended.complaint) == (2, True)
    assert not server.calls
    assert typed("submit", "toy", made, *YES, KAGGLE_API_ENVIRONMENT="LOCALHOST").code == 0


# --- faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_after_any_fault_of_the_step_that_spends_there_is_one_submission_at_most(
    fault: str, server: Server, typed: Callable[..., Ended]
) -> None:
    server.hang = 0.6
    patience = {"KAGGLEKIT_PATIENCE": "0.2"}
    server.fail("CreateSubmission", fault)
    first = typed("submit", "toy", *YES, **patience)
    assert len(server.submissions) == (1 if fault in (*DONE, "429") else 0)
    if fault in DONE or fault == "429":  # 429 says how long to wait, and is waited for
        assert first.code == 0, first.err
        return
    assert first.code == (3 if fault in LOST else 4 if fault == "500 before" else 2), first.err
    second = typed("submit", "toy", *YES, **patience)
    if fault in LOST:
        assert (second.code, journal()["state"]) == (3, "unknown")
        assert "--again" in second.complaint
        if fault != "drop before":  # they are all alike from here on
            return
        assert typed("submit", "toy", *YES, "--again").code == 3  # too early
        assert server.submissions == []
        return
    assert (fault in CLEAR, second.code, len(server.submissions)) == (True, 0, 1)


def test_what_was_never_found_is_sent_anew_only_by_a_word_and_after_a_rest(
    server: Server, typed: Callable[..., Ended]
) -> None:
    server.fail("CreateSubmission", "drop before")
    assert typed("submit", "toy", *YES, KAGGLEKIT_PATIENCE="0.1").code == 3
    time.sleep(1.0)
    assert typed("submit", "toy", *YES, KAGGLEKIT_PATIENCE="0.1").code == 3
    assert server.submissions == []
    assert typed("submit", "toy", *YES, "--again", KAGGLEKIT_PATIENCE="0.1").code == 0
    assert len(server.submissions) == 1


def test_a_submission_that_the_list_shows_late_is_found_and_not_sent_again(
    server: Server, typed: Callable[..., Ended]
) -> None:
    server.visible_after = 1.2
    server.fail("CreateSubmission", "500 after")
    ended = typed("submit", "toy", *YES, KAGGLEKIT_PATIENCE="0.1")
    assert (ended.code, journal()["state"]) == (3, "unknown")
    assert "kagglekit submissions toy" in ended.complaint
    time.sleep(1.0)
    shown = typed("submissions", "toy")
    assert (shown.code, journal()["state"], journal()["ref"]) == (0, "scored", 1000)
    refused = typed("submit", "toy", *YES)
    assert (refused.code, len(server.submissions)) == (2, 1)


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        ("ListSubmissions", "drop after"), ("ListSubmissions", "html"), ("PUT", "500 before"),
        ("StartSubmissionUpload", "429"), ("StartSubmissionUpload", "truncated"),
        ("PUT", "drop after"), ("GetSubmission", "drop before"),
        ("GetSubmissionLimits", "code 500"),
    ],
)  # fmt: skip
def test_a_fault_of_any_other_step_is_tried_again(
    method: str, fault: str, server: Server, typed: Callable[..., Ended]
) -> None:
    server.fail(method, fault)
    assert typed("submit", "toy", *YES).code == 0
    assert len(server.submissions) == 1


def test_an_error_of_kaggle_s_scoring_is_told_also_without_a_reason(
    server: Server, typed: Callable[..., Ended]
) -> None:
    server.outcome = "ERROR"
    ended = typed("submit", "toy", *YES)
    assert (ended.code, "it gave no reason" in ended.complaint) == (4, True)
    assert (journal()["state"], journal()["status"]) == ("failed", "error")
    server.outcome, server.reason = "ERROR", "Submission must have 30 rows"
    assert "Submission must have 30 rows" in typed("submit", "toy", *YES).complaint
    assert "failed" in typed("submissions", "toy").out


def test_a_score_that_does_not_come_in_time_is_exit_code_3(
    server: Server, typed: Callable[..., Ended]
) -> None:
    server.scored_after = 1000
    ended = typed("submit", "toy", *YES, KAGGLEKIT_PATIENCE="0.05")
    assert (ended.code, "has not scored it" in ended.complaint) == (3, True)
    assert journal()["state"] == "created"
    server.scored_after = 0
    assert typed("submit", "toy", *YES).code == 0
    assert len(server.submissions) == 1


# --- kills --------------------------------------------------------------------------------------


def test_killed_before_any_step_and_typed_again_there_is_one_submission(
    server: Server, typed: Callable[..., Ended]
) -> None:
    at, ended = 0, None
    while ended is None or ended.code == -signal.SIGKILL:
        at += 1
        forget(server)
        ended = typed("submit", "toy", *YES, at=at)
        after = typed("submit", "toy", *YES)
        assert after.code == 0 or "the same file was submitted" in after.complaint, (at, after)
        assert (len(server.submissions), journal()["state"]) == (1, "scored"), at
        assert journal()["ref"] == server.submissions[0]["ref"]
    assert at > 12  # it does die in all those places


@pytest.mark.parametrize("method", ["StartSubmissionUpload", "PUT", "CreateSubmission",
                                    "CreateSubmission done", "GetSubmission"])  # fmt: skip
def test_killed_while_kaggle_works_and_typed_again_there_is_one_submission(
    method: str, server: Server, typed: Callable[..., Ended], typist: Typist
) -> None:
    server.on_call = lambda now: typist.kill() if now == method else None
    assert typed("submit", "toy", *YES).code == -signal.SIGKILL
    server.on_call = lambda now: None
    again = typed("submit", "toy", *YES)
    assert (again.code, len(server.submissions)) == (0, 1), again.err
    assert journal()["state"] == "scored"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a disk is made by Linux' means")
@pytest.mark.parametrize("method", ["StartSubmissionUpload", "PUT", "CreateSubmission",
                                    "CreateSubmission done", "GetSubmission"])  # fmt: skip
def test_a_disk_that_fills_up_in_the_middle_loses_nothing(
    method: str, server: Server, typed: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(1 << 20)
    shutil.copytree("submissions", disk.inside / "submissions")
    monkeypatch.setenv("KAGGLEKIT_SUBMISSIONS", str(disk.folder / "submissions"))

    def fill(now: str) -> None:
        if now == method:
            free = os.statvfs(disk.inside).f_bavail * os.statvfs(disk.inside).f_frsize
            (disk.inside / "ballast").write_bytes(bytes(free))

    server.on_call = fill
    try:
        ended = typed("submit", "toy", *YES, before=disk.enter)
        assert (ended.code, "is full" in ended.complaint) == (2, True), ended.err
        server.on_call = lambda now: None
        (disk.inside / "ballast").unlink()
        again = typed("submit", "toy", *YES, before=disk.enter)
        assert (again.code, len(server.submissions)) == (0, 1), again.err
        (journal,) = (disk.inside / "submissions" / "toy").glob("[!.]*.json")
        told = json.loads(journal.read_text())
        assert (told["state"], told["ref"]) == ("scored", server.submissions[0]["ref"])
    finally:
        disk.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_finishes_the_step_that_spends_and_says_how_to_go_on(
    number: int, code: int, server: Server, typed: Callable[..., Ended], typist: Typist
) -> None:
    def interrupt(method: str) -> None:
        if method == "CreateSubmission":
            typist.kill(number)
            time.sleep(0.2)

    server.on_call = interrupt
    ended = typed("submit", "toy", *YES)
    assert (ended.code, "`kagglekit submit toy --yes --wait` goes on" in ended.complaint) == (
        code, True,
    )  # fmt: skip
    assert (journal()["state"], journal()["ref"]) == ("created", 1000)
    assert typed("submit", "toy", *YES).code == 0
    assert len(server.submissions) == 1


@pytest.mark.parametrize(
    ("stage", "sign"), [("PUT", "GetSubmissionLimits"), ("CreateSubmission", "ListSubmissions")]
)
def test_two_processes_at_once_make_one_submission(
    stage: str, sign: str, server: Server, typed: Callable[..., Ended]
) -> None:
    def wait_for_the_other(method: str) -> None:
        """Let the first be at work for as long as the other is not about to send as well."""
        deadline = time.monotonic() + 20
        while method == stage and time.monotonic() < deadline:
            if server.calls[sign] > 1:
                time.sleep(0.3)
                return
            time.sleep(0.01)

    server.on_call = wait_for_the_other
    command = [sys.executable, "-m", "kagglekit", "submit", "toy", *YES]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as other:
        first = typed("submit", "toy", *YES, KAGGLEKIT_PATIENCE="30")
        other.communicate(timeout=30)
    assert (first.code, other.returncode, len(server.submissions)) == (0, 0, 1)
    assert server.calls["CreateSubmission"] == 1


def test_no_schedule_of_faults_and_kills_makes_two_submissions_of_one_intent(
    server: Server, typed: Callable[..., Ended]
) -> None:
    methods = ("ListSubmissions", "GetSubmissionLimits", "StartSubmissionUpload", "PUT",
               "CreateSubmission", "CreateSubmission", "GetSubmission")  # fmt: skip
    server.hang = 0.3
    for number in range(SCHEDULES):
        rng = random.Random(number)
        forget(server)
        server.visible_after = rng.choice([0, 0, 0.3])
        reported = set()
        for _ in range(rng.randint(1, 3)):
            for _ in range(rng.randint(0, 3)):
                server.fail(rng.choice(methods), rng.choice(FAULTS))
            ended = typed("submit", "toy", *YES, KAGGLEKIT_PATIENCE="0.1",
                          at=rng.choice([None, rng.randint(1, 25)]))  # fmt: skip
            if ended.code == 0:
                reported.add(journal()["ref"])
        server.faults.clear()
        last = typed("submit", "toy", *YES)
        told = f"schedule {number}: {last} {journals()}"
        assert "Traceback" not in last.err, told
        assert len(server.submissions) <= 1, told
        assert reported <= set(server.refs()), told
        if server.submissions:  # what is there is found, and known as ours
            assert (journal()["state"], journal()["ref"]) == ("scored", server.refs()[0]), told
        else:
            assert (last.code, journal()["state"]) == (3, "unknown"), told


# --- what is said, and what is not --------------------------------------------------------------


def test_no_secret_reaches_the_screen_the_journal_or_the_storage(
    server: Server, typed: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle/access_token").write_text(TOKEN)
    (tmp_path / ".kaggle/access_token").chmod(0o600)
    server.outcome, server.reason = "ERROR", f"no such token: {TOKEN}"
    server.fail("ListSubmissions", "401")  # and repeats what it was given
    ends = [typed("submit", "toy", *YES), typed("submit", "toy", *YES), typed("submissions", "toy")]
    assert [ended.code for ended in ends] == [2, 4, 0]
    assert "~/.kaggle/access_token" in ends[0].complaint
    texts = [ended.out + ended.err for ended in ends]
    folders = [Path("submissions"), Path("runs")]
    texts += [
        p.read_bytes().decode("latin-1") for f in folders for p in f.rglob("*") if p.is_file()
    ]
    assert not any(TOKEN in text for text in texts)
    assert any("***" in text for text in texts)


@pytest.mark.parametrize("width", ["60", "120"])
def test_what_is_shown_fits_the_terminal(
    width: str, server: Server, typed: Callable[..., Ended]
) -> None:
    typed("submit", "toy", "line", *YES)
    server.score = lambda content: 0.75
    typed("submit", "toy", "curve", *YES)
    listed = typed("submissions", "toy", COLUMNS=width)
    for word in ("line-", "curve-", "0.75000", "3 left today", "12 of 340"):
        assert word in listed.out
    board = typed("leaderboard", "toy", COLUMNS=width).out
    for word in ("2 submissions", "correlation", "public_share", "tick", "and"):
        assert word in board


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
def test_on_a_terminal_it_asks_before_it_spends_and_waits_for_the_score(server: Server) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "kagglekit", "submit", "toy"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        while b"Send it? [y/N]" not in seen:
            seen += os.read(ours, 4096)
        assert (b"5 left today" in seen, server.submissions) == (True, [])
        os.write(ours, b"y\n")
        with suppress(OSError):  # the other side ends
            while read := os.read(ours, 4096):
                seen += read
    os.close(ours)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert "public  0.50000" in shown
    assert (process.returncode, len(server.submissions)) == (0, 1)
