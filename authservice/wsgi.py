"""The WSGI application of this process, with its background work started.

Importing this module reads the environment; `errors.SettingsError` lists every problem with it.
"""

from __future__ import annotations

from authservice.app import create_app

app = create_app()
app.extensions["authservice"].start()
