"""Pictures of labelling tasks: they come as addresses, and only known hosts are asked for them.

A task is what somebody wrote into a project. Whoever fetches any address in it can be made to ask
the machines of a private network, and to send them a key. So a host has to be named by whoever
starts the server, in every redirection too, and the key goes to Label Studio alone.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from ris.engines.errors import ImageError, RisError
from ris.engines.text import echoed, reason_of

KEY_VARIABLE = "LABEL_STUDIO_API_KEY"
"""The environment variable with Label Studio's key; a command line is seen by all users."""

_DATA = re.compile(r"data:image/[\w.+-]+(?:;[\w=-]+)*;base64,", re.ASCII)
_CLOUDS = ("s3:", "gs:", "azure-blob:")
_ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE | re.ASCII)
_PIECE = 1 << 18  # bytes that are read at once
_KEPT = "%/:=&?~#+!$,;'@()*[]"  # characters of an address that mean something
_QUIET = 10.0  # seconds that a host may say nothing
_ANSWER = 65_536  # bytes of a new access token's answer, at most


@dataclass(frozen=True)
class PictureSource:
    """Where the pictures of tasks may come from."""

    label_studio: str | None = None
    """The address of Label Studio, such as "http://localhost:8080". None: it is not asked."""

    key: str | None = field(default=None, repr=False)
    """Its key: a personal access token, or a legacy token. None: pictures that need none."""

    hosts: frozenset[str] = frozenset()
    """Other hosts that may be asked, as addresses have them: "example.org", "example.org:8443"."""

    seconds: float = 30.0
    """How long a picture may take to come."""

    def __post_init__(self) -> None:
        if self.label_studio is None:
            return
        parts = urlsplit(self.label_studio)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise RisError(
                f"{echoed(self.label_studio)} is not the address of a Label Studio, such as"
                " http://localhost:8080"
            )

    def get(self, address: str, most: int, task: Any = None) -> bytes:
        """The bytes of a picture. This waits for the network: call it in a thread.

        Args:
            address: What a task's data has: `data:` with base64, a path of Label Studio's, a cloud
                address that Label Studio resolves, http or https.
            most: Bytes that are accepted.
            task: The task's number, for cloud addresses.

        Raises:
            ImageError: In one sentence, for whatever is not fetched.
        """
        if address.startswith("data:"):
            return _inside(address, most)
        try:
            url = quote(self._url(address.strip(), task), safe=_KEPT)
            allowed = self.allows(url)
        except (ValueError, TypeError, OverflowError):
            raise ImageError(f"the picture {echoed(address)} has no valid address") from None
        if not allowed:  # of what is fetched in the end, whatever made it
            raise ImageError(
                f"the picture {echoed(address)} is on a host that this server does not ask; start"
                f" it with --picture-host {echoed(urlsplit(url).netloc)}"
            )
        return _Fetch(self, most).get(url)

    def allows(self, url: str) -> bool:
        """Whether the address may be asked for."""
        parts = urlsplit(url)
        host = unquote(parts.netloc).lower()  # urllib asks this one
        known = host in self.hosts or self.is_label_studio(url)
        return known and parts.scheme in ("http", "https") and "@" not in host

    def is_label_studio(self, url: str) -> bool:
        """Whether the address is Label Studio's, by scheme, host and port."""
        return self.label_studio is not None and _origin(url) == _origin(self.label_studio)

    def _url(self, address: str, task: Any) -> str:
        """The address that is meant; whether it may be asked for is not looked at here."""
        if address.startswith(_CLOUDS):
            coded = base64.urlsafe_b64encode(address.encode()).decode()
            return self._own(f"tasks/{int(task or 0)}/resolve/?fileuri={coded}", address)
        if _ABSOLUTE.match(address):
            return address
        path = address.lstrip("/")
        return self._own(f"data/{path}" if path.startswith("upload/") else path, address)

    def _own(self, path: str, address: str) -> str:
        if self.label_studio is None:
            raise ImageError(
                f"the picture {echoed(address)} is in Label Studio itself; start this server with"
                f" --label-studio-url and with its key in {KEY_VARIABLE}"
            )
        parts = urlsplit(path.strip())
        if parts.scheme or parts.netloc:
            raise ValueError("no path")
        return urljoin(self.label_studio.rstrip("/") + "/", path)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    try:
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        port = None
    return parts.scheme, parts.hostname, port


def _inside(address: str, most: int) -> bytes:
    """The bytes of a `data:` address."""
    start = _DATA.match(address[:200])
    if start is None:
        raise ImageError("the picture is a data: address, but not of a picture in base64")
    if (len(address) - start.end()) * 3 // 4 > most + 2:
        raise ImageError(f"the picture has more than {most / 1e6:g} MB, which are accepted")
    try:
        return binascii.a2b_base64(address[start.end() :], strict_mode=True)
    except ValueError:
        raise ImageError("the picture is a data: address whose base64 is damaged") from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to known hosts alone. The key does not go along: it is no redirected header."""

    def __init__(self, source: PictureSource) -> None:
        self._source = source

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request that follows.

        Args:
            req: The request that was redirected.
            fp: Its answer.
            code: The status.
            msg: The status in words.
            headers: The answer's.
            newurl: Where it leads.

        Raises:
            ImageError: Where that is a host that nobody named.
        """
        if not self._source.allows(newurl):
            raise ImageError(
                f"{echoed(req.full_url)} leads to {echoed(urlsplit(newurl).netloc)}, a host that"
                " this server does not ask; start it with --picture-host"
            )
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        key = req.get_header("Authorization")
        if request and key and self._source.is_label_studio(newurl):
            request.add_unredirected_header("Authorization", key)
        return request


class _Fetch:
    """One picture on its way."""

    def __init__(self, source: PictureSource, most: int) -> None:
        self._source, self._most = source, most
        self._end = time.monotonic() + source.seconds
        # no handler of file: or ftp: is among these
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            _Redirects(source),
        ):
            self._opener.add_handler(handler)

    def get(self, url: str) -> bytes:
        try:
            return self._asked(url, self._authorization(url), self._most)
        except urllib.error.HTTPError as error:
            raise ImageError(self._refusal(url, error.code)) from None
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            said = reason_of(reason) if isinstance(reason, Exception) else echoed(str(reason))
            raise ImageError(f"the picture {echoed(url)} cannot be fetched: {said}") from None

    def _asked(
        self, url: str, authorization: str | None, most: int, body: bytes | None = None
    ) -> bytes:
        request = urllib.request.Request(url, body, {"User-Agent": "ris-runtime"})
        if body is not None:
            request.add_header("Content-Type", "application/json")
        if authorization:
            request.add_unredirected_header("Authorization", authorization)
        with self._opener.open(request, timeout=min(_QUIET, self._source.seconds)) as answer:
            return self._read(url, answer, most)

    def _read(self, url: str, answer: Any, most: int) -> bytes:
        """The body, up to a size and a time: a host may send slowly and for ever."""
        pieces: list[bytes] = []
        size = 0
        while piece := answer.read1(_PIECE):
            size += len(piece)
            if size > most:
                raise ImageError(
                    f"the picture {echoed(url)} has more than {most / 1e6:g} MB, which are accepted"
                )
            if time.monotonic() > self._end:
                raise ImageError(
                    f"the picture {echoed(url)} did not come within {self._source.seconds:g} s"
                )
            pieces.append(piece)
        return b"".join(pieces)

    def _authorization(self, url: str) -> str | None:
        """What Label Studio is to see; nobody else gets the key."""
        key = self._source.key
        if not key or not self._source.is_label_studio(url):
            return None
        if key.count(".") != 2:
            return f"Token {key}"
        # a personal access token is exchanged for one that holds for minutes
        assert self._source.label_studio is not None
        place = urljoin(self._source.label_studio.rstrip("/") + "/", "api/token/refresh/")
        body = json.dumps({"refresh": key}).encode()
        try:
            answer = json.loads(self._asked(place, None, _ANSWER, body))
            return f"Bearer {answer['access']}"
        except urllib.error.HTTPError:
            raise ImageError(
                f"Label Studio does not take the key in {KEY_VARIABLE}; copy a personal access"
                " token of your account there"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise ImageError(f"{echoed(place)} is not Label Studio's") from None

    def _refusal(self, url: str, status: int) -> str:
        said = f"the picture {echoed(url)} cannot be fetched: its host says {status}"
        if status not in (401, 403) or not self._source.is_label_studio(url):
            return said
        if self._source.key is None:
            return f"{said}; put a personal access token of Label Studio into {KEY_VARIABLE}"
        return f"{said}; the key in {KEY_VARIABLE} does not open it"
