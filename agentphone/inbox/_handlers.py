"""What users write: the handlers, checked when they are registered, and what they return. Nothing is sent here."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar, get_origin

from attrs import field, frozen

from agentphone import Message
from agentphone._state import check_class
from agentphone.webhooks import Event

T = TypeVar("T")


def _to_tuple(urls: Iterable[str]) -> tuple[str, ...]:
    if isinstance(urls, str):  # whose letters it would be
        raise TypeError("media_urls must be a list of strings, got str")
    return tuple(urls)


@frozen
class Reply:
    """A reply with more than a text. The fields are the arguments of `conversations.reply`."""

    body: str = ""
    """The text; may be empty if there is media."""
    media_urls: tuple[str, ...] = field(default=(), converter=_to_tuple)
    """URLs of media, 1 to 20, `https://`."""
    reply_to: Message | str | None = None
    """The message to answer, or its id, where the channel has threads."""
    send_style: str | None = None
    """An effect of iMessage: `"confetti"`, `"slam"`, ..."""

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.body, str):
            raise TypeError(f"body must be a string, got {type(self.body).__name__}")
        if not all(isinstance(url, str) for url in self.media_urls):
            raise TypeError("media_urls must be a list of strings")
        if not self.body and not self.media_urls:
            raise ValueError("body must not be empty without media_urls; return None to send no reply")
        if not isinstance(self.reply_to, Message | str | None):
            raise TypeError(f"reply_to must be a Message or its id, got {type(self.reply_to).__name__}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `json.dumps` accepts, for `from_dict`."""
        reply_to = self.reply_to.id if isinstance(self.reply_to, Message) else self.reply_to
        media_urls = list(self.media_urls)
        return {"body": self.body, "media_urls": media_urls, "reply_to": reply_to, "send_style": self.send_style}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Reply:
        """Return the reply that `to_dict` was called on."""
        return cls(**data)


@frozen
class Handler:
    """A function of the user's.

    Attributes:
        function: The function, `def` or `async def`.
        state_class: The class of its second argument; None if it takes the event alone.
    """

    function: Callable[..., Any]
    state_class: type[Any] | None = None

    async def __call__(self, event: Event, state: Any) -> Any:
        """Call the function; a blocking one runs in a thread of its own."""
        arguments = (event,) if self.state_class is None else (event, state)
        if _is_async(self.function):
            return await self.function(*arguments)
        answer = await run_in_thread(self.function, *arguments)
        # A lambda or a decorated function may return the awaitable of an async one.
        return await answer if inspect.isawaitable(answer) else answer


def create_handler(function: Any, *, with_state: bool, local_names: dict[str, Any]) -> Handler:
    """Check a function that is registered as a handler.

    Args:
        function: What was passed to the decorator.
        with_state: Whether it may have a second parameter, the state.
        local_names: The local variables where it was defined: annotations are text, and may name a local class.

    Raises:
        TypeError: It is not a function of one or two parameters, or its state is of a class that a state cannot be.
    """
    if not callable(function) or inspect.isclass(function):
        raise TypeError(f"the handler must be a function, got {function!r}")
    name = getattr(function, "__name__", repr(function))
    parameters = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    expected = "(text) or (text, state)" if with_state else "(event)"
    if not 1 <= len(parameters) <= 1 + with_state or any(each.kind is each.KEYWORD_ONLY for each in parameters):
        raise TypeError(f"{name} must be a function of {expected}, got {name}{inspect.signature(function)}")
    if _is_any(function, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        raise TypeError(f"{name} must return its reply, not yield it")
    if len(parameters) == 1:
        return Handler(function)
    annotation = parameters[1].annotation
    while isinstance(annotation, str):  # twice, if it is in quotes
        # This one alone: the others may name what is imported for type checkers only.
        try:
            annotation = eval(annotation, _globals_of(function), local_names)  # noqa: S307  # the user's own code
        except Exception as error:  # noqa: BLE001  # any expression may be there
            raise TypeError(f"{name}: the annotation of {parameters[1].name} is not known here ({error})") from None
    state_class = dict if annotation is inspect.Parameter.empty else get_origin(annotation) or annotation
    try:
        check_class(state_class)
    except TypeError as error:
        raise TypeError(f"{name}: {parameters[1].name}: {error}") from None
    return Handler(function, state_class)


def read_reply(answer: Any) -> Reply | None:
    """Return what a handler for messages returned as a reply.

    Raises:
        TypeError: It returned something else.
        ValueError: It returned an empty string.
    """
    if answer is None or isinstance(answer, Reply):
        return answer
    if isinstance(answer, str):
        if not answer:
            raise ValueError("the handler returned an empty string; return None to send no reply")
        return Reply(answer)
    raise TypeError(f"the handler must return None, a str or a Reply, got {type(answer).__name__}")


async def run_in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Call a blocking function in a daemon thread: the pools of asyncio would keep the process from exiting."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[T | None, BaseException | None]] = loop.create_future()
    context = contextvars.copy_context()

    def finish(outcome: tuple[T | None, BaseException | None]) -> None:
        if not done.done():
            done.set_result(outcome)

    def run() -> None:
        outcome: tuple[T | None, BaseException | None]
        try:
            outcome = context.run(function, *arguments), None
        except BaseException as error:  # noqa: BLE001  # raised where it is awaited
            outcome = None, error
        try:
            loop.call_soon_threadsafe(finish, outcome)
        except (
            RuntimeError
        ):  # the loop was closed meanwhile: the worker has stopped, and the text will be handled again
            return

    threading.Thread(target=run, name="agentphone inbox handler", daemon=True).start()
    result, error = await done
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # None only where the function returns it


def _is_async(function: Callable[..., Any]) -> bool:
    return _is_any(function, inspect.iscoroutinefunction)


def _is_any(function: Callable[..., Any], *kinds: Callable[[Any], bool]) -> bool:
    """Return whether a function, or the method of a callable object, is of one of the kinds."""
    method = getattr(function, "__call__", None)  # noqa: B004  # the method is wanted
    return any(kind(function) or kind(method) for kind in kinds)


def _globals_of(function: Any) -> dict[str, Any]:
    """Return the global names of the module that defines a function, a callable object, or a partial of one."""
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function)
    if not hasattr(function, "__globals__"):
        function = type(function).__call__
    names: dict[str, Any] = getattr(function, "__globals__", {})
    return names
