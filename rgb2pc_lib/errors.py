"""The one exception that means: the input is at fault, and here is what to do about it. And what stops nothing."""

import functools
import logging


class InputError(ValueError):
    """Bad input: the message names the file, what was expected, what was found and what to do next.

    Command-line tools print the message and exit with status 2; notebooks show it as it is.

    >>> raise InputError("x.pt: expected a dict with 'per_frame_features', found a list; re-extract this episode")
    Traceback (most recent call last):
    rgb2pc_lib.errors.InputError: x.pt: expected a dict with 'per_frame_features', found a list; re-extract this episode
    """


@functools.cache  # once a process, however often the file is read
def tell(message: str) -> None:
    """Say something that a person should know and that stops nothing, as one line on stderr."""
    logging.getLogger("rgb2pc_lib").warning(message)
