"""Talks to Kaggle, as no other module does: every call has a timeout, every error a sentence."""

from __future__ import annotations

import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from . import __version__, credentials
from .credentials import Source
from .errors import KagglekitError, NetworkError, UnclearError, UserError
from .secrecy import hide

if TYPE_CHECKING:
    import requests

PATIENCE_SECONDS = 60.0
ATTEMPTS = 4  # of a call that changes nothing

_CONNECT_SECONDS = 15.0
_CHUNK = 1 << 16  # bytes
_PAGE = 100  # submissions, or teams, a call
_PAGES = 50
_FULL_PAGE = 20  # Kaggle's own page, where it does not heed ours
_MESSAGE = 200  # characters of Kaggle's own words that are shown

T = TypeVar("T")


class BusyError(NetworkError):
    """Kaggle wants to be left alone for `seconds`; nothing was taken."""

    def __init__(self, sentence: str, seconds: float) -> None:
        super().__init__(sentence)
        self.seconds = seconds


@dataclass(frozen=True)
class Quota:
    """How many submissions Kaggle would still take today; a day is one of UTC."""

    left: int
    today: int
    total: int
    by_total: bool  # the limit is the competition's own, not the day's

    def resets_in(self) -> float:
        """Seconds until the next day begins in UTC."""
        now = datetime.now(UTC)
        tomorrow = datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1)
        return (tomorrow - now).total_seconds()


@dataclass(frozen=True)
class Submitted:
    """A submission as Kaggle has it. Scores are None until there are any."""

    ref: int
    when: str | None  # ISO time in UTC
    description: str
    file: str
    bytes: int
    status: str  # pending, complete or error
    public: float | None
    private: float | None
    error: str
    team: str


@dataclass(frozen=True)
class Standing:
    """Our place on Kaggle's public leaderboard."""

    rank: int
    teams: int | None


@dataclass(frozen=True)
class DataFile:
    """A file of the competition, and its size in bytes."""

    name: str
    bytes: int


def patience() -> float:
    """Seconds that one call may take: `$KAGGLEKIT_PATIENCE`, else 60.

    Every pause is a share of it. Raises UserError where the variable holds no such number.
    """
    text = os.environ.get("KAGGLEKIT_PATIENCE", "")
    try:
        seconds = float(text or PATIENCE_SECONDS)
    except ValueError:
        seconds = math.nan
    if not 0.05 <= seconds <= 3600:
        raise UserError(f"$KAGGLEKIT_PATIENCE is {text!r}: it should be seconds, 0.05 to 3600")
    return seconds


def pauses(first: float = 1 / 120, most: float = 1 / 2) -> Iterator[float]:
    """Seconds to wait between two looks, ever longer: shares of the patience, a little random."""
    share = first
    while True:
        yield share * patience() * random.uniform(0.8, 1.2)
        share = min(share * 1.7, most)


def page(slug: str, part: str = "") -> str:
    """The address of a competition's page, for a person to open."""
    return f"https://www.kaggle.com/competitions/{slug}{part and '/'}{part}"


def is_real() -> bool:
    """Whether calls go to Kaggle itself, and not to a test server."""
    return os.environ.get("KAGGLE_API_ENVIRONMENT", "PROD") in ("", "PROD")


@contextmanager
def connected(slug: str, hasty: bool = False) -> Iterator[Kaggle]:
    """A client for one competition; nothing is sent yet.

    A hasty one tries each call once, for a tenth of the time: for what can be done without.
    Raises UserError where there are no credentials, or none that the client can use.
    """
    source = credentials.in_force()
    patience()
    from kagglesdk import KaggleClient

    login = source.login
    try:
        client = KaggleClient(
            username=login.username, password=login.key, api_token=login.token,
            user_agent=f"kagglekit/{__version__}",
        )  # fmt: skip
    except Exception as error:  # the client's own word for an environment that it does not know
        raise UserError(
            "KAGGLE_API_ENVIRONMENT names no place that Kaggle's client knows: unset it"
        ) from error
    with client:
        kaggle = Kaggle(slug, source, client, hasty)
        kaggle.log_in()
        yield kaggle


class Kaggle:
    """One competition on Kaggle.

    All but `create` are tried again where that may help. They raise NetworkError where it did not,
    UserError where the user has to do something, each in one sentence that says what.
    """

    def __init__(self, slug: str, source: Source, client: Any, hasty: bool = False) -> None:
        self.slug = slug
        self._attempts, self._seconds = (1, patience() / 10) if hasty else (ATTEMPTS, patience())
        self._source = source
        self._client = client
        self._api = client.competitions.competition_api_client
        self._session: requests.Session = client.http_client()._session
        _make_patient(self._session, self._seconds)

    def log_in(self) -> None:
        """Get a fresh token where OAuth's saved ones are in force; otherwise nothing."""
        if self._source.login.token or self._source.login.key:
            return
        from kagglesdk.kaggle_creds import KaggleCredentials

        from . import secrecy

        def fresh() -> str:
            saved = KaggleCredentials.load(self._client)
            return saved.get_access_token() if saved else ""

        token = self._retried("logging in", fresh)
        if not token:
            raise UserError(
                f"{self._source.name} holds no login that works: `kaggle auth login` makes one"
            )
        secrecy.learn(token)
        self._session.headers["Authorization"] = f"Bearer {token}"

    def greet(self) -> None:
        """The cheapest call that needs credentials: whether they are accepted."""
        from kagglesdk.competitions.types.competition_api_service import ApiListCompetitionsRequest
        from kagglesdk.competitions.types.competition_enums import CompetitionListTab

        request = ApiListCompetitionsRequest()
        request.group = CompetitionListTab.COMPETITION_LIST_TAB_ENTERED
        self._call("list_competitions", request, "trying the credentials")

    # -- submissions

    def quota(self) -> Quota:
        """What is left of today's submissions."""
        from kagglesdk.competitions.types.competition_api_service import (
            ApiGetSubmissionLimitsRequest,
        )

        request = ApiGetSubmissionLimitsRequest()
        request.competition_name = self.slug
        told = self._call("get_submission_limits", request, "asking for the daily limit")
        return Quota(
            told.num_allowed_now, told.num_today, told.num_total, bool(told.limited_by_total)
        )

    def submissions(self) -> list[Submitted]:
        """All that we submitted, as Kaggle lists it: the newest first, and the newest may lack."""
        from kagglesdk.competitions.types.competition_api_service import ApiListSubmissionsRequest

        found: dict[int, Submitted] = {}
        token, number = "", 1
        while number <= _PAGES:
            request = ApiListSubmissionsRequest()
            request.competition_name, request.page_size = self.slug, _PAGE
            if token:
                request.page_token = token
            elif number > 1:
                request.page = number
            told = self._call("list_submissions", request, "listing submissions")
            fresh = [item for item in told.submissions if item.ref and item.ref not in found]
            found.update((item.ref, _submitted(item)) for item in fresh)
            token, number = told.next_page_token or "", number + 1
            if not fresh or (not token and len(told.submissions) < _FULL_PAGE):
                break
        return list(found.values())

    def submission(self, ref: int) -> Submitted:
        """One submission, by the number that Kaggle gave it."""
        from kagglesdk.competitions.types.competition_api_service import ApiGetSubmissionRequest

        request = ApiGetSubmissionRequest()
        request.ref = ref
        told = self._call("get_submission", request, "asking for the score")
        if told.ref != ref:
            raise NetworkError("Kaggle told of another submission than the one asked for")
        return _submitted(told)

    def upload(self, name: str, content: bytes, modified: float) -> str:
        """Bring a file to Kaggle and return its token; no submission comes of that alone."""
        from kagglesdk.competitions.types.competition_api_service import (
            ApiStartSubmissionUploadRequest,
        )

        request = ApiStartSubmissionUploadRequest()
        request.competition_name, request.file_name = self.slug, name
        request.content_length, request.last_modified_epoch_seconds = len(content), int(modified)

        def bring() -> str:  # from the start: a token whose bytes did not arrive is worth nothing
            place = self._api.start_submission_upload(request)
            if not (place.token and place.create_url):
                raise ValueError("no place to upload to")
            self._put(place.create_url, content)
            return place.token

        return self._retried("uploading", bring)

    def _put(self, url: str, content: bytes) -> None:
        import requests

        with requests.Session() as session:  # the address is enough; the credentials stay here
            _make_patient(session, self._seconds)
            session.put(url, data=content).raise_for_status()

    def create(self, token: str, description: str) -> int:
        """Make a submission of an uploaded file and return its number. Called once: never again.

        Raises UnclearError where Kaggle may have taken it. Any other KagglekitError says that it
        has not.
        """
        from kagglesdk.competitions.types.competition_api_service import ApiCreateSubmissionRequest

        request = ApiCreateSubmissionRequest()
        request.competition_name, request.blob_file_tokens = self.slug, token
        request.submission_description = description
        redirects, self._session.max_redirects = self._session.max_redirects, 0  # it would go twice
        try:
            told = self._api.create_submission(request)
        except Exception as error:
            if _is_refusal(error) or _is_unsent(error):
                raise self._explained(error, "submitting") from error
            reason = str(self._explained(error, "submitting"))
            raise UnclearError(reason) from error
        finally:
            self._session.max_redirects = redirects
        if not told.ref:
            raise UnclearError(f"Kaggle gave the submission no number{_quoted(told.message)}")
        return told.ref

    def standing(self, team: str | None) -> Standing | None:
        """Our rank, by Kaggle's word or by the name of our team; None where neither tells."""
        from kagglesdk.competitions.types.competition_api_service import (
            ApiGetLeaderboardRequest,
            ApiListCompetitionsRequest,
        )

        search = ApiListCompetitionsRequest()
        search.search = self.slug
        listed = self._call("list_competitions", search, "asking for the rank").competitions
        ours = [item for item in listed if item.ref.rsplit("/", 1)[-1] == self.slug]
        teams = ours[0].team_count or None if ours else None
        if ours and ours[0].user_rank:
            return Standing(ours[0].user_rank, teams)
        token, seen = "", 0
        for _ in range(_PAGES if team else 0):
            request = ApiGetLeaderboardRequest()
            request.competition_name, request.page_size = self.slug, _PAGE
            if token:
                request.page_token = token
            told = self._call("get_leaderboard", request, "asking for the rank")
            names = [item.team_name for item in told.submissions]
            if team in names:
                return Standing(seen + names.index(team) + 1, teams)
            token, seen = told.next_page_token or "", seen + len(names)
            if not (token and names):
                break
        return None

    # -- data

    def files(self) -> list[DataFile]:
        """The competition's files with their sizes."""
        from kagglesdk.competitions.types.competition_api_service import ApiListDataFilesRequest

        found: list[DataFile] = []
        token = ""
        for _ in range(10 * _PAGES):
            request = ApiListDataFilesRequest()
            request.competition_name = self.slug
            if token:
                request.page_token = token
            told = self._call("list_data_files", request, "listing the files")
            found += [DataFile(item.name, item.total_bytes) for item in told.files if item.name]
            token = told.next_page_token or ""
            if not (token and told.files):
                break
        return found

    def open_download(self) -> requests.Response:
        """The answer whose body is all files in one; the body is still to be read, and closed."""
        from kagglesdk.competitions.types.competition_api_service import (
            ApiDownloadDataFilesRequest,
        )

        request = ApiDownloadDataFilesRequest()
        request.competition_name = self.slug
        return self._call("download_data_files", request, "asking for the files")

    def reopen_download(self, opened: requests.Response, start: int, tag: str) -> requests.Response:
        """The same body from byte `start` on; all of it (200) where it is not `tag` any more."""

        def again() -> requests.Response:
            asked = opened.request.copy()
            asked.headers["Range"], asked.headers["If-Range"] = f"bytes={start}-", tag
            settings = self._session.merge_environment_settings(
                str(asked.url), {}, True, None, None
            )
            answer = self._session.send(asked, **settings)
            if answer.status_code != 416:
                answer.raise_for_status()
            return answer

        return self._retried("asking for the files", again)

    def broken(self, error: Exception) -> KagglekitError:
        """What to say of an error that came while a body was read."""
        return self._explained(error, "downloading")

    # -- calls

    def _call(self, method: str, request: Any, doing: str) -> Any:
        return self._retried(doing, lambda: getattr(self._api, method)(request))

    def _retried(self, doing: str, call: Callable[[], T]) -> T:
        """What `call` gives in the end; only for calls that do no harm when they arrive twice."""
        left = self._attempts
        for pause in pauses():
            left -= 1
            try:
                return call()
            except KagglekitError:
                raise
            except Exception as error:
                sentence = self._explained(error, doing)
                if not left or not _is_passing(error):
                    raise sentence from error
                if isinstance(sentence, BusyError):
                    if sentence.seconds > patience():
                        raise sentence from error
                    pause = max(pause, sentence.seconds)
            time.sleep(pause)
        raise AssertionError  # pauses never end

    def _explained(self, error: Exception, doing: str) -> KagglekitError:
        """The sentence for an error of the client, of requests, or of what Kaggle answered."""
        import requests

        if isinstance(error, requests.HTTPError) and error.response is not None:
            return self._refusal(error.response, doing)
        if isinstance(error, requests.TooManyRedirects):
            return NetworkError(f"Kaggle sent us elsewhere while {doing}: try again later")
        if isinstance(error, requests.RequestException):
            return _connection(error, doing)
        if isinstance(error, OSError):
            return NetworkError(f"the connection to Kaggle broke while {doing}: try again")
        return NetworkError(
            f"what Kaggle answered while {doing} cannot be read ({type(error).__name__}): "
            "try again later"
        )

    def _refusal(self, response: requests.Response, doing: str) -> KagglekitError:
        """The sentence for an HTTP status, or for a code in what came with status 200."""
        code, message = _code(response), _message(response)
        said = f"({code}{': ' if message else ''}{message})"
        low = message.lower()
        if code == 401:
            return UserError(
                f"Kaggle does not accept the credentials in {self._source.name} {said}: make a new "
                f"token at {credentials.SETTINGS} and put it there, or save it as "
                "~/.kaggle/access_token"
            )
        if code == 407:
            return NetworkError(
                "the proxy wants a login: give it in https_proxy, as http://USER:PASSWORD@HOST:PORT"
            )
        if code == 429:
            seconds = _retry_after(response)
            text = f"in {seconds:.0f} s" if seconds else "in some minutes"
            return BusyError(f"Kaggle is asked too often {said}: try again {text}", seconds)
        if code >= 500:
            return NetworkError(f"Kaggle failed while {doing} {said}: try again later")
        if re.search(
            r"(daily|maximum|submission).{0,40}(limit|quota)|limit.{0,30}(reach|exceed)", low
        ):
            return NetworkError(
                f"Kaggle takes no more submissions now {said}: a new day begins at 0:00 UTC"
            )
        if re.search(r"deadline|has ended|is over|is closed|has closed|not accepting", low):
            return UserError(f"{self.slug} is over {said}: see {page(self.slug)}")
        if code == 404:
            return UserError(
                f"Kaggle knows no competition {self.slug!r}, or none that this account may see "
                f"{said}: open {page(self.slug)}, and name the right one with --slug"
            )
        if code == 403:
            return UserError(
                f"Kaggle refuses this account {said}: join and accept the rules at "
                f"{page(self.slug, 'rules')}, then type the command again"
            )
        return UserError(
            f"Kaggle refused while {doing} {said}: see {page(self.slug)}, and whether --slug is "
            "this year's"
        )


def _submitted(told: Any) -> Submitted:
    when = None if told.date is None else told.date.isoformat(timespec="seconds") + "+00:00"
    return Submitted(
        ref=told.ref,
        when=when,
        description=_clean(told.description),
        file=_clean(told.file_name),
        bytes=told.total_bytes,
        status=told.status.name.lower(),
        public=_score(told.public_score),
        private=_score(told.private_score),
        error=_line(told.error_description),
        team=_clean(told.team_name),
    )


def _score(text: str) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _make_patient(session: requests.Session, seconds: float) -> None:
    """Give every call of a session a timeout; requests itself would wait for ever."""
    from requests.adapters import HTTPAdapter

    class Patient(HTTPAdapter):
        def send(self, *what: Any, **how: Any) -> requests.Response:
            how["timeout"] = (min(_CONNECT_SECONDS, seconds), seconds)
            response = super().send(*what, **how)
            if not how.get("stream"):
                _read_within(response, seconds)
            return response

    for scheme in ("http://", "https://"):
        session.mount(scheme, Patient())


def _read_within(response: requests.Response, seconds: float) -> None:
    """Read a body while it may take; the timeout of requests begins anew with every byte."""
    import requests
    from urllib3 import exceptions as causes

    parts, end = [], time.monotonic() + seconds
    try:
        while part := response.raw.read1(_CHUNK, decode_content=True):
            parts.append(part)
            if time.monotonic() > end:
                response.close()
                raise requests.ReadTimeout("the answer does not end", response=response)
    except causes.ReadTimeoutError as error:
        raise requests.ReadTimeout(error, response=response) from error
    except causes.DecodeError as error:
        raise requests.exceptions.ContentDecodingError(error) from error
    except causes.HTTPError as error:
        raise requests.exceptions.ChunkedEncodingError(error) from error
    response._content = b"".join(parts)  # where requests keeps what it has read itself


# --- what an error means ------------------------------------------------------------------------


def _is_refusal(error: Exception) -> bool:
    """Whether Kaggle answered, and said that it does not do it."""
    import requests

    if not isinstance(error, requests.HTTPError) or error.response is None:
        return False
    return 400 <= _code(error.response) < 500 and _code(error.response) != 408


def _is_unsent(error: Exception) -> bool:
    """Whether no connection came about, so that nothing can have arrived."""
    import requests
    from urllib3 import exceptions as causes

    cause = _cause(error)
    # a ProxyError alone says nothing: a line that breaks after the request is one too
    if isinstance(cause, causes.NewConnectionError | causes.ConnectTimeoutError):
        return True
    if "Tunnel connection failed" in str(cause):
        return True
    return isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE" in str(error)


def _cause(error: Exception) -> object:
    """What urllib3 says, inside what requests makes of it."""
    inner = error.args[0] if error.args else None
    reason = getattr(inner, "reason", None) or inner
    return getattr(reason, "original_error", None) or reason


def _is_passing(error: Exception) -> bool:
    """Whether the same call may do better in a moment."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return _code(error.response) in (408, 429) or _code(error.response) >= 500
    if isinstance(error, requests.exceptions.ProxyError):
        return not _is_unsent(error)
    if isinstance(error, requests.exceptions.SSLError):
        return False
    return isinstance(error, OSError | ValueError | KeyError | TypeError | AttributeError)


def _connection(error: requests.RequestException, doing: str) -> NetworkError:
    import requests
    from urllib3.exceptions import NameResolutionError

    cause = _cause(error)
    if isinstance(error, requests.exceptions.ProxyError) and _is_unsent(error):
        return NetworkError(
            f"the proxy does not let us through while {doing}: mend or unset https_proxy and "
            "http_proxy"
        )
    if isinstance(error, requests.exceptions.SSLError):
        return NetworkError(
            f"the certificate shown while {doing} is not trusted: behind a company's proxy, name "
            "its certificates with REQUESTS_CA_BUNDLE"
        )
    if isinstance(error, requests.Timeout):
        return NetworkError(
            f"Kaggle did not answer in {patience():g} s while {doing}: try again later, or give it "
            "more with $KAGGLEKIT_PATIENCE"
        )
    if isinstance(cause, NameResolutionError) or "NameResolution" in str(error):
        return NetworkError(
            f"Kaggle's address cannot be looked up while {doing}: is this machine online?"
        )
    if _is_unsent(error):
        return NetworkError(
            f"Kaggle cannot be reached while {doing}: is this machine online, and does it need a "
            "proxy (https_proxy)?"
        )
    if isinstance(error, requests.JSONDecodeError):
        return NetworkError(f"Kaggle's answer while {doing} is no JSON: try again later")
    return NetworkError(f"the connection to Kaggle broke while {doing}: try again")


def _body(response: requests.Response) -> Mapping[str, Any]:
    if "json" not in response.headers.get("Content-Type", ""):
        return {}
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _code(response: requests.Response) -> int:
    """The HTTP status; Kaggle also sends errors with status 200 and a code of their own."""
    code = _body(response).get("code")
    return code if isinstance(code, int) and code >= 400 else response.status_code


def _message(response: requests.Response) -> str:
    return _line(_body(response).get("message"))


def _line(text: object) -> str:
    """Kaggle's own words, short and without what must not be shown."""
    words = _clean(" ".join(str(text or "").split()))
    return words[:_MESSAGE] + ("…" if len(words) > _MESSAGE else "")


def _clean(text: str) -> str:
    """Kaggle's own words without secrets, and without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in hide(text))


def _quoted(text: str) -> str:
    return f" and said: {_line(text)}" if text else ""


def _retry_after(response: requests.Response) -> float:
    """Seconds that Kaggle asks to wait; 0 where it does not say."""
    text = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
