"""What several command lines share: a flag for a setting, and how a tool ends. Imported by tools only."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Collection, Iterable
from typing import Any

from jsonargparse import ActionYesNo, ArgumentParser

from rgb2pc_lib.errors import InputError


def add_flag(parser: ArgumentParser, field: dataclasses.Field[Any], kind: type, default: Any) -> None:
    """The flag of a setting (a field made by `settings.option`): its name, help, type and choices.

    >>> add_flag(parser, dataclasses.fields(Config)[-1], int, 100)  # doctest: +SKIP
    """
    name, text, choices = f"--{field.name}", field.metadata["help"], field.metadata["choices"]
    if kind is bool:
        parser.add_argument(name, action=ActionYesNo(no_prefix="no_"), default=default, help=text)
    elif field.name == "amp":
        parser.add_argument(name, nargs="?", const="on", choices=choices, default=default, help=f"{text}; bare: on")
    elif choices:
        parser.add_argument(name, choices=choices, default=default, help=text)
    else:
        parser.add_argument(name, type=kind, default=default, metavar=kind.__name__.upper(), help=text)


def named(texts: Iterable[str], names: Collection[str]) -> dict[str, str]:
    """What `--weights NAME=PATH ...` says, name -> path. Raises InputError for another form or name.

    >>> named(["vggt=VGGT-1B/model.safetensors"], ["croco", "vggt"])
    {'vggt': 'VGGT-1B/model.safetensors'}
    """
    found = {}
    for text in texts:
        name, _, path = text.partition("=")
        if name not in names or not path:
            raise InputError(f"--weights: expected NAME=PATH with one of {', '.join(sorted(names))}, found {text}")
        found[name] = path
    return found


def run_resumable(main: Callable[[], int | None]) -> None:
    """Run a tool whose work goes on when it is called again: bad input ends with status 2, Ctrl-C with 130.

    What `main` returns is the status otherwise.
    """
    try:
        status = main()
    except (InputError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
    if status:
        sys.exit(status)
