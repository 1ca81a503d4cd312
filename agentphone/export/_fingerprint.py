"""Whether what lies in a directory belongs to the export at hand: made with the same arguments, from the same account.

The account is told by the API key, which is written nowhere: a seal of it is, from which it cannot be found again.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping

from attrs import frozen

from agentphone._secret import Secret

VERSION = "1"
"""Of what an export leaves for a later one. It changes with the columns, too."""

ROUNDS = 100_000
"""Of the seal: some 40 ms, once or twice for an export; and as much for each guess at a key that is easy to guess."""


@frozen
class Fingerprint:
    """What an export is."""

    arguments: Mapping[str, str]
    """What has to be the same, by name; empty for what was not given."""
    key: Secret

    def of(self) -> dict[str, str]:
        """Give what can be written down, to be compared later."""
        return {"version": VERSION, **self.arguments, "key": key_hash(self.key, secrets.token_hex(16))}

    def difference(self, written: Mapping[str, str]) -> str | None:
        """Say how what was written down differs from this: with what it was made, and not with what."""
        for name, value in {"version": VERSION, **self.arguments}.items():
            if written.get(name) != value:
                return f"{name} {written.get(name) or None!r}, not {value or None!r}"
        seal = written.get("key", "")
        again = key_hash(self.key, seal.partition(":")[0])
        return None if hmac.compare_digest(seal.encode(), again.encode()) else "another API key"


def key_hash(key: Secret, salt: str) -> str:
    return f"{salt}:{hashlib.pbkdf2_hmac('sha256', (key.value or '').encode(), salt.encode(), ROUNDS).hex()}"
