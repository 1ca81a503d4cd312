"""The project for a WSGI server. A call is made at import: with --preload, before the server forks its workers."""

import views  # type: ignore[import-not-found]  # found in this folder
from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()
views.client.conversations.list(limit=1).page()
