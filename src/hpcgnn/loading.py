"""A Python file that is imported for its model, and what it must not do meanwhile."""

from __future__ import annotations

import sys
from types import FrameType

from hpcgnn.errors import InputError

MODULE = "hpcgnn_model_"  # the name of such a module begins with it
GUARD = 'put it under `if __name__ == "__main__":`'


def refuse_while_loading(what: str) -> None:
    """Raise InputError if the caller runs because a model's file is being imported.

    Such a script would train once more inside the command that only needs its model.

    Args:
        what: the function that was called.
    """
    frame: FrameType | None = sys._getframe(1)
    file = ""
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            file = file or frame.f_code.co_filename
            if str(frame.f_globals.get("__name__", "")).startswith(MODULE):
                raise InputError(
                    f"calls {what} when it is loaded for its model, as --model does: {GUARD}",
                    file=file,
                )
        frame = frame.f_back
