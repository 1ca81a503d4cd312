"""The version, in this one place: the build and the `User-Agent` header read it from here."""

__version__ = "0.2.0"
