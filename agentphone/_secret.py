"""Secrets: hide them in reprs, tracebacks and pickles, and redact them in every text that an error shows."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any, NoReturn

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
        if len(self.value or "") < MIN_REDACTED_LENGTH:
            return text
        return (self._truncated_pattern if is_truncated else self._pattern).sub("***", text)

    def redact_json(self, value: Any) -> Any:
        """Return a copy of parsed JSON with the value redacted in all texts, numbers and names of fields."""
        if isinstance(value, dict):
            return {self.redact(name): self.redact_json(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self.redact_json(item) for item in value]
        text = str(value)
        redacted = self.redact(text)
        return value if redacted == text else redacted

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("".join(_encoded_forms(self.value or "")))

    @cached_property
    def _truncated_pattern(self) -> re.Pattern[str]:
        """The pattern of the value, or of its first characters at the end of the text."""
        forms = _encoded_forms(self.value or "")
        rest = (rf"(?:{form}|{_CUT}\Z)" for form in forms[MIN_TRUNCATED_LENGTH:])
        return re.compile("".join((*forms[:MIN_TRUNCATED_LENGTH], *rest)))


MIN_REDACTED_LENGTH = 12
MIN_TRUNCATED_LENGTH = 4
"""How many characters of the value are redacted at the end of a truncated text; fewer may be any word."""

_BACKSLASH = r"(?:\\|%5[Cc]|\\u005[Cc])"
_CUT = rf"{_BACKSLASH}*(?:%[0-9A-Fa-f]?|\\u[0-9A-Fa-f]{{0,3}})?"
"""What is left of an encoded character at the end of a truncated text."""


def _encoded_forms(value: str) -> list[str]:
    r"""Return patterns for the characters of an ASCII text: each may be as it is, `%XX`, `\uXXXX` or escaped by `\`."""
    forms: list[str] = []
    # A run of backslashes has one pattern, which is bounded: otherwise a text of backslashes takes quadratic time.
    for run in re.findall(r"\\+|[^\\]", value):
        if run[0] == "\\":
            forms.append(f"{_BACKSLASH}{{{len(run)},{4 * len(run) + 1}}}")
            continue
        # The case of the digits is listed and not ignored: the character itself is matched in its own case only.
        code = "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in f"{ord(run):02x}")
        forms.append((f"{_BACKSLASH}*" if forms else "") + rf"(?:{re.escape(run)}|%{code}|\\u00{code})")
    return forms
