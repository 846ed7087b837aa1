from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.client.conftest import Started
from tests.client.fake_server import FakeServer, Peer


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for localhost with its key, in one file, trusted by nobody."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - dt.timedelta(days=1), now + dt.timedelta(days=1))
    signed = (
        builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path / "localhost.pem"
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[FakeServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    fake = FakeServer(tls=context)
    yield fake
    fake.close()


def test_tasks_and_calls_come_over_tls(tls_server: FakeServer, certificate: Path, start: Callable[..., Started]) -> None:
    def script(peer: Peer) -> None:
        peer.welcome()
        peer.hand_over(text="x" * 200_000)
        peer.expect("bye")

    trusting = {"SSL_CERT_FILE": str(certificate), "CHATROOM_SERVER": tls_server.url}
    tls_server.next_connections(script)
    code, out, err = start("wait_for_task", "demo", "--role", "builder", env=trusting).finish()
    assert (code, "x" * 200_000 in out) == (0, True), err
    tls_server.routes["GET rooms"] = [(200, {"rooms": []})]
    assert start("rooms", env=trusting).finish()[0] == 0
    assert not tls_server.errors


def test_a_certificate_nobody_trusts_ends_a_command_at_once(tls_server: FakeServer, start: Callable[..., Started]) -> None:
    code, _, err = start("rooms", env={"CHATROOM_SERVER": tls_server.url}).finish()
    assert code == 8
    assert "certificate verify failed" in err
    code, _, err = start("wait_for_task", "demo", "--role", "builder", env={"CHATROOM_SERVER": tls_server.url}).finish()
    assert code == 8
    assert "certificate verify failed" in err
