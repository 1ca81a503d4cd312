"""Check whether the files in a directory belong to this export: made with the same arguments, from the same account.

The account is identified by a salted PBKDF2 hash of the API key; the key is never stored.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping

from attrs import frozen

from agentphone._secret import Secret

VERSION = "3"
"""The version of what one export stores for a later one. It changes with the columns, too."""

ROUNDS = 100_000
"""PBKDF2 iterations: about 40 ms once or twice per export, and as much for each guess at a key."""


@frozen
class Fingerprint:
    """The identity of an export."""

    arguments: Mapping[str, str]
    """The arguments that must be the same, by name; empty for those not given."""
    api_key: Secret

    def to_stored(self) -> dict[str, str]:
        """Return what is stored, to compare with later."""
        return {"version": VERSION, **self.arguments, "key": key_hash(self.api_key, secrets.token_hex(16))}

    def difference(self, stored: Mapping[str, str]) -> str | None:
        """Return how a stored fingerprint differs from this one, in words; None if it does not."""
        if stored.get("version") != VERSION:
            return "another version of agentphone"
        for name, value in self.arguments.items():
            if stored.get(name) != value:
                return f"{name} {stored.get(name) or None!r}, not {value or None!r}"
        stored_hash = stored.get("key", "")
        own_hash = key_hash(self.api_key, stored_hash.partition(":")[0])
        return None if hmac.compare_digest(stored_hash.encode(), own_hash.encode()) else "another API key"


def key_hash(key: Secret, salt: str) -> str:
    """Return the salted hash of an API key, with its salt."""
    return f"{salt}:{hashlib.pbkdf2_hmac('sha256', (key.value or '').encode(), salt.encode(), ROUNDS).hex()}"
