"""A chat-completions endpoint by the standard library: retries where waiting helps, one clear line otherwise."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from darkmatter.errors import DarkmatterError, InputError

Message = Mapping[str, str]
Post = Callable[[str, bytes, Mapping[str, str], float], bytes]
"""Sends one request: address, body, headers, timeout in seconds → body of the answer."""

_LONGEST_WAIT = 60.0
_RETRIED = frozenset({408, 409, 425, 429})


class EndpointError(DarkmatterError):
    """An endpoint that does not answer, after all retries."""


def post(address: str, body: bytes, headers: Mapping[str, str], timeout: float) -> bytes:
    """Send one request with `urllib`; redirects are not followed, so that a key goes nowhere else."""
    request = urllib.request.Request(address, data=body, headers=dict(headers), method="POST")
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout) as answer:
        found: bytes = answer.read()
    return found


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible endpoint, ``POST {url}/chat/completions``.

    Attributes:
        url: Base address, such as ``http://127.0.0.1:8000/v1``.
        model: Name of the model.
        api_key: Sent as a bearer token; never shown, logged or written. None sends none.
        timeout: Seconds for one request.
        retries: How often a request is repeated after a timeout, a failed connection, or status 408, 409, 425, 429 or
            5xx.
        backoff: Seconds before the first repeat; doubled every time, at most a minute. A server's Retry-After counts.
        max_tokens: Longest answer.
        post: How requests are sent.
        sleep: How to wait.

    Raises:
        InputError: An address that is not http or https.
    """

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False, compare=False)
    timeout: float = 60.0
    retries: int = 4
    backoff: float = 1.0
    max_tokens: int = 512
    post: Post = field(default=post, repr=False, compare=False)
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _is_address(self.url):
            raise InputError(f"endpoint is {self.url!r}, expected an address such as http://127.0.0.1:8000/v1")
        if not self.model:
            raise InputError("the endpoint's model has no name, expected one such as the server lists")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise InputError("the API key holds a line break or a character outside ASCII: set it anew")

    def complete(self, messages: Sequence[Message]) -> str:
        """Ask once.

        Args:
            messages: Messages with ``role`` and ``content``.

        Returns:
            The text of the first choice; empty where the answer has another form, which the caller counts as malformed.

        Raises:
            InputError: The request is refused: wrong key, unknown model or address.
            EndpointError: No answer after all retries.
        """
        body = {"model": self.model, "messages": list(messages), "temperature": 0, "max_tokens": self.max_tokens}
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        address, why = f"{self.url.rstrip('/')}/chat/completions", ""
        for attempt in range(self.retries + 1):
            wait = min(self.backoff * 2**attempt, _LONGEST_WAIT)
            try:
                return _text(self.post(address, json.dumps(body).encode(), headers, self.timeout))
            except urllib.error.HTTPError as error:
                status, asked = error.code, error.headers.get("Retry-After") if error.headers else None
                error.close()
                if status not in _RETRIED and status < 500:
                    raise InputError(f"{address} refused the request with status {status}: {_remedy(status)}") from None
                why = f"status {status}"
                wait = min(float(asked), _LONGEST_WAIT) if asked is not None and asked.isdecimal() else wait
            except (TimeoutError, http.client.HTTPException, OSError) as error:  # URLError is an OSError
                why = str(getattr(error, "reason", error)) or type(error).__name__
            if attempt < self.retries:
                self.sleep(wait)
        raise EndpointError(
            f"{address} gave no answer in {self.retries + 1} attempts ({why}): what was answered before is kept, start "
            "the same command again"
        )


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and parts.port != 0
            and url.isascii()
            and (not any(c.isspace() for c in url))
        )
    except ValueError:
        return False


def _remedy(status: int) -> str:
    if status in {401, 403}:
        return "check the API key in the environment variable named by --api-key-env"
    if status == 404:
        return "check --endpoint (it ends where /chat/completions begins) and --interp-model"
    return "check --endpoint and --interp-model"


def _text(answer: bytes) -> str:
    try:
        found = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return ""
    return found if isinstance(found, str) else ""
