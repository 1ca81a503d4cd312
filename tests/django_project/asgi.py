"""The project for an ASGI server."""

from django.core.asgi import get_asgi_application  # type: ignore[import-untyped]

application = get_asgi_application()
