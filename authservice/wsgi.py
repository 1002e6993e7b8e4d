"""The WSGI application of this process, with its background work started.

Importing this module reads the environment; `errors.SettingsError` lists every problem with it.
"""

from __future__ import annotations

import os
from pathlib import Path

from authservice.app import create_app
from authservice.scrape import SHARED_FOLDER

_shared = os.environ.get(SHARED_FOLDER)
app = create_app(shared=Path(_shared) if _shared else None)
app.extensions["authservice"].start()
