"""Diagnosis, counting and settings, without a server."""

from __future__ import annotations

import socket

import pytest

from rhostream import storage
from rhostream.errors import AccessError, RhostreamError, UsageError
from rhostream.storage import faults, settings
from rhostream.storage.faults import StatusError, TransferError, diagnose
from tests.stores.servers import BUCKET, Server


@pytest.mark.parametrize(("status", "code", "act"), [
    (500, "InternalError", "retry"), (503, "SlowDown", "retry"), (429, "", "retry"), (408, "", "retry"),
    (409, "ConditionalRequestConflict", "retry"), (400, "BadDigest", "retry"), (400, "RequestTimeout", "retry"),
    (400, "ExpiredToken", "denied"), (401, "", "denied"), (403, "AccessDenied", "denied"),
    (403, "RequestTimeTooSkewed", "denied"), (400, "AuthorizationHeaderMalformed", "denied"),
    (404, "NoSuchKey", "missing"), (412, "PreconditionFailed", "exists"), (400, "KeyTooLongError", "final"),
    (301, "PermanentRedirect", "final"), (501, "NotImplemented", "final"),
])  # fmt: skip
def test_a_status_is_tried_again_only_where_it_may_pass(status: int, code: str, act: str) -> None:
    assert diagnose(StatusError(status, code)).act == act


@pytest.mark.parametrize(("exc", "kind"), [
    (ConnectionResetError(104, "x"), "reset"), (ConnectionRefusedError(111, "x"), "refused"),
    (BrokenPipeError(32, "x"), "reset"), (socket.gaierror(-2, "x"), "dns"), (TimeoutError("x"), "stalled"),
    (TransferError("slow"), "slow"),
])  # fmt: skip
def test_a_broken_connection_has_a_name(exc: BaseException, kind: str) -> None:
    outer = RuntimeError("https://user:c4n4ry@host/?sig=c4n4ry")
    outer.__cause__ = exc
    for fault in (diagnose(exc), diagnose(outer)):
        assert (fault.kind, fault.act) == (kind, "retry") and "c4n4ry" not in fault.says


def test_retry_after_is_seconds_or_a_date() -> None:
    assert diagnose(StatusError(503, "", "7")).wait == 7
    assert diagnose(StatusError(503, "", "Wed, 21 Oct 2015 07:28:00 GMT")).wait == 0
    assert diagnose(StatusError(503, "", "Wed, 21 Oct 2215 07:28:00 GMT")).wait > 1e9
    assert diagnose(StatusError(503, "", "soon")).wait == 0


def test_counts_are_taken_added_and_compared() -> None:
    before = storage.retried()
    storage.add_retried({"s3://a": {"reset": 2}, "gs://b": {"http 503": 1}})
    assert storage.retried_since(before) == {"s3://a": {"reset": 2}, "gs://b": {"http 503": 1}}
    taken = storage.take_retried()
    assert storage.retried() == {}
    storage.add_retried(taken)
    assert storage.retried_since(before)["s3://a"] == {"reset": 2}
    faults._counts.clear()


def test_a_bucket_may_have_options_of_its_own(s3_server: Server) -> None:
    storage.configure("s3", {**s3_server.options, "secret": "wrong"})
    storage.configure(f"s3://{BUCKET}", s3_server.options)
    try:
        assert storage.list_files(f"s3://{BUCKET}/nothing-here", "") == []
        with pytest.raises(AccessError):
            storage.list_files("s3://another/nothing-here", "")
    finally:
        storage.configure("s3", None)
        storage.configure(f"s3://{BUCKET}", None)
    assert not settings.settings().options
    for wrong in ("ftp", "memory", "s3://", "s3://bucket/key"):
        with pytest.raises(UsageError, match="options are for s3, gs or https"):
            storage.configure(wrong, {})


def test_an_option_that_the_client_does_not_know_is_named_as_one(s3_server: Server) -> None:
    storage.configure("s3", {**s3_server.options, "no_such_option": "c4n4ry"})
    try:
        with pytest.raises(RhostreamError, match="are the storage options right") as refused:
            storage.identity(f"s3://{BUCKET}/x")
        assert "c4n4ry" not in str(refused.value)
    finally:
        storage.configure("s3", None)
