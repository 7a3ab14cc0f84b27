"""What a CA issues and what it refuses to, and what a node looks at before it begins."""

import logging
import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deploy.pki import NOW, TREE, copied, made_by, of
from tierfed.deploy import certificates
from tierfed.deploy.admission import read_revocations
from tierfed.deploy.authority import KEY, Authority, create, issue, open_authority, records, revoke
from tierfed.deploy.identity import (
    CRL,
    NODE,
    Credentials,
    channel_credentials,
    load_credentials,
    peer_identity,
)
from tierfed.deploy.names import Node
from tierfed.errors import InputError


class TestAuthority:
    def test_a_folder_that_is_in_use(self, authority: Authority) -> None:
        with pytest.raises(InputError, match="exists and is not empty"):
            create(authority.folder)

    def test_no_ca(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="`tierfed keys init` makes one"):
            open_authority(tmp_path)

    def test_an_expired_ca(self, tmp_path: Path) -> None:
        create(tmp_path / "old", years=1, now=NOW - timedelta(days=366))
        with pytest.raises(InputError, match=r"has expired at .* make a new one"):
            open_authority(tmp_path / "old")

    @pytest.mark.skipif(os.name != "posix", reason="modes of files")
    def test_keys_are_private(self, own: Authority) -> None:
        private = [own.folder / KEY, own.folder / "ledger.sqlite", *own.folder.glob(f"nodes/*/{NODE}")]
        assert len(private) == 2 + len(TREE)
        assert {p.stat().st_mode & 0o777 for p in private} == {0o600}
        (own.folder / KEY).chmod(0o640)
        with pytest.raises(InputError, match=r"others than its owner can read .*chmod 600"):
            open_authority(own.folder)
        at = own.node_folder("ann")
        (at / NODE).chmod(0o604)
        with pytest.raises(InputError, match=r"others than its owner can read .*chmod 600"):
            load_credentials(at)

    @pytest.mark.parametrize("name", [KEY, "ca.pem", "ledger.sqlite"])
    def test_damaged_files(self, own: Authority, name: str) -> None:
        path = own.folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match=f"{name}.*restore"):
            issue(open_authority(own.folder), TREE)

    def test_the_key_of_another_ca(self, own: Authority, other: Authority) -> None:
        shutil.copy(other.folder / KEY, own.folder / KEY)
        with pytest.raises(InputError, match="is not the key of"):
            open_authority(own.folder)

    @pytest.mark.parametrize(
        "node",
        [Node(name="ann", tier="device", parent="fog-1"), Node(name="ann", tier="fog", parent="cloud")],
    )
    def test_a_name_is_one_place_in_the_tree(self, own: Authority, node: Node) -> None:
        """All or nothing: of several nodes none is issued when one cannot be."""
        before = records(own)
        with pytest.raises(InputError, match="the name 'ann' is taken: a device of 'fog-0'"):
            issue(own, [Node(name="dan", tier="device", parent="fog-0"), node])
        assert records(own) == before
        revoke(own, ["ann"])
        issue(own, [node])

    @pytest.mark.parametrize(
        "node",
        [
            Node(name="cloud", tier="fog", parent="cloud"),
            Node(name="sky", tier="cloud"),
            Node(name="cloud", tier="cloud", parent="fog-0"),
            Node(name="Fog_0", tier="fog", parent="cloud"),
            Node(name="fog-0", tier="fog", parent="fog-0"),
            Node(name="eve", tier="device"),
            Node(name="eve", tier="device", parent="../fog"),
            Node(name="*", tier="device", parent="fog-0"),
            Node(name="e\nve", tier="device", parent="fog-0"),
            Node(name="e" * 151, tier="device", parent="fog-0"),
            Node(name="eve", tier="edge", parent="fog-0"),
        ],
    )
    def test_what_no_node_can_be(self, authority: Authority, node: Node) -> None:
        with pytest.raises(InputError):
            issue(authority, [node])

    def test_unknown_name(self, authority: Authority) -> None:
        with pytest.raises(InputError, match=r"no node 'fog0' was issued .* did you mean 'fog-0'"):
            revoke(authority, ["ann", "fog0"])
        assert {r.status(NOW) for r in records(authority)} == {"valid"}

    def test_every_certificate_is_kept(self, own: Authority) -> None:
        """An earlier one is good until it ends, or until its name is revoked."""
        issue(own, [Node(name="ann", tier="device", parent="fog-0")])
        anns = [r for r in records(own) if r.name == "ann"]
        assert [r.status(NOW) for r in anns] == ["valid", "valid"]
        assert len({r.serial for r in anns}) == 2
        assert {r.serial for r in revoke(own, ["ann"])} == {r.serial for r in anns}
        listed = read_revocations(own.folder / CRL, certificates.pem(own.certificate))
        assert listed.serials == {r.serial for r in anns}
        assert revoke(own, ["ann"]) == []
        assert read_revocations(own.node_folder("fog-1") / CRL, certificates.pem(own.certificate)).number == 3

    def test_no_certificate_is_missing_in_the_ledger(self, own: Authority) -> None:
        """When the disk refuses: one that the ledger does not have could not be revoked."""
        (own.node_folder("dan") / NODE).mkdir(parents=True)
        with pytest.raises(InputError, match="cannot write"):
            issue(own, [Node(name="dan", tier="device", parent="fog-0")])
        assert [r.name for r in revoke(own, ["dan"])] == ["dan"]

    def test_nothing_outlives_the_ca(self, tmp_path: Path) -> None:
        short = create(tmp_path / "short", years=1)
        issue(short, TREE[:1], days=3650)
        assert of(short, "cloud").identity.not_after == short.certificate.not_valid_after_utc

    def test_hosts(self, own: Authority) -> None:
        issue(own, TREE[1:2], hosts=["fog.example.org", "10.0.0.7", "::1"])
        made = certificates.read_certificate(of(own, "fog-0").certificate, "").public_bytes
        assert b"fog.example.org" in made(certificates.serialization.Encoding.DER)
        for bad in ("http://fog", "a b", "fög.org", "", "*.org", "fog-1.fog.tierfed"):
            with pytest.raises(InputError, match="wanted a host name or an IP address"):
                issue(own, TREE[1:2], hosts=[bad])


class TestLoad:
    @pytest.fixture
    def ann(self, authority: Authority, tmp_path: Path) -> Credentials:
        return copied(of(authority, "ann"), tmp_path / "ann")

    def test_what_is_loaded(self, ann: Credentials) -> None:
        who = ann.identity
        assert (who.name, who.tier, who.parent, str(who)) == ("ann", "device", "fog-0", "device 'ann'")
        assert timedelta(days=364) < who.not_after - datetime.now(UTC) <= timedelta(days=365)
        assert b"PRIVATE" in ann.private
        assert "PRIVATE" not in repr(ann)
        assert channel_credentials(ann) is not None

    @pytest.mark.parametrize("name", [NODE, "ca.pem"])
    def test_missing(self, ann: Credentials, name: str) -> None:
        (ann.folder / name).unlink()
        with pytest.raises(InputError, match=f"there is no .*{name}.* copy the node's folder"):
            load_credentials(ann.folder)

    @pytest.mark.parametrize(("name", "what"), [(NODE, "no private key"), ("ca.pem", "no certificate")])
    def test_no_pem(self, ann: Credentials, name: str, what: str) -> None:
        (ann.folder / name).write_bytes(b"-----BEGIN NONSENSE-----")
        with pytest.raises(InputError, match=f"{what}.* can be read"):
            load_credentials(ann.folder)

    def test_mixed_up(self, ann: Credentials, authority: Authority, other: Authority) -> None:
        bob = of(authority, "bob")
        (ann.folder / NODE).write_bytes(bob.private + ann.certificate)
        with pytest.raises(InputError, match="is not that of the certificate beside it"):
            load_credentials(ann.folder)
        (ann.folder / NODE).write_bytes(bob.private + bob.certificate)
        (ann.folder / "ca.pem").write_bytes(of(other, "ann").ca)
        with pytest.raises(InputError, match="is not signed by the CA"):
            load_credentials(ann.folder)

    def test_time(self, ann: Credentials) -> None:
        end = ann.identity.not_after
        assert ann.warning() == ""
        assert "ends in 9 days" in ann.warning(end - timedelta(days=9, hours=3))
        load_credentials(ann.folder, now=NOW - timedelta(hours=1))
        with pytest.raises(InputError, match=r"begins at .* set the clock"):
            load_credentials(ann.folder, now=NOW - timedelta(days=2))
        with pytest.raises(InputError, match=r"has expired at .* issue it anew"):
            load_credentials(ann.folder, now=end + timedelta(seconds=1))

    def test_a_node_warns_before_its_certificate_ends(
        self, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            channel_credentials(made_by(authority, tmp_path))
            assert caplog.text == ""
            soon = made_by(authority, tmp_path)
            soon = replace(soon, identity=replace(soon.identity, not_after=NOW + timedelta(days=29, hours=1)))
            channel_credentials(soon)
        assert "the certificate of device 'ann' ends in 29 days" in caplog.text

    def test_a_certificate_of_another_kind(self, authority: Authority) -> None:
        """That of the port where devices enroll names no node."""
        key = certificates.new_key()
        made = certificates.certificate_for(
            key.public_key(), authority.certificate, authority.key, tier="enroll", name="x", parent="", days=1, now=NOW
        )
        with pytest.raises(InputError, match="names 0 nodes, wanted one"):
            peer_identity({"x509_pem_cert": [certificates.pem(made)]})
