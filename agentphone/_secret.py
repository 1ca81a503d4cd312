"""Secrets: hide them in reprs, tracebacks and pickles, and redact them in every text that an error shows."""

from __future__ import annotations

import json
from typing import NoReturn
from urllib.parse import quote

from attrs import frozen


@frozen(repr=False)
class Secret:
    """A string whose repr hides its value: tracebacks print the locals of each frame, the settings among them."""

    value: str | None

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A secret is not pickled. Read it from the settings where it is needed.")

    def redact(self, text: str, *, is_truncated: bool = False) -> str:
        """Replace the value in a text by stars, also in its JSON, URL and repr forms.

        Args:
            text: A text from the server, for an error or a log. A value below 12 characters is not replaced: `any-key`
                in a test is a word like any other.
            is_truncated: Whether the text may end inside the value; then the incomplete value is replaced, too.
        """
        value = self.value or ""
        if len(value) < MIN_REDACTED_LENGTH:
            return text
        in_json, in_repr = json.dumps(value)[1:-1], repr(value)[1:-1]
        for form in dict.fromkeys((value, in_json, in_json.replace("/", "\\/"), quote(value, safe=""), in_repr)):
            text = text.replace(form, "***")
            if is_truncated:
                prefixes = (form[:length] for length in range(len(form) - 1, 3, -1))
                if prefix := next(filter(text.endswith, prefixes), ""):
                    text = text.removesuffix(prefix) + "***"
        return text


MIN_REDACTED_LENGTH = 12
