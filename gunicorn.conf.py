"""gunicorn's settings for a checkout: ``gunicorn -c gunicorn.conf.py wsgi:app``."""

from authservice.gunicorn_conf import *  # noqa: F403 - gunicorn reads module-level names
