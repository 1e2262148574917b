"""Keys of issuers, what they publish of them, and tokens: as they should be, and forged."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

__all__ = ["KINDS", "Issuer", "forged", "part", "payload", "rsa_issuer"]

_Private: TypeAlias = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)


def payload(**changes: object) -> dict[str, Any]:
    """Return good claims, changed."""
    return {"sub": "u-1", "tenant": "acme", "exp": time.time() + 60} | changes


def part(value: bytes) -> str:
    """Return one segment of a token."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def forged(header: dict[str, Any], secret: bytes | None = None, **changes: object) -> str:
    """Return a token with any header, signed by HMAC-SHA-256, or with a made-up signature."""
    texts = [json.dumps(one).encode() for one in (header, payload(**changes))]
    signed = ".".join(part(text) for text in texts)
    mac = b"x" * 32 if secret is None else hmac.digest(secret, signed.encode(), hashlib.sha256)
    return f"{signed}.{part(mac)}"


class Issuer:
    """Somebody who signs tokens.

    Args:
        private: The key.
        algorithm: What it signs with.
        kid: What it calls the key.

    """

    def __init__(self, private: _Private, algorithm: str, kid: str = "k1") -> None:
        self.private: Final = private
        self.algorithm: Final = algorithm
        self.kid: Final = kid

    @property
    def pem(self) -> str:
        """The public key."""
        form = PublicFormat.SubjectPublicKeyInfo
        return self.private.public_key().public_bytes(Encoding.PEM, form).decode()

    @property
    def private_pem(self) -> str:
        """What must never be published."""
        form = PrivateFormat.PKCS8
        return self.private.private_bytes(Encoding.PEM, form, NoEncryption()).decode()

    def jwk(self, **changes: object) -> dict[str, Any]:
        """Return the public key as an entry of a key set; ``...`` removes a member."""
        algorithm = jwt.get_algorithm_by_name(self.algorithm)
        made = dict(algorithm.to_jwk(self.private.public_key(), as_dict=True))
        entry = {**made, "kid": self.kid, "use": "sig", "alg": self.algorithm, **changes}
        return {name: value for name, value in entry.items() if value is not ...}

    def token(self, headers: dict[str, Any] | None = None, **changes: object) -> str:
        """Return a token; without a ``kid`` unless ``headers`` has one."""
        claims = payload(**changes)
        return jwt.encode(claims, self.private, self.algorithm, headers=headers)

    def named_token(self, **changes: object) -> str:
        """Return a token that names the key."""
        return self.token({"kid": self.kid}, **changes)


@functools.cache
def rsa_issuer(bits: int = 2048, algorithm: str = "RS256", number: int = 1) -> Issuer:
    """Return an issuer with an RSA key; making one takes long, so each is made once."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    return Issuer(private, algorithm, f"rsa-{number}")


KINDS: Final[dict[str, Callable[[], Issuer]]] = {
    "RS256": rsa_issuer,
    "ES256": lambda: Issuer(ec.generate_private_key(ec.SECP256R1()), "ES256", "ec"),
    "EdDSA": lambda: Issuer(ed25519.Ed25519PrivateKey.generate(), "EdDSA", "ed"),
}
"""An issuer for each algorithm that is accepted unless something else is set."""
