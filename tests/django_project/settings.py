"""Settings of the project."""

SECRET_KEY = "of a test"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "views"
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
