"""The WSGI application of this process, with its background work started.

Importing this module reads the environment; `errors.SettingsError` lists every problem with it.
"""

from __future__ import annotations

import os
from pathlib import Path

from authservice.app import create_app

SHARED = "AUTHSERVICE_SHARED_FOLDER"
"""Names the folder that the workers of one server share; set by `authservice.gunicorn_conf`."""

_shared = os.environ.get(SHARED)
app = create_app(shared=Path(_shared) if _shared else None)
app.extensions["authservice"].start()
