"""AuthService: may this request pass, and who is it?

Importing the package costs nothing; `authservice.app` puts the parts together.
"""

__version__ = "0.1.0"
