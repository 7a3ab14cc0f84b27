"""Why TLS has refused a connection, in words: gRPC tells a node's own code nothing of a handshake that failed. It
writes a line to the standard error of the parent, and gives an error to the child.
"""

_REASONS = (
    ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "no certificate: it has shown none"),
    ("certificate has expired", "expired: its certificate has ended"),
    ("certificate is not yet valid", "not valid yet: its certificate begins later; look at the clocks of both"),
    ("unsupported certificate purpose", "wrong use: its certificate is that of a device, which cannot be a parent"),
    ("CERTIFICATE_VERIFY_FAILED", "wrong CA: its certificate is not signed by the CA of this node"),
    ("Hostname Verification Check failed", "wrong parent: its certificate is that of another node"),
    ("WRONG_VERSION_NUMBER", "no TLS: it speaks without"),
    ("HTTP_REQUEST", "no TLS: it speaks without"),
)
_FAILED, _ERROR = "Handshake failed with error ", "OPENSSL_internal:"
_BEFORE_TLS = "Socket closed"
_DOUBTED = (
    "it has ended the connection before TLS was agreed upon: it may not believe the certificate of this node (another "
    "CA, expired, not valid yet), or is no node; its log says why"
)


def refused(line: str) -> str:
    """Why this node has refused somebody, from a line of gRPC; empty: the line says something else."""
    _, found, rest = line.partition(_FAILED)
    return (_reason(rest) or f"TLS: {rest.rpartition(_ERROR)[2]}") if found else ""


def failed(details: str) -> str:
    """Why a dial with TLS has failed, from the details of gRPC's error; these where nothing more is known."""
    return _reason(details) or (_DOUBTED if _BEFORE_TLS in details else details)


def _reason(text: str) -> str:
    return next((why for sign, why in _REASONS if sign in text), "")
