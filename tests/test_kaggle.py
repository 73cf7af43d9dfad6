"""The real client against a real server: every call ends, every error is one sentence."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kagglekit import kaggle
from kagglekit.errors import KagglekitError, NetworkError, UnclearError, UserError
from kagglekit.kaggle import Kaggle
from tests.kaggle_server import CLEAR, DONE, FAULTS, KEY, SLUG, TOKEN, USER, Server

UNCLEAR = (*DONE, "500 before", "503 before", "drop before", "hang before")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    with Server() as made:
        for name, value in made.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("KAGGLEKIT_PATIENCE", "0.4")
        monkeypatch.setenv("HOME", str(tmp_path))
        yield made


@pytest.fixture
def service(server: Server) -> Iterator[Kaggle]:
    with kaggle.connected(SLUG) as connected:
        yield connected


def test_a_file_becomes_a_submission_with_its_description(server: Server, service: Kaggle) -> None:
    token = service.upload("answers.csv", b"id,y\n1,2\n", 0.0)
    assert server.submissions == []
    ref = service.create(token, "a run kagglekit-1")
    (made,) = server.submissions
    assert (made["ref"], made["content"]) == (ref, b"id,y\n1,2\n")
    told = service.submission(ref)
    assert (told.status, told.public, told.private) == ("complete", 0.5, None)
    assert told.description == "a run kagglekit-1"
    assert service.submissions() == [told]
    assert service.quota() == kaggle.Quota(4, 1, 1, False)
    assert 0 < service.quota().resets_in() <= 86400


@pytest.mark.parametrize("fault", FAULTS)
def test_a_submission_that_fails_is_unclear_unless_kaggle_refused_it(
    fault: str, server: Server, service: Kaggle
) -> None:
    server.hang = 0.8
    token = service.upload("answers.csv", b"1", 0.0)
    server.fail("CreateSubmission", fault)
    with pytest.raises(KagglekitError) as caught:
        service.create(token, "a run")
    assert isinstance(caught.value, UnclearError) is (fault in UNCLEAR)
    assert len(server.submissions) == (fault in DONE)
    assert server.calls["CreateSubmission"] == 1  # whatever happens
    if not isinstance(caught.value, UnclearError):
        assert fault in CLEAR


def test_what_never_left_this_machine_is_not_unclear(server: Server, service: Kaggle) -> None:
    token = service.upload("answers.csv", b"1", 0.0)
    server.http.shutdown()
    server.http.server_close()
    service._session.close()  # its open connections, which the server's threads still answer
    with pytest.raises(NetworkError, match="proxy does not let us through"):
        service.create(token, "a run")


def test_a_line_that_breaks_behind_a_proxy_is_unclear(server: Server, service: Kaggle) -> None:
    """Requests calls this an error of the proxy, as if no connection had come about."""
    token = service.upload("answers.csv", b"1", 0.0)
    server.fail("CreateSubmission", "drop after")
    with pytest.raises(UnclearError, match="broke"):
        service.create(token, "a run")
    assert len(server.submissions) == 1


def test_every_call_ends_where_no_answer_comes(server: Server, service: Kaggle) -> None:
    server.hang = 1.0
    server.fail("GetSubmissionLimits", *["hang before"] * 4)
    began = time.monotonic()
    with pytest.raises(NetworkError, match=r"did not answer in 0\.4 s .* \$KAGGLEKIT_PATIENCE"):
        service.quota()
    assert time.monotonic() - began < 4 * 0.4 + 2


def test_an_answer_that_drips_for_ever_ends_too(server: Server, service: Kaggle) -> None:
    token = service.upload("a.csv", b"id,y\n", 0)
    server.fail("CreateSubmission", "drip")
    began = time.monotonic()
    with pytest.raises(UnclearError, match=r"did not answer in 0\.4 s"):
        service.create(token, "a run")
    assert time.monotonic() - began < 3
    assert len(server.submissions) == 1


def test_a_call_is_tried_again_and_waits_as_long_as_kaggle_asks(
    server: Server, service: Kaggle
) -> None:
    server.fail("ListSubmissions", "500 before", "drop after", "429")
    assert service.submissions() == []
    assert server.calls["ListSubmissions"] == 4
    server.fail("ListSubmissions", "429 long")
    with pytest.raises(kaggle.BusyError, match="try again in 5000 s") as caught:
        service.submissions()
    assert caught.value.seconds == 5000


def test_a_refusal_is_not_tried_again(server: Server, service: Kaggle) -> None:
    for fault, words in (("403", "accept the rules"), ("404", "--slug"), ("400", "refused")):
        server.calls.clear()
        server.fail("ListSubmissions", fault)
        with pytest.raises(UserError, match=words):
            service.submissions()
        assert server.calls["ListSubmissions"] == 1
    server.fail("ListSubmissions", "407")
    with pytest.raises(NetworkError, match="proxy wants a login"):
        service.submissions()


def test_an_upload_that_breaks_begins_anew(server: Server, service: Kaggle) -> None:
    server.fail("PUT", "drop before", "500 before")
    token = service.upload("answers.csv", b"12345", 0.0)
    assert server.blobs[token] == b"12345"
    assert server.calls["StartSubmissionUpload"] == 3


def test_what_kaggle_says_cannot_command_a_terminal(server: Server, service: Kaggle) -> None:
    token = service.upload("answers.csv", b"1", 0.0)
    service.create(token, f"\x1b[2J {TOKEN} \u202eend")
    (told,) = service.submissions()
    assert told.description == "?[2J *** ?end"


def test_all_pages_of_the_list_are_read(server: Server, service: Kaggle) -> None:
    server.limit = 100
    token = service.upload("answers.csv", b"1", 0.0)
    refs = [service.create(token, f"number {number}") for number in range(45)]
    assert [item.ref for item in service.submissions()] == refs[::-1]


def test_our_rank_is_kaggle_s_word_or_our_team_s_place(server: Server, service: Kaggle) -> None:
    assert service.standing(None) == kaggle.Standing(12, 340)
    server.rank = 0
    assert service.standing("ours") == kaggle.Standing(151, 340)
    assert service.standing("nobody") is None


def test_a_user_s_name_and_key_are_accepted_too(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    monkeypatch.setenv("KAGGLE_USERNAME", USER)
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    with kaggle.connected(SLUG) as service:
        service.greet()
    monkeypatch.setenv("KAGGLE_KEY", "another-key-0123456789")
    with kaggle.connected(SLUG) as service, pytest.raises(UserError, match="KAGGLE_USERNAME with"):
        service.greet()


def test_saved_tokens_of_oauth_are_accepted_too(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    saved = {"refresh_token": "refresh-0123456789", "access_token": TOKEN, "username": USER,
             "access_token_expiration": "2999-01-01T00:00:00+00:00"}  # fmt: skip
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle/credentials.json").write_text(json.dumps(saved))
    with kaggle.connected(SLUG) as service:
        service.greet()


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "1e9"])
def test_a_patience_that_is_none_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLEKIT_PATIENCE", value)
    with pytest.raises(UserError, match="KAGGLEKIT_PATIENCE"):
        kaggle.patience()


def test_pauses_grow_and_stay_below_their_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLEKIT_PATIENCE", "100")
    pauses = kaggle.pauses(0.01, 0.5)
    seen = [next(pauses) for _ in range(20)]
    assert 0.8 <= seen[0] <= 1.2
    assert all(40 <= pause <= 60 for pause in seen[10:])


def test_a_hasty_client_tries_once(server: Server) -> None:
    server.fail("ListSubmissions", "500 before")
    with ExitStack() as stack:
        service = stack.enter_context(kaggle.connected(SLUG, hasty=True))
        with pytest.raises(NetworkError):
            service.submissions()
    assert server.calls["ListSubmissions"] == 1
