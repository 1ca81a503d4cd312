"""Turn a response into a model or an error. Pure: no I/O, no clock, no httpx."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from attrs import frozen

from agentphone._decoding import decode
from agentphone._http.requests import LIST_PATH, RequestSpec
from agentphone._http.retry import parse_retry_after
from agentphone._json import DecodeError, parse_json
from agentphone._secret import Secret
from agentphone.errors import (
    APIConnectionError,
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ResponseDecodeError,
    ServerError,
    UnprocessableEntityError,
)

T = TypeVar("T")


class BodyReader:
    """The body of an answer as it comes in, decompressed, up to a size.

    httpx can decompress too, but whole chunks: a few kilobytes of zeros in gzip become gigabytes before anybody looks.
    """

    def __init__(self, encoding: str | None, max_bytes: int) -> None:
        self._encoding = (encoding or "identity").strip().lower()
        self._max_bytes = max_bytes
        self._bytes = bytearray()
        self._raw_beginning = b""
        self._raw_length = 0
        self._inflater = None if self._encoding == "identity" else zlib.decompressobj(_GZIP)
        self._error: DecodeError | None = None

    @property
    def preview(self) -> bytes:
        """Its first bytes, for an error; those that came over the wire where they could not be decompressed."""
        return bytes(self._bytes[:MAX_ERROR_BODY]) or self._raw_beginning

    def feed(self, chunk: bytes) -> bool:
        """Take the next bytes as they came, and say whether more are wanted."""
        if self._error is None:
            try:
                self._feed(chunk)
            except DecodeError as error:
                self._error = error
        return self._error is None

    def _feed(self, chunk: bytes) -> None:
        self._raw_beginning += chunk[: MAX_ERROR_BODY - len(self._raw_beginning)]
        self._raw_length += len(chunk)
        if self._encoding not in ("identity", "gzip"):
            raise DecodeError(f"the body is compressed in {self._encoding!r}, which was not asked for")
        if self._inflater is not None:
            if self._inflater.eof:
                raise self._wrong_encoding("more follows behind its end")
            try:
                chunk = self._inflater.decompress(chunk, self._max_bytes - len(self._bytes) + 1)
            except zlib.error as error:
                raise self._wrong_encoding(str(error)) from None
            if self._inflater.unused_data:
                raise self._wrong_encoding("more follows behind its end")
        self._bytes += chunk
        # What is compressed can be endless and hold nothing. Twice: compressing can make short texts longer, too.
        if len(self._bytes) > self._max_bytes or self._raw_length > 2 * self._max_bytes + 1024:
            raise DecodeError(f"the body is larger than max_response_bytes={self._max_bytes}")

    def read(self) -> bytes:
        """Give the whole body.

        Raises:
            DecodeError: It is too large, not compressed as its header says, or ends in the middle of that.
        """
        if self._error is not None:
            raise self._error
        if self._inflater is not None and not self._inflater.eof:
            raise self._wrong_encoding("it ends too early")
        return bytes(self._bytes)

    def _wrong_encoding(self, why: str) -> DecodeError:
        return DecodeError(f"the body is not {self._encoding}, as its Content-Encoding says ({why})")


_GZIP = 16 + zlib.MAX_WBITS


ACCEPTED_ENCODINGS = "gzip"


MAX_ERROR_BODY = 500


@frozen(repr=False)
class Answer:
    """An answer as it came. Its repr shows nothing: what a server says may repeat the key."""

    status: int
    headers: Mapping[str, str]
    """Looked up in lower case."""
    body: BodyReader


def read(spec: RequestSpec[T], answer: Answer, *, now: float, secret: Secret) -> T:
    """Read an answer.

    Args:
        call: What was asked.
        answer: What came.
        now: Unix seconds, for a `Retry-After` that is a date.
        secret: What no error may show, though the answer repeats it.

    Returns:
        The model.

    Raises:
        APIStatusError: The status is not a success; also where the body cannot be read, for the status tells enough.
        ResponseDecodeError: The body is not JSON of the promised shape.
    """
    if not 200 <= answer.status < 300:
        raise _status_error(spec, answer, now, secret)
    try:
        return decode(answer.body.read(), spec.response_type)
    except DecodeError as error:
        what, path = secret.redact(error.reason), secret.redact(error.path)
    # Not inside the `except`: what is chained there holds the body as it came, and hides what the caller is handling.
    raise ResponseDecodeError(
        what,
        request=str(spec),
        path=path,
        status_code=answer.status,
        request_id=_header(answer, "x-request-id", secret),
        body=_redact(answer.body.preview, secret, is_cut=True),
    )


def _redact(body: bytes, secret: Secret, *, is_cut: bool = False) -> bytes:
    return secret.redact(body.decode("latin-1"), is_cut=is_cut).encode("latin-1")  # which keep each byte as it is


def _header(answer: Answer, name: str, secret: Secret) -> str | None:
    value = answer.headers.get(name)
    return None if value is None else secret.redact(value)


_STATUS_ERRORS = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


def _status_error(spec: RequestSpec[Any], answer: Answer, now: float, secret: Secret) -> APIStatusError:
    status, headers = answer.status, answer.headers
    cls = _STATUS_ERRORS.get(status, ServerError if 500 <= status < 600 else APIStatusError)
    try:
        text = _redact(answer.body.read(), secret)
        error_body = _read_error(text)
        message = error_body.message or _reason_phrase(status, text)
    except DecodeError as error:
        text, error_body = _redact(answer.body.preview, secret, is_cut=True), ErrorBody()
        message = secret.redact(f"{_reason_phrase(status, text.strip() or b'?')}; {error.reason}")
    refusal = cls(
        message,
        request=str(spec),
        status_code=status,
        code=error_body.code,
        type=error_body.type,
        details=error_body.details,
        retry_after=parse_retry_after(headers.get("retry-after"), now, headers.get("date")),
        request_id=_header(answer, "x-request-id", secret),
        location=_header(answer, "location", secret),
        body=text,
    )
    if status == 407:
        refusal.advice = APIConnectionError.advice_for_proxies
    elif status == 404 and spec.path == LIST_PATH:
        refusal.advice = NotFoundError.advice_for_lists
    return refusal


def _reason_phrase(status: int, body: bytes) -> str:
    """Say what the status means, for an answer that says nothing that the SDK can read."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "an unknown status"
    if body.lstrip()[:1] == b"<":
        return f"{phrase} (an HTML page, so probably from a proxy and not from the API)"
    return phrase if body.strip() else f"{phrase} (with an empty body)"


@frozen
class ErrorBody:
    """What an error's body says, from whichever of its four forms."""

    message: str | None = None
    code: str | None = None
    type: str | None = None
    details: list[dict[str, Any]] | None = None


def _read_error(body: bytes) -> ErrorBody:
    """Read the envelope, FastAPI's two forms of `detail`, or a bare `message`; anything else says nothing."""
    try:
        raw = parse_json(body)
    except DecodeError:
        return ErrorBody()
    match raw:
        case {"error": {**envelope}}:
            return ErrorBody(
                message=_text(envelope.get("message")),
                code=_text(envelope.get("code")),
                type=_text(envelope.get("type")),
                details=_objects(envelope.get("details")),
            )
        case {"detail": [*complaints]}:
            details = [_fastapi_detail(complaint) for complaint in _objects(complaints)]
            return ErrorBody(message="; ".join(filter(None, (_text(d["message"]) for d in details))), details=details)
        case {"detail": str(message)} | {"message": str(message)} | {"error": str(message)}:
            return ErrorBody(message=message)
    return ErrorBody()


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _fastapi_detail(complaint: dict[str, Any]) -> dict[str, Any]:
    """Give FastAPI's `{loc, msg, type}` as the envelope's `{field, message, type}`."""
    where = complaint.get("loc")
    field = ".".join(map(str, where)) if isinstance(where, list) else None
    return {"field": field, "message": complaint.get("msg"), "type": complaint.get("type")}
