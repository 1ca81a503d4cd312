"""Checks of arguments. Each raises before anything is sent, and its text begins with the argument's name."""

from __future__ import annotations

import math
from inspect import iscoroutinefunction
from typing import Any


def check_integer(
    name: str,
    value: Any,
    *,
    minimum: int,
    maximum: int | None = None,
    optional: bool = False,
    error: type[ValueError] = ValueError,
) -> None:
    """Check a whole number.

    Args:
        name: The argument's name.
        value: What the caller passed.
        minimum: The smallest value allowed.
        maximum: The largest value allowed; None for no limit.
        optional: Whether None is allowed.
        error: What to raise for a number out of range.

    Raises:
        ValueError: The number is out of range (or `error`).
        TypeError: It is not an integer.
    """
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer{' or None' if optional else ''}, got {value!r}")
    if value < minimum:
        raise error(f"{name} must be at least {minimum}, got {value}")
    if maximum is not None and value > maximum:
        raise error(f"{name} must be at most {maximum}, got {value}")


def check_seconds(
    name: str,
    value: Any,
    *,
    allow_zero: bool = False,
    maximum: float = math.inf,
    optional: bool = False,
    error: type[ValueError] = ValueError,
) -> None:
    """Check a number of seconds.

    Args:
        name: The argument's name.
        value: What the caller passed.
        allow_zero: Whether 0 is allowed.
        maximum: The largest value allowed; infinity is allowed by default.
        optional: Whether None is allowed.
        error: What to raise for a number out of range.

    Raises:
        ValueError: The number is out of range (or `error`).
        TypeError: It is not a number.
    """
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds{' or None' if optional else ''}, got {value!r}")
    if math.isnan(value) or value < 0 or (value == 0 and not allow_zero):
        raise error(f"{name} must be {'at least' if allow_zero else 'more than'} 0 seconds, got {value!r}")
    if value > maximum:
        raise error(f"{name} must be at most {maximum:g} seconds, got {value!r}")


def check_clock(value: Any) -> None:
    """Check the argument `clock`.

    Raises:
        TypeError: It cannot be called, or it is a coroutine function.
    """
    if not callable(value) or iscoroutinefunction(value):
        raise TypeError(f"clock must be a function (not async) that returns Unix seconds, got {value!r}")


def check_callback(name: str, value: Any) -> None:
    """Check a hook: None, or a function that is called and not awaited.

    Raises:
        TypeError: It cannot be called, or it is a coroutine function, which nothing would await.
    """
    if value is not None and (not callable(value) or iscoroutinefunction(value)):
        raise TypeError(f"{name} must be a function (not async) or None, got {value!r}")
