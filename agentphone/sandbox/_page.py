"""The phone: a page of static files, served as they are in the package. It knows no data.

The page loads nothing from elsewhere, runs no script but its own, and cannot be framed: its headers say so to the
browser. The files are public. What they show is read through the API, with the key.
"""

import hashlib
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).with_name("phone")
INDEX = "index.html"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # the browser refuses to parse text as markup
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Cache-Control": "no-cache",  # with the ETag: a new version of the package is seen at once
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page_response(request: Request, path: str) -> Response | None:
    """Return the file at a path of the page, or None if there is none or the method does not read."""
    name = INDEX if path == "/" else path.removeprefix("/phone/")
    if request.method not in ("GET", "HEAD") or name not in _files():
        return None
    content, media_type, etag = _files()[name]
    headers = HEADERS | {"ETag": etag}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=media_type)


@cache
def _files() -> dict[str, tuple[bytes, str, str]]:
    """Return the content, media type and ETag of each file, by its name."""
    found = {}
    for path in FOLDER.iterdir():
        if path.suffix in MEDIA_TYPES:
            content = path.read_bytes()
            found[path.name] = (content, MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:16]}"')
    return found
