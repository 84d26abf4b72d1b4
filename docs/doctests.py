"""For griffe, which reads the docstrings of the API pages: examples at a prompt are code, wherever they stand."""

import re
from typing import Any

from griffe import Extension, Object

# A paragraph that begins with a prompt.
EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n(?!>>>)|\Z)", re.MULTILINE | re.DOTALL)


class Doctests(Extension):
    """Puts a fence around each."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(lambda match: f"```pycon\n{match[0]}\n```", obj.docstring.value)
