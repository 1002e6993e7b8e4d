"""Settings: environment variables in, one frozen object out.

`table` declares each setting once, `kinds` and `addresses` know how texts are read, `read` goes
through an environment, `rules` judge settings against each other, `names` recognises misspelt and
former variables, `derived` adds what follows, and `show` prints the table. Only the composition
root, the command line and ``gunicorn.conf.py`` ask here; everything else takes plain arguments.
"""

from authservice.settings.derived import Settings
from authservice.settings.read import Examined, examine, load
from authservice.settings.secret import Secret

__all__ = ["Examined", "Secret", "Settings", "examine", "load"]
