"""What went wrong with a store, in our words: the kind, whether to ask again, and how often that was done.

The clients raise dozens of classes; they are known here by name, so that no client has to be installed to say so.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Act = Literal["retry", "denied", "missing", "exists", "changed", "disk", "final"]
_KINDS = {  # class of a client's exception -> kind; the first that is found along the chain of causes, in this order
    "ClientConnectorDNSError": "dns", "gaierror": "dns",
    "ConnectionRefusedError": "refused",
    "ConnectTimeoutError": "connect", "ConnectionTimeoutError": "connect",
    "ProxyConnectionError": "proxy", "ClientProxyConnectionError": "proxy", "ClientHttpProxyError": "proxy",
    "IncompleteReadError": "cut body", "ClientPayloadError": "cut body", "ContentLengthError": "cut body",
    "TransferEncodingError": "cut body", "IncompleteRead": "cut body", "ResponseStreamingError": "cut body",
    "FlexibleChecksumError": "checksum",
    "ReadTimeoutError": "stalled", "SocketTimeoutError": "stalled", "ServerTimeoutError": "stalled",
    "ConnectionResetError": "reset", "ConnectionClosedError": "reset", "ServerDisconnectedError": "reset",
    "BrokenPipeError": "reset", "ConnectionAbortedError": "reset", "ClientOSError": "reset",
    "EndpointConnectionError": "unreachable", "ClientConnectorError": "unreachable", "TransportError": "unreachable",
    "ResponseParserError": "no valid answer", "ClientConnectionError": "reset", "HTTPClientError": "reset",
    "BadStatusLine": "no valid answer", "BadHttpMessage": "no valid answer", "ClientResponseError": "no valid answer",
    "TimeoutError": "stalled",
}  # fmt: skip
_SAYS = {
    "dns": "the store's host name can't be looked up", "refused": "the connection was refused",
    "connect": "no connection within the deadline", "proxy": "the proxy can't be reached",
    "cut body": "the body was cut", "short body": "the body is shorter than the object",
    "checksum": "the bytes don't match the store's checksum", "stalled": "the store stopped answering",
    "first byte": "no answer within the deadline", "slow": "the transfer is too slow", "reset": "the connection broke",
    "unreachable": "the store can't be reached", "no valid answer": "the store's answer can't be understood",
}  # fmt: skip
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound",
                   "DefaultCredentialsError", "TokenRetrievalError", "RefreshError"}  # fmt: skip
_UNTRUSTED = {"SSLCertVerificationError", "ClientConnectorCertificateError", "CertificateError"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_TRY_AGAIN = {"SlowDown", "InternalError", "RequestTimeout", "BadDigest", "IncompleteBody", "ServiceUnavailable",
              "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "ConditionalRequestConflict",
              "OperationAborted", "ThrottlingException", "Throttling"}  # fmt: skip
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed",
           "InvalidToken", "InvalidSecurity"}  # fmt: skip
_MISSING = {"NoSuchKey", "NoSuchBucket"}


class StatusError(Exception):
    """A store's answer that is not the one asked for."""

    def __init__(self, status: int, code: str = "", retry_after: str | None = None) -> None:
        super().__init__(f"{status} {code}")
        self.status, self.code, self.retry_after = status, code, retry_after


class TransferError(Exception):
    """A transfer that we gave up: its kind is one of those above."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.kind, self.detail = kind, detail


class VersionError(Exception):
    """The version that was asked for is no longer there."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A diagnosis."""

    kind: str  # what it is counted as
    act: Act
    says: str  # without secrets: no text of the store or its client is in it but the store's error code
    wait: float = 0.0  # seconds that the store asked for


def diagnose(exc: BaseException) -> Fault:
    """The kind of any exception of a store's client."""
    chain = _chain(exc)
    for one in chain:
        if isinstance(one, TransferError):
            return Fault(one.kind, "retry", _SAYS[one.kind] + (f" ({one.detail})" if one.detail else ""))
        if isinstance(one, VersionError):
            return Fault("changed", "changed", "changed while it was read; run again")
        if isinstance(one, StatusError):
            return _of_status(one.status, one.code, one.retry_after)
        response = getattr(one, "response", None)
        if isinstance(response, Mapping) and "Error" in response:  # botocore's ClientError
            return _of_client_error(response)
    names = {cls.__name__ for one in chain for cls in type(one).__mro__}
    if names & _NO_CREDENTIALS:
        return Fault(
            "credentials",
            "denied",
            "no usable credentials were found; log in to the store, or give them as storage options",
        )
    if names & _UNTRUSTED:
        return Fault(
            "certificate",
            "final",
            "the server's certificate isn't trusted: is the address right? A private "
            "authority is named in the storage options (ca_file; s3: verify)",
        )
    kind = next((kind for name, kind in _KINDS.items() if name in names), None)
    if kind is not None:
        return Fault(kind, "retry", _SAYS[kind])
    if isinstance(exc, FileNotFoundError | NotADirectoryError):
        return Fault("missing", "missing", "does not exist")
    if isinstance(exc, FileExistsError):
        return Fault("exists", "exists", "exists already")
    if isinstance(exc, PermissionError):
        return Fault("denied", "denied", "permission denied; check the credentials")
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Fault("disk", "disk", os.strerror(exc.errno))
    if isinstance(exc, OSError):
        reason = os.strerror(exc.errno) if exc.errno else type(exc).__name__
        return Fault(errno.errorcode.get(exc.errno or 0, type(exc).__name__), "retry", reason)
    name = type(exc).__name__
    return Fault(name, "final", f"{name} in the store's client: are the storage options right?")


def _chain(exc: BaseException) -> list[BaseException]:
    """The exception and all that caused it, the nearest first."""
    found: list[BaseException] = []
    todo: list[BaseException | None] = [exc]
    while todo:
        one = todo.pop(0)
        if one is not None and one not in found:
            found.append(one)
            inner = getattr(one, "kwargs", {}).get("error") if hasattr(one, "kwargs") else None  # botocore's own cause
            todo += [
                one.__cause__,
                one.__context__,
                inner if isinstance(inner, BaseException) else None,
                getattr(one, "os_error", None),
            ]
    return found


def _of_client_error(response: Mapping[str, object]) -> Fault:
    error, metadata = response["Error"], response.get("ResponseMetadata", {})
    assert isinstance(error, Mapping) and isinstance(metadata, Mapping)
    code = str(error.get("Code", ""))
    status = int(metadata.get("HTTPStatusCode") or (code if code.isdigit() else 0))
    return _of_status(status, "" if code.isdigit() else code, metadata.get("HTTPHeaders", {}).get("retry-after"))


def _of_status(status: int, code: str, retry_after: str | None) -> Fault:
    what = f"{status} {code}".strip()
    if code == "RequestTimeTooSkewed":
        return Fault(
            "clock",
            "denied",
            "the store says that this machine's clock is wrong (RequestTimeTooSkewed): set "
            "the clock, for example with NTP, and run the same command again",
        )
    if code in _EXPIRED:
        return Fault(
            "expired", "denied", f"the credentials expired ({code}): renew them and run the same command again"
        )
    if code in _DENIED or (status in (401, 403) and code not in _TRY_AGAIN):
        return Fault(
            "denied",
            "denied",
            f"the store refused the credentials ({what}): check key, secret, token and what they may read and write",
        )
    if status == 412:
        return Fault("exists", "exists", "exists already")
    if status in (404, 410) or code in _MISSING:
        return Fault("missing", "missing", "the bucket does not exist" if code == "NoSuchBucket" else "does not exist")
    if status in (408, 409, 425, 429) or (status >= 500 and status != 501) or code in _TRY_AGAIN:
        return Fault(f"http {status}", "retry", f"the store answered {what}", _seconds(retry_after))
    hint = ": is the region or the endpoint right?" if 300 <= status < 400 else ""
    return Fault(f"http {status}", "final", f"the store answered {what}{hint}")


def _seconds(retry_after: str | None) -> float:
    """Retry-After: seconds, or the date of HTTP."""
    if not retry_after:
        return 0.0
    try:
        return max(float(retry_after), 0.0)
    except ValueError:
        pass
    import datetime
    from email.utils import parsedate_to_datetime

    try:
        then = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    return max((then - datetime.datetime.now(then.tzinfo)).total_seconds(), 0.0)


# -- how often -------------------------------------------------------------------------------------------------------

_counts: Counter[tuple[str, str]] = Counter()
_lock = threading.Lock()


def count(place: str, kind: str, times: int = 1) -> None:
    """Count attempts that failed and were made again."""
    with _lock:
        _counts[place, kind] += times


def retried() -> dict[str, dict[str, int]]:
    """What this process and its loader workers tried again so far: {"s3://bucket": {"reset": 2, "http 503": 1}}."""
    with _lock:
        found = sorted(_counts.items())
    places: dict[str, dict[str, int]] = {}
    for (place, kind), times in found:
        places.setdefault(place, {})[kind] = times
    return places


def retried_since(before: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """What came on top of an earlier answer of `retried`."""
    new = {
        place: {kind: times - before.get(place, {}).get(kind, 0) for kind, times in kinds.items()}
        for place, kinds in retried().items()
    }
    return {place: more for place, kinds in new.items() if (more := {k: n for k, n in kinds.items() if n})}


def take_retried() -> dict[str, dict[str, int]]:
    """The same, and count from nothing again: what a worker sends along with its results."""
    found = retried()
    with _lock:
        _counts.clear()
    return found


def add_retried(found: Mapping[str, Mapping[str, int]]) -> None:
    """Count what a worker sent."""
    for place, kinds in found.items():
        for kind, times in kinds.items():
            count(place, kind, times)


def _after_fork() -> None:
    """A child's counts are its own."""
    global _lock
    _lock = threading.Lock()
    _counts.clear()


os.register_at_fork(after_in_child=_after_fork)
