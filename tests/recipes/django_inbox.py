# django_inbox.py
# The settings of a Django project. Its web processes (gunicorn, also with --preload, or uvicorn) only receive; beside
# them, with the same environment, runs `agentphone work bot:inbox --name worker-1`. If the handler in bot.py uses
# models, bot.py begins with `import django; django.setup()`: so the settings must not import it.
import os

SECRET_KEY = os.environ["DJANGO_SECRET_KEY"]
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "django_urls"
MIDDLEWARE = ["django.middleware.common.CommonMiddleware", "django.middleware.csrf.CsrfViewMiddleware"]

# The inbox has a database of its own: on one machine a file, AGENTPHONE_INBOX_DATABASE=sqlite:////srv/inbox.db; on
# several PostgreSQL, which may be the project's, as its tables are in a schema of their own.
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "project.db"}}
