"""How values of policies are compared: each value of the YAML becomes one test of a text.

The matching rules M16 to M30. Pure: a value that is not allowed raises `ValueError` with a sentence.
"""

from __future__ import annotations

from authservice.policy.templates import is_template, template

__all__ = ["is_template", "template"]
