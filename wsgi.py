"""The WSGI application of a checkout. Any WSGI server can run it on the two configured ports."""

from authservice.wsgi import app

__all__ = ["app"]
