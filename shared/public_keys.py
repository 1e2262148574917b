"""Public keys that tokens are verified with: which are good enough, and those of a PEM file.

Each key is used with algorithms of its own kind only, whatever a token or a key set says, and
never as a secret (CVE-2022-29217, CVE-2026-48523).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from shared.errors import StartupError
from shared.tokens import TokenKey, TokenRules, check_algorithms

__all__ = [
    "DEFAULT_ALGORITHMS",
    "PublicKeyFile",
    "UnusableKey",
    "check_public_algorithms",
    "public_key",
]

_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_EC: Final = ("ES256",)
_EDWARDS: Final = ("EdDSA",)
DEFAULT_ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")

_RSA_BITS: Final = range(2048, 8193)  # below it is weak, above it a token costs milliseconds
_MAX_FILE: Final = 256 * 1024  # bytes
_MAX_KEYS: Final = 16  # a token may be tried with each
_BLOCK: Final = re.compile(r"-----BEGIN ([A-Z ]+)-----\n.*?\n-----END \1-----", re.DOTALL)

_Key: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey


class UnusableKey(Exception):
    """The key is of another kind, weak, or for none of the algorithms; the text says which."""


def check_public_algorithms(algorithms: Sequence[str]) -> None:
    """Refuse what cannot be used with a public key. Raises: StartupError: there is some."""
    check_algorithms(algorithms, (*_RSA, *_EC, *_EDWARDS), "public keys")


def public_key(key: object, algorithms: Iterable[str], rules: TokenRules) -> TokenKey:
    """Return a verifier with a key of the cryptography package.

    Args:
        key: Whatever was loaded.
        algorithms: Those that are wanted; the key is used with those of its kind.
        rules: For the claims.

    Raises:
        UnusableKey: It is not fit.

    """
    loaded, kind = _kind_of(key)
    usable = [one for one in algorithms if one in kind]
    if not usable:
        raise UnusableKey(f"a key for {kind[0]}, which is not among the algorithms")
    pem = loaded.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return TokenKey(pem.decode(), usable, rules)


def _kind_of(key: object) -> tuple[_Key, tuple[str, ...]]:
    if isinstance(key, RSAPublicKey):
        if key.key_size not in _RSA_BITS:
            raise UnusableKey(f"an RSA key of {key.key_size} bits, not 2048 to 8192")
        return key, _RSA
    if isinstance(key, EllipticCurvePublicKey):
        if not isinstance(key.curve, SECP256R1):
            raise UnusableKey(f"a key on the curve {key.curve.name}, not P-256")
        return key, _EC
    if isinstance(key, Ed25519PublicKey):
        return key, _EDWARDS
    raise UnusableKey("a key that is not RSA, EC on P-256 or Ed25519")


class PublicKeyFile:
    """The keys of a PEM file, read once.

    Tokens are tried with each key that fits their algorithm: PEM has no names for keys, so
    ``kid`` says nothing here.

    Args:
        path: One to 16 public keys.
        algorithms: The only ones that a token may name.
        rules: For the claims.

    Raises:
        StartupError: The file or the algorithms cannot be used; names the variable.

    """

    def __init__(self, path: Path, algorithms: Sequence[str], rules: TokenRules) -> None:
        check_public_algorithms(algorithms)
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_FILE + 1).decode("ascii")
            self._keys: Final = [
                public_key(one, algorithms, rules) for one in _loaded(text.replace("\r", ""))
            ]
        except (OSError, UnicodeDecodeError, UnusableKey) as error:
            reason = getattr(error, "strerror", None) or error
            raise StartupError(f"AUTH_JWT_PUBLIC_KEY_FILE={path}: {reason}") from None
        self.algorithms: Final = frozenset(algorithms)

    async def keys(self, algorithm: str, kid: str | None) -> Sequence[TokenKey]:
        """Return those for the algorithm."""
        return [key for key in self._keys if algorithm in key.algorithms]


def _loaded(text: str) -> list[object]:
    """Return all keys of a PEM file. Raises: UnusableKey: some text is no public key."""
    if len(text) > _MAX_FILE:
        raise UnusableKey("the file is too large")
    blocks = list(_BLOCK.finditer(text))
    if not 0 < len(blocks) <= _MAX_KEYS:
        raise UnusableKey(f"expected 1 to {_MAX_KEYS} public keys in PEM, found {len(blocks)}")
    if "-----" in _BLOCK.sub("", text):
        raise UnusableKey("it has a block of PEM that does not end")
    return [_public(block) for block in blocks]


def _public(block: re.Match[str]) -> object:
    if block[1] not in {"PUBLIC KEY", "RSA PUBLIC KEY"}:
        raise UnusableKey(f"it has a {block[1].lower()}: only public keys belong here")
    try:
        return load_pem_public_key(block[0].encode())
    except (ValueError, UnsupportedAlgorithm):
        raise UnusableKey("it has a key that cannot be read") from None
