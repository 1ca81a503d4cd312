"""Errors that say what to write instead of `pager.total`, `pager[0]`, `len(pager)`, or of `for` instead of `async for`.

Nothing else sees the methods that only raise them. Type checkers go on rejecting such code, and so does `isinstance`
with the classes of `collections.abc`: polars measures whatever is `Sized` instead of iterating over it, and web
frameworks await whatever is `Awaitable`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:

    class AsyncPagerHints:
        """The base of `AsyncPager`."""

    class PagerHints:
        """The base of `Pager`."""

    class AsyncClientHints:
        """The base of `AsyncClient`."""

    class ClientHints:
        """The base of `Client`."""

else:

    class _HidesHints(type):
        """Leaves the classes of this module out of `__mro__`, where `collections.abc` and `help` look for methods."""

        @property
        def __mro__(cls):
            return tuple(base for base in type.mro(cls) if base.__module__ != __name__)

        def __dir__(cls):
            return sorted({name for base in cls.__mro__ for name in vars(base)})

    class _Hints(metaclass=_HidesHints):
        pass

    class _AnyPagerHints(_Hints):
        _loop, _page = "for item in pager", "pager.page()"

        def __repr__(self):
            return f"<{type(self).__name__}: `{self._loop}`, or `page = {self._page}` for its first page>"

        def __bool__(self):
            return True  # Python would ask __len__

        def __getattr__(self, name):
            text = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in ("data", "has_more", "total", "to_dict"):
                text += f". Its first page has: `page = {self._page}`, then `page.{name}`"
            raise AttributeError(text, name=name, obj=self)

        def __len__(self):
            raise TypeError(
                f"{type(self).__name__} has no len(), because nothing has been read yet. Read its first page:"
                f" `page = {self._page}`, then `len(page)`, or `page.total` for the whole list of conversations."
            )

        def __getitem__(self, index):
            raise TypeError(
                f"{type(self).__name__} cannot be indexed, because nothing has been read yet. Read its first page:"
                f" `page = {self._page}`, then `page[{index!r}]`; or iterate: `{self._loop}`."
            )

    class AsyncPagerHints(_AnyPagerHints):
        _loop, _page = "async for item in pager", "await pager"

        def __iter__(self):
            raise TypeError(
                f"{type(self).__name__} is not iterable by `for`. Write `{self._loop}`, `[item {self._loop}]` for a"
                f" list, or `page = {self._page}` for its first page, which is iterable."
            )

    class PagerHints(_AnyPagerHints):
        def __aiter__(self):
            raise TypeError(
                f"{type(self).__name__} is not iterable by `async for`, because its Client is blocking. Write"
                f" `{self._loop}`, or create an AsyncClient."
            )

        def __await__(self):
            raise TypeError(
                f"{type(self).__name__} cannot be awaited, because its Client is blocking. Write `page = {self._page}`"
                " for its first page, or create an AsyncClient."
            )

    class AsyncClientHints(_Hints):
        def __enter__(self):
            raise TypeError("AsyncClient needs `async with`. For a plain `with`, create a Client.")

        __exit__ = __enter__

    class ClientHints(_Hints):
        def __aenter__(self):
            raise TypeError("Client is blocking and needs a plain `with`. For `async with`, create an AsyncClient.")

        __aexit__ = __aenter__
