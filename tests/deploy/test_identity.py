"""Who may join whom: every refusal with real certificates over real mutual TLS, on loopback."""

import logging
import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.pki import NOW, Parent, copied, made_by, of, parent
from tierfed.deploy import certificates
from tierfed.deploy.admission import Gate, admit, read_revocations
from tierfed.deploy.authority import Authority, issue, revoke
from tierfed.deploy.identity import (
    CRL,
    NODE,
    Credentials,
    Identity,
    channel_credentials,
    channel_options,
    load_credentials,
    peer_identity,
)
from tierfed.deploy.names import Node
from tierfed.errors import InputError


@pytest.fixture(scope="module")
def fog(authority: Authority) -> Iterator[Parent]:
    """The parent of `ann`, running."""
    with parent(load_credentials(authority.node_folder("fog-0"))) as here:
        yield here


def refused(here: Parent, child: Credentials | None, options: Any = None, credentials: Any = None) -> str:
    """What the child hears when the handshake fails; the parent has not even heard its name."""
    before = list(here.asked)
    if child is not None:
        credentials, options = channel_credentials(child), options or channel_options(child)
    with pytest.raises(grpc.RpcError) as failed:
        here.call(credentials, options)
    assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
    assert here.asked == before
    return str(failed.value.details())


class TestHandshake:
    """What TLS refuses, before a line of ours runs."""

    def test_the_right_certificate_passes(self, fog: Parent, authority: Authority) -> None:
        assert fog.join(of(authority, "ann")) == "device 'ann' joins"
        assert fog.join(of(authority, "ann"), claimed="ann") == "device 'ann' joins"

    def test_another_ca(self, fog: Parent, authority: Authority, other: Authority) -> None:
        thief = of(other, "ann")
        refused(fog, replace(thief, ca=of(authority, "ann").ca))  # it believes the parent, the parent does not
        assert "CERTIFICATE_VERIFY_FAILED" in refused(fog, thief)  # nor the other way round

    def test_expired(self, fog: Parent, authority: Authority, tmp_path: Path) -> None:
        assert fog.join(made_by(authority, tmp_path, days_ago=299)) == "device 'ann' joins"
        refused(fog, made_by(authority, tmp_path, days_ago=301))

    def test_not_valid_yet(self, fog: Parent, authority: Authority, tmp_path: Path) -> None:
        """The clock of a CA may be ahead by hours, not by days."""
        refused(fog, made_by(authority, tmp_path, days_ago=-2))
        ahead = made_by(authority, tmp_path, days_ago=0)
        assert fog.join(ahead) == "device 'ann' joins"

    def test_no_certificate(self, fog: Parent, authority: Authority) -> None:
        child = of(authority, "ann")
        refused(fog, None, channel_options(child), grpc.ssl_channel_credentials(child.ca))

    def test_no_tls(self, fog: Parent) -> None:
        refused(fog, None)

    def test_signed_by_itself(self, fog: Parent, authority: Authority) -> None:
        """Everything as in the genuine certificate, but for who has signed it."""
        key, genuine = certificates.new_key(), of(authority, "ann")
        forged = certificates.certificate_for(
            key.public_key(), authority.certificate, key, tier="device", name="ann", parent="fog-0", days=9, now=NOW
        )
        refused(fog, replace(genuine, private=certificates.key_pem(key), certificate=certificates.pem(forged)))

    def test_the_key_of_another_certificate(self, fog: Parent, authority: Authority) -> None:
        ann, bob = of(authority, "ann"), of(authority, "bob")
        with pytest.raises((grpc.RpcError, ValueError)):
            fog.join(replace(ann, private=bob.private))
        assert fog.join(ann) == "device 'ann' joins"

    def test_a_device_is_no_server(self, authority: Authority, tmp_path: Path) -> None:
        """With the stolen key of a device nobody can pose as a fog, even to a child that looks at the name."""
        with parent(of(authority, "ann")) as posing:
            assert "unsupported certificate purpose" in refused(posing, of(authority, "bob"))

    def test_another_fog_is_not_the_parent(self, authority: Authority) -> None:
        with parent(of(authority, "fog-1")) as posing:
            assert "Hostname Verification" in refused(posing, of(authority, "ann"))
            assert posing.join(of(authority, "rover")) == "device 'rover' joins"

    def test_a_fog_is_not_the_cloud(self, authority: Authority) -> None:
        with parent(of(authority, "fog-1")) as posing:
            assert "Hostname Verification" in refused(posing, of(authority, "fog-0"))
        with parent(of(authority, "cloud")) as cloud:
            assert cloud.join(of(authority, "fog-0")) == "fog 'fog-0' joins"
            roams = of(authority, "rover")
            assert "Hostname Verification" in refused(cloud, roams)
            assert cloud.join(roams, channel_options(roams, "cloud")) == "device 'rover' joins"


class TestGate:
    """What a genuine certificate is not good for; reasons as they are logged."""

    def test_wrong_parent(self, authority: Authority) -> None:
        bob = of(authority, "bob")
        with parent(of(authority, "fog-0")) as fog:
            said = fog.join(bob, channel_options(of(authority, "ann")))
        assert said == "wrong parent: device 'bob' was issued for 'fog-1', this is 'fog-0'"

    def test_posing_as_another_device(self, authority: Authority) -> None:
        with parent(of(authority, "fog-0")) as fog:
            said = fog.join(of(authority, "ann"), claimed="bob")
        assert said == "wrong name: it says that it is 'bob', its certificate is that of device 'ann'"

    def test_posing_as_a_fog(self, authority: Authority) -> None:
        with parent(of(authority, "cloud"), tiers=("fog",)) as cloud:
            said = cloud.join(of(authority, "ann"), channel_options(of(authority, "fog-0")))
        assert said == "wrong tier: device 'ann' cannot join cloud 'cloud', which takes fog nodes"

    def test_unknown(self, authority: Authority) -> None:
        with parent(of(authority, "fog-0"), children=["anna", "carl"]) as fog:
            assert fog.join(of(authority, "ann")) == ("unknown: fog 'fog-0' has no child 'ann'; did you mean 'anna'?")

    def test_revoked_while_the_parent_runs(self, own: Authority, tmp_path: Path) -> None:
        thief = copied(of(own, "ann"), tmp_path / "thief")
        with parent(of(own, "fog-0")) as fog:
            assert fog.join(thief) == "device 'ann' joins"
            revoke(own, ["ann"])
            assert fog.join(thief).startswith("revoked: the certificate ")
            issue(own, [Node(name="ann", tier="device", parent="fog-0")])
            assert fog.join(of(own, "ann")) == "device 'ann' joins"
            assert fog.join(thief).startswith("revoked: ")
            assert fog.join(of(own, "rover")) == "device 'rover' joins"

    @pytest.mark.parametrize("damage", ["forged", "torn", "old", "gone"])
    def test_a_bad_list_changes_nothing(
        self, damage: str, own: Authority, other: Authority, caplog: pytest.LogCaptureFixture
    ) -> None:
        ann, fog = of(own, "ann"), of(own, "fog-0")
        path = fog.folder / CRL
        old = path.read_bytes()
        revoke(own, ["ann"])
        gate = Gate(fog)
        content = {
            "forged": (other.folder / CRL).read_bytes(),
            "torn": path.read_bytes()[:-90],
            "old": old,
            "gone": b"",
        }[damage]
        path.write_bytes(content) if content else path.unlink()
        with caplog.at_level(logging.WARNING):
            assert gate.admit(ann.identity).startswith("revoked: ")
        word = {"forged": "not signed by", "torn": "can be read", "old": "older than", "gone": "there is no"}[damage]
        assert word in caplog.text
        revoke(own, ["rover"])
        (fog.folder / CRL).write_bytes((own.folder / CRL).read_bytes())
        assert gate.admit(of(own, "rover").identity).startswith("revoked: ")

    @pytest.mark.parametrize(("content", "message"), [("forged", "is not signed by the CA"), ("", "can be read")])
    def test_no_parent_begins_with_a_bad_list(
        self, content: str, message: str, authority: Authority, other: Authority, tmp_path: Path
    ) -> None:
        fog = copied(of(authority, "fog-0"), tmp_path / "fog")
        (fog.folder / CRL).write_bytes((other.folder / CRL).read_bytes() if content else b"")
        with pytest.raises(InputError, match=message):
            Gate(fog)

    def test_a_signed_list_of_another_key_with_the_same_name(self, authority: Authority, tmp_path: Path) -> None:
        forged = certificates.revocation_list(authority.certificate, certificates.new_key(), [], 99, NOW)
        (tmp_path / CRL).write_bytes(certificates.pem(forged))
        with pytest.raises(InputError, match="not signed by the CA"):
            read_revocations(tmp_path / CRL, certificates.pem(authority.certificate))

    def test_an_open_connection_ends_with_its_certificate(self, authority: Authority) -> None:
        """An hour later: the clock of the parent may be ahead."""
        ann, end = of(authority, "ann").identity, of(authority, "ann").identity.not_after
        fog = of(authority, "fog-0")
        assert Gate(fog, clock=lambda: end + timedelta(minutes=59)).admit(ann) == ""
        assert Gate(fog, clock=lambda: end + timedelta(minutes=61)).admit(ann).startswith("expired: ")

    def test_nobody_joins_a_device_and_the_cloud_joins_nobody(self, authority: Authority) -> None:
        ann, cloud = of(authority, "ann").identity, of(authority, "cloud").identity
        assert "wrong parent" in admit(of(authority, "fog-0").identity, ann)
        assert "wrong tier" in admit(replace(cloud, parent="fog-0"), of(authority, "fog-0").identity)
        assert "wrong tier" in admit(replace(cloud, parent="fog-0"), of(authority, "fog-0").identity, tiers=("cloud",))

    def test_a_connection_without_certificate_has_no_identity(self) -> None:
        with pytest.raises(InputError, match="no certificate"):
            peer_identity({"transport_security_type": [b"ssl"]})


def served(port: int, child: Credentials, revoked: Path | None = None) -> int:
    """The serial that a listening node shows, looked at by OpenSSL in its strict mode."""
    context = ssl.create_default_context(cadata=child.ca.decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if revoked is not None:
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        context.load_verify_locations(cafile=revoked)
    context.load_cert_chain(child.folder / NODE)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="fog-0.fog.tierfed") as tls,
    ):
        return int(str((tls.getpeercert() or {})["serialNumber"]), 16)


def test_a_renewed_certificate_is_shown_without_a_restart(own: Authority, caplog: pytest.LogCaptureFixture) -> None:
    ann, fog = of(own, "ann"), of(own, "fog-0")
    with parent(fog) as here:
        assert served(here.port, ann, own.folder / CRL) == fog.identity.serial
        issue(own, [Node(name="fog-0", tier="fog", parent="cloud")], days=400)
        renewed = of(own, "fog-0").identity
        assert renewed.serial != fog.identity.serial
        assert served(here.port, ann) == renewed.serial
        (fog.folder / NODE).write_bytes(b"half of a fi")
        with caplog.at_level(logging.WARNING):
            assert served(here.port, ann) == renewed.serial  # what was good stays in use
        assert "the new certificate is not used" in caplog.text
        revoke(own, ["fog-0"])
        with pytest.raises(ssl.SSLCertVerificationError, match="certificate revoked"):
            served(here.port, ann, own.folder / CRL)


def test_identity_is_a_value() -> None:
    one = Identity(name="a", tier="device", parent="fog-0", serial=1, not_after=NOW)
    assert one == replace(one)
    assert hash(one) == hash(replace(one))
