"""Secrets: values that no repr, traceback or pickle shows."""

from __future__ import annotations

import json
from typing import NoReturn
from urllib.parse import quote

from attrs import frozen


@frozen(repr=False)
class Secret:
    """A value that no text of ours tells: tracebacks print the locals of each frame, the settings among them."""

    value: str | None

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A secret is not pickled. Read it from the settings where it is needed.")

    def redact(self, text: str, *, is_cut: bool = False) -> str:
        """Replace the value by stars in a text that an error or a log shows, also as JSON, a URL or a repr writes it.

        Args:
            text: What a server said. A short value stays in it: `any-key` in a test is a word as any other.
            is_cut: Whether the text may end in the middle of the value; then its beginning at the end goes, too.
        """
        value = self.value or ""
        if len(value) < SHORTEST_SECRET:
            return text
        in_json, in_repr = json.dumps(value)[1:-1], repr(value)[1:-1]
        for form in dict.fromkeys((value, in_json, in_json.replace("/", "\\/"), quote(value, safe=""), in_repr)):
            text = text.replace(form, "***")
            if is_cut:
                beginnings = (form[:length] for length in range(len(form) - 1, 3, -1))
                if beginning := next(filter(text.endswith, beginnings), ""):
                    text = text.removesuffix(beginning) + "***"
        return text


SHORTEST_SECRET = 12
