"""X.509 as tierfed uses it (RFC 5280): ECDSA keys on P-256, which the TLS of gRPC accepts (it does not accept Ed25519).

A certificate names its node in a URI among the subject's alternative names, see `tierfed.deploy.names.uri`. That of a
device is good for a client only, that of the cloud for a server only, that of a fog for both.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tierfed.deploy.names import server_name, uri
from tierfed.errors import InputError

Key = ec.EllipticCurvePrivateKey
MALFORMED = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for bytes that are not what they should be."""
BACKDATED = timedelta(days=1)
"""So long before its issue a certificate is valid: clocks of devices may be behind."""
_USES = {
    "cloud": [ExtendedKeyUsageOID.SERVER_AUTH],
    "fog": [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
    "device": [ExtendedKeyUsageOID.CLIENT_AUTH],
}
ENROLL = "enroll"


def utc_now() -> datetime:
    """The time of this machine's clock, in whole seconds as certificates have them."""
    return datetime.now(UTC).replace(microsecond=0)


def new_key() -> Key:
    """A key pair from the random numbers of the operating system."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    """PKCS#8, not encrypted: a node starts without anybody at a keyboard."""
    none = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, none)


def pem(value: x509.Certificate | x509.CertificateRevocationList | x509.CertificateSigningRequest) -> bytes:
    """The text form."""
    return value.public_bytes(serialization.Encoding.PEM)


def public_bytes(key: ec.EllipticCurvePublicKey | Key | x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    """The public key, to compare."""
    public = key if isinstance(key, ec.EllipticCurvePublicKey) else key.public_key()
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _named(text: str) -> x509.Name:
    whole = text.encode()  # RFC 5280 and OpenSSL: at most 64 bytes; the URI has them all
    short = text if len(whole) <= 64 else f"{whole[:61].decode(errors='ignore')}…"
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, short)])


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def new_authority(key: Key, years: int, now: datetime) -> x509.Certificate:
    """The certificate of a private CA, signed by itself; two CAs have different names."""
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = _named(f"tierfed CA {identifier.digest.hex()[:16]}")
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=365 * years))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    # names below .tierfed say who a node is, see `server_name`
    if not text or not text.isascii() or any(c.isspace() or c in "/:*" for c in text) or text.endswith(".tierfed"):
        raise InputError(f"--host {text!r}: wanted a host name or an IP address, without port: fog.example.org")
    return x509.DNSName(text)


def certificate_for(
    public: ec.EllipticCurvePublicKey,
    authority: x509.Certificate,
    key: Key,
    *,
    tier: str,
    name: str,
    parent: str,
    days: int,
    now: datetime,
    hosts: Sequence[str] = (),
) -> x509.Certificate:
    """The certificate of a node, signed by a CA; it does not outlive the CA.

    :param key: that of the CA
    :param tier: cloud, fog or device; `ENROLL` for the port where devices enroll, which is no node
    :param hosts: addresses where the node listens, for clients that look at them
    :raises InputError: a host is no address
    """
    names: list[x509.GeneralName] = []
    if tier != ENROLL:
        names.append(x509.UniformResourceIdentifier(uri(tier, name, parent)))
    uses = _USES.get(tier, [ExtendedKeyUsageOID.SERVER_AUTH])
    if ExtendedKeyUsageOID.SERVER_AUTH in uses:
        names += [x509.DNSName(server_name(tier))]
        names += [x509.DNSName(server_name(tier, name))] if tier != ENROLL else []
        names += [_host(h) for h in dict.fromkeys(("localhost", "127.0.0.1", *hosts))]
    return (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(authority.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - BACKDATED, authority.not_valid_before_utc))
        .not_valid_after(min(now + timedelta(days=days), authority.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def revocation_list(
    authority: x509.Certificate, key: Key, revoked: Iterable[tuple[int, datetime]], number: int, now: datetime
) -> x509.CertificateRevocationList:
    """A signed list of serials and the times of their revocation; a higher number is a newer list."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(now - BACKDATED)
        .next_update(authority.not_valid_after_utc)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    for serial, when in revoked:
        one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
        builder = builder.add_revoked_certificate(one)
    return builder.sign(key, hashes.SHA256())


def signing_request(key: Key, tier: str, name: str, parent: str) -> x509.CertificateSigningRequest:
    """What a node that has made its own key asks a CA to sign."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri(tier, name, parent))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(_named(name))
    return builder.add_extension(names, critical=False).sign(key, hashes.SHA256())


def signature(key: Key, content: bytes) -> bytes:
    """ECDSA with SHA-256."""
    return key.sign(content, ec.ECDSA(hashes.SHA256()))


def is_signature(signed: bytes, content: bytes, certificate: x509.Certificate) -> bool:
    """Whether whoever has the key of a certificate has signed a text."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        key.verify(signed, content, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def uris(value: x509.Certificate | x509.CertificateSigningRequest) -> list[str]:
    """The URIs among the alternative names."""
    try:
        names = value.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except MALFORMED:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether a CA has signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except MALFORMED:
        return False
    return True


def read_certificate(content: bytes, where: object) -> x509.Certificate:
    """The first certificate of a PEM text.

    :param where: the file, for messages
    :raises InputError: there is none
    """
    try:
        return x509.load_pem_x509_certificate(content)
    except MALFORMED:
        raise InputError(f"{where} holds no certificate that can be read; restore the file, or issue it anew") from None


def read_key(content: bytes, where: object) -> Key:
    """:raises InputError: the PEM text has no private key on P-256"""
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except MALFORMED:
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InputError(f"{where} holds no private key on P-256 that can be read; restore the file, or issue it anew")
    return key


def read_request(content: bytes) -> tuple[ec.EllipticCurvePublicKey, list[str]]:
    """The public key of a request for a certificate, and the URIs that it names.

    :param content: PEM
    :raises InputError: it cannot be read, has another kind of key than those that are used here, or whoever made it
        does not have the key
    """
    try:
        request = x509.load_pem_x509_csr(content)
        genuine, key, named = request.is_signature_valid, request.public_key(), uris(request)
    except MALFORMED:
        raise InputError("this is no request for a certificate; make it with `tierfed keys enroll`") from None
    if not genuine:
        raise InputError("the request is not signed with its own key; make it with `tierfed keys enroll`")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InputError("the request has another kind of key; wanted ECDSA on P-256: `tierfed keys enroll` makes one")
    return key, named
