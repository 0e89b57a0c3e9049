"""Shards behind https: presigned URLs, ranges, and a server that can't do them."""

from __future__ import annotations

import datetime
import http.server
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import rhostream
from rhostream import storage
from rhostream.errors import AccessError, NotFoundError, StorageError, UsageError
from tests.support.shards import make_shards

SIGNATURE = "X-Amz-Signature=c4n4ry%2Fx%3D"


class Handler(http.server.BaseHTTPRequestHandler):
    """Files of a folder; GET only, with the signature, and ranges unless the path begins with /plain/."""

    folder: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        file = self.folder / path.rpartition("/")[2]
        if query != SIGNATURE:
            return self._answer(403, b"<Error><Code>ExpiredToken</Code></Error>")
        if not file.exists():
            return self._answer(404, b"")
        data = file.read_bytes()
        asked = self.headers.get("Range")
        if asked and not path.startswith("/plain/"):
            start, end = (int(n) for n in asked.removeprefix("bytes=").split("-"))
            part = data[start : end + 1]
            return self._answer(206, part, {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(data)}"})
        return self._answer(200, data)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"ETag": '"v1"', "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _certificate(folder: Path) -> Path:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of a server of tmp_path/shards."""
    make_shards(tmp_path / "shards", [30, 20])
    pem = _certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    here = type("Here", (Handler,), {"folder": tmp_path / "shards"})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), here)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    storage.configure("https", {"ca_file": str(pem)})
    storage.configure_spool(tmp_path / "spool")
    storage.configure_retry(storage.Retry(tries=2, first_wait=0.01))
    yield f"https://localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()
    storage.configure("https", None)
    storage.configure_spool(None)
    storage.configure_retry(None)


def test_a_presigned_shard_is_read_whole_by_ranges_and_indexed(web: str, tmp_path: Path) -> None:
    data = (tmp_path / "shards" / "train-000.tar").read_bytes()
    url = f"{web}/train-000.tar?{SIGNATURE}"
    assert storage.read_bytes(url) == data and storage.identity(url) == storage.Identity(len(data), "v1")
    for spool_bytes in (None, 0):
        with storage.open_reader(url, spool_bytes) as reader:
            assert reader.pread(700, 300) == data[300:1000] and reader.size == len(data)
    summary = rhostream.index([url, f"{web}/train-001.tar?{SIGNATURE}"], str(tmp_path / "index"))
    assert summary.samples == 50 and not summary.bad_shards
    for path in (tmp_path / "index").rglob("*"):
        assert "c4n4ry" not in path.name and (path.is_dir() or b"c4n4ry" not in path.read_bytes())


def test_what_goes_wrong_is_said_without_the_signature(web: str) -> None:
    with pytest.raises(AccessError, match="the credentials expired") as refused:
        storage.read_bytes(f"{web}/train-000.tar?X-Amz-Signature=0ld-c4n4ry")
    assert "c4n4ry" not in str(refused.value)
    with pytest.raises(NotFoundError, match=r"none.tar does not exist"):
        storage.read_bytes(f"{web}/none.tar?{SIGNATURE}")
    with (
        pytest.raises(UsageError, match="doesn't know ranges"),
        storage.open_reader(f"{web}/plain/train-000.tar?{SIGNATURE}", 0) as reader,
    ):
        reader.pread(10, 0)
    with storage.open_reader(f"{web}/plain/train-000.tar?{SIGNATURE}") as reader:
        assert reader.size == len(reader.pread(1 << 30, 0))
    storage.configure("https", None)
    with pytest.raises(StorageError, match="certificate") as untrusted:
        storage.read_bytes(f"{web}/train-000.tar?{SIGNATURE}")
    assert "c4n4ry" not in str(untrusted.value)
    with pytest.raises(UsageError, match="expected headers"):
        storage.configure("https", {"verify": False})
        storage.read_bytes(f"{web}/x")
