"""Enrollment by token, over real TLS: who gets a certificate, and who does not."""

import base64
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.pki import NOW, new_tree, parent
from tierfed.deploy import certificates, enroll, tokens
from tierfed.deploy.admission import read_revocations
from tierfed.deploy.authority import Authority, records, revoke
from tierfed.deploy.identity import CRL, NODE, load_credentials
from tierfed.deploy.names import Node, server_name
from tierfed.deploy.tokens import Token, make_csr, make_token, read_token
from tierfed.errors import InputError

DAN = Node(name="dan", tier="device", parent="fog-0")


@pytest.fixture
def authority(own: Authority) -> Authority:
    return own


class Served:
    """A CA that serves, and what it tells."""

    def __init__(self, authority: Authority) -> None:
        self.told: list[str] = []
        self.server, port = enroll.serve(authority, "127.0.0.1:0", self.told.append)
        self.address = f"127.0.0.1:{port}"


@pytest.fixture
def served(authority: Authority) -> Iterator[Served]:
    made = Served(authority)
    yield made
    made.server.stop(None).wait()


def certificates_of(authority: Authority, name: str = "dan") -> int:
    return len([r for r in records(authority) if r.name == name and r.status(NOW) == "valid"])


def asked(authority: Authority, token: Token, node: Node = DAN, key: Any = None, **options: Any) -> tokens.Enrolled:
    return tokens.enroll(authority, token.secret, make_csr(key or certificates.new_key(), node), **options)


def test_a_new_device_joins(authority: Authority, served: Served, tmp_path: Path) -> None:
    text = make_token(authority, DAN).text()
    assert "PRIVATE" not in text
    done = enroll.request(read_token(text), served.address, tmp_path / "dan")
    assert (done.identity.name, done.identity.parent) == ("dan", "fog-0")
    assert sorted(p.name for p in done.folder.iterdir()) == ["ca.pem", CRL, NODE]
    assert os.name != "posix" or (done.folder / NODE).stat().st_mode & 0o777 == 0o600
    assert served.told == [t for t in served.told if t.startswith("enrolled device 'dan' at ipv4:127.0.0.1:")]
    with parent(load_credentials(authority.node_folder("fog-0"))) as fog:
        assert fog.join(done) == "device 'dan' joins"
        revoke(authority, ["dan"])
        assert fog.join(done).startswith("revoked: ")


def test_a_token_is_good_for_one_key(authority: Authority, served: Served, tmp_path: Path) -> None:
    token = make_token(authority, DAN)
    enroll.request(token, served.address, tmp_path / "first")
    with pytest.raises(InputError, match="the CA refuses: the token of device 'dan' was used before, for another key"):
        enroll.request(token, served.address, tmp_path / "second")
    assert not (tmp_path / "second" / NODE).exists()
    assert certificates_of(authority) == 1
    assert served.told[-1].startswith("refused ipv4:127.0.0.1:")


def test_a_lost_answer_is_given_again(authority: Authority, served: Served, tmp_path: Path) -> None:
    """The device is interrupted before and after the CA has signed: it goes on with the same key."""
    token, folder = make_token(authority, DAN), tmp_path / "dan"
    with pytest.raises(InputError, match="no answer from the CA that made the token at 127"):
        enroll.request(token, "127.0.0.1:1", folder, timeout_seconds=5)
    key = certificates.read_key((folder / enroll.PENDING).read_bytes(), "")
    first = asked(authority, token, key=key)
    done = enroll.request(token, served.address, folder)
    assert done.certificate == first.certificate
    assert not (folder / enroll.PENDING).exists()
    assert certificates_of(authority) == 1
    revoke(authority, ["dan"])
    with pytest.raises(InputError, match="the certificate of this token was revoked"):
        asked(authority, token, key=key)


def test_another_ca_does_not_hear_the_secret(authority: Authority, served: Served, tmp_path: Path) -> None:
    other = new_tree(tmp_path / "other")
    with pytest.raises(InputError, match="no answer from the CA that made the token"):
        enroll.request(make_token(other, DAN), served.address, tmp_path / "dan", timeout_seconds=5)
    assert served.told == []


def test_a_fog_cannot_pose_as_the_ca(authority: Authority, tmp_path: Path) -> None:
    """The port where devices enroll has a name that no node's certificate has."""
    with (
        parent(load_credentials(authority.node_folder("fog-0"))) as posing,
        pytest.raises(InputError, match="Hostname Verification"),
    ):
        enroll.request(make_token(authority, DAN), f"127.0.0.1:{posing.port}", tmp_path / "dan", timeout_seconds=5)
    assert posing.asked == []


def test_two_at_once(authority: Authority, served: Served) -> None:
    """Of eight thieves with one token one is served."""
    token, keys = make_token(authority, DAN), [certificates.new_key() for _ in range(8)]

    def one(key: certificates.Key) -> bool:
        try:
            asked(authority, token, key=key)
        except InputError as e:
            return "was used before" not in str(e)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(one, keys)) == 1
    assert certificates_of(authority) == 1


class TestRefused:
    """Nothing is issued, whatever is wrong."""

    @pytest.fixture(autouse=True)
    def _none_is_issued(self, authority: Authority) -> Iterator[None]:
        before = records(authority)
        yield
        assert records(authority) == before

    def test_wrong(self, authority: Authority) -> None:
        token = make_token(authority, DAN)
        wrong = Token(secret=token.secret[::-1], node=DAN, ca=token.ca)
        with pytest.raises(InputError, match="the token is unknown"):
            asked(authority, wrong)

    def test_expired(self, authority: Authority) -> None:
        token = make_token(authority, DAN, hours=2, now=NOW)
        with pytest.raises(InputError, match="the token has expired at "):
            asked(authority, token, now=NOW + timedelta(hours=2, seconds=1))

    @pytest.mark.parametrize(
        "node",
        [
            Node(name="ann", tier="device", parent="fog-0"),
            Node(name="dan", tier="device", parent="*"),
            Node(name="dan", tier="fog", parent="fog-0"),
        ],
    )
    def test_for_another_node(self, authority: Authority, node: Node) -> None:
        with pytest.raises(InputError, match="the token is for device 'dan', the request is for 'tierfed://"):
            asked(authority, make_token(authority, DAN), node)

    def test_revoked_before_use(self, authority: Authority) -> None:
        token = make_token(authority, DAN)
        revoke(authority, ["dan"])
        with pytest.raises(InputError, match="the token is unknown, or was revoked"):
            asked(authority, token)

    def test_a_name_that_is_taken(self, authority: Authority) -> None:
        with pytest.raises(InputError, match="the name 'ann' is taken: a device of 'fog-0'"):
            make_token(authority, Node(name="ann", tier="device", parent="fog-1"))

    def test_a_key_that_the_sender_does_not_have(self, authority: Authority) -> None:
        """A request whose signature is of another request."""
        one, two = (make_csr(certificates.new_key(), DAN) for _ in range(2))
        lines, others = one.splitlines(), two.splitlines()
        mixed = b"\n".join([*lines[:-3], *others[-3:], b""])
        with pytest.raises(InputError, match="request"):
            tokens.enroll(authority, make_token(authority, DAN).secret, mixed)

    def test_another_kind_of_key(self, authority: Authority) -> None:
        large = ec.generate_private_key(ec.SECP384R1())
        with pytest.raises(InputError, match="another kind of key; wanted ECDSA on P-256"):
            asked(authority, make_token(authority, DAN), key=large)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
    def test_a_request_with_a_flipped_bit(self, authority: Authority, place: float, bits: int) -> None:
        request = x509.load_pem_x509_csr(make_csr(certificates.new_key(), DAN))
        damaged = flipped(request.public_bytes(Encoding.DER), place, bits)
        text = b"-----BEGIN CERTIFICATE REQUEST-----\n%b-----END CERTIFICATE REQUEST-----\n"
        with pytest.raises(InputError):
            certificates.read_request(text % base64.encodebytes(damaged))

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
    def test_a_revocation_list_with_a_flipped_bit(self, authority: Authority, place: float, bits: int) -> None:
        path = authority.folder / "flipped.pem"
        genuine = x509.load_pem_x509_crl((authority.folder / CRL).read_bytes())
        damaged = flipped(genuine.public_bytes(Encoding.DER), place, bits)
        path.write_bytes(b"-----BEGIN X509 CRL-----\n%b-----END X509 CRL-----\n" % base64.encodebytes(damaged))
        with pytest.raises(InputError):
            read_revocations(path, certificates.pem(authority.certificate))

    @pytest.mark.parametrize("kind", ["ed25519", "rsa"])
    def test_keys_of_other_kinds(self, authority: Authority, kind: str) -> None:
        other = ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else rsa.generate_private_key(65537, 2048)
        hashed = None if isinstance(other, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "dan")])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(other, hashed)
        with pytest.raises(InputError, match="another kind of key; wanted ECDSA on P-256"):
            tokens.enroll(authority, make_token(authority, DAN).secret, certificates.pem(request))

    def test_nonsense(self, authority: Authority) -> None:
        with pytest.raises(InputError, match="no request for a certificate"):
            tokens.enroll(authority, make_token(authority, DAN).secret, b"nonsense")

    @pytest.mark.parametrize(
        "content",
        [b"", b"[]", b"[" * 60_000, b"\xff\xfe", json.dumps({"secret": 1, "csr": ""}).encode(), b'{"secret": ""}'],
    )
    def test_messages_that_are_none(self, authority: Authority, served: Served, content: bytes) -> None:
        with pytest.raises(grpc.RpcError) as failed:
            sent(authority, served, content)
        assert failed.value.code() == grpc.StatusCode.PERMISSION_DENIED
        assert "the message is not understood" in str(failed.value.details())

    def test_a_large_message(self, authority: Authority, served: Served) -> None:
        with pytest.raises(grpc.RpcError) as failed:
            sent(authority, served, b"x" * (1 << 17))
        assert failed.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def flipped(content: bytes, place: float, bits: int) -> bytes:
    """The same bytes but for one. :param place: 0 the first, close to 1 the last"""
    at = int(place * len(content))
    return content[:at] + bytes([content[at] ^ bits]) + content[at + 1 :]


def sent(authority: Authority, served: Served, content: bytes) -> Any:
    """What the method says to raw bytes."""
    options = [("grpc.ssl_target_name_override", server_name(certificates.ENROLL))]
    trusted = grpc.ssl_channel_credentials(certificates.pem(authority.certificate))
    with grpc.secure_channel(served.address, trusted, options) as channel:
        return channel.unary_unary(f"/{enroll.SERVICE}/{enroll.METHOD}")(content, timeout=20)


def test_a_folder_with_credentials(authority: Authority) -> None:
    with pytest.raises(InputError, match="holds the credentials of a node"):
        enroll.request(make_token(authority, DAN), "127.0.0.1:1", authority.node_folder("fog-0"))


def test_a_port_that_is_taken(authority: Authority, served: Served) -> None:
    with pytest.raises(InputError, match="cannot listen on 127"):
        enroll.serve(authority, served.address)


@settings(max_examples=50)
@given(st.one_of(st.text(), st.text().map("tierfed1.a.b.{}".format)))
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(InputError, match="this is no token"):
        read_token(text)


def test_a_token_that_was_cut(authority: Authority) -> None:
    text = make_token(authority, DAN).text()
    assert read_token(text).node == DAN
    for cut in range(0, len(text), 7):
        with pytest.raises(InputError, match="this is no token"):
            read_token(text[:cut])


def test_the_ca_keeps_no_secret(authority: Authority) -> None:
    token = make_token(authority, DAN)
    assert token.secret.encode() not in (authority.folder / "ledger.sqlite").read_bytes()
    assert token.secret not in repr(token)
