"""Controls made from settings: one for every field, by its type; what is added to the settings appears by itself."""

from __future__ import annotations

import dataclasses
import html
import shlex
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets

from rgb2pc_lib.learning.settings import Settings

MOST = 2**53 - 1  # that a browser counts exactly


@dataclass
class Control:
    """A setting on a panel: `value` is the setting's, whatever the widget holds.

    >>> control(Config, "tasks", ("push", "pull")).value
    ('push', 'pull')
    """

    widget: widgets.Widget
    read: Callable[[], Any]
    write: Callable[[Any], None]

    @property
    def value(self) -> Any:
        return self.read()

    @value.setter
    def value(self, value: Any) -> None:
        self.write(value)

    def disable(self) -> None:
        """It can be read only, from now on."""
        for part in (self.widget, *getattr(self.widget, "children", ())):
            part.disabled = True


def control(settings: type[Settings], name: str, value: Any, title: str = "", stops: Sequence[Any] = ()) -> Control:
    """The control of a field, standing at `value`; a slider where there are `stops`, and one more for other values.

    Folders by name become tick boxes, of which `value` names all that there are.
    """
    (info,) = (f.metadata for f in dataclasses.fields(settings) if f.name == name)
    kind = typing.get_type_hints(settings)[name]
    look = {
        "description": title or name,
        "tooltip": info["help"],
        "style": {"description_width": "115px"},
        "layout": widgets.Layout(width="97%"),
    }
    if typing.get_origin(kind) is dict:
        return _ticks(value, look)
    if typing.get_origin(kind) is tuple:
        return _words(value, look)
    if stops:
        return _slider(value, stops, look)
    if info["choices"]:
        made = widgets.Dropdown(options=info["choices"], value=value, **look)
    elif kind is bool:
        made = widgets.Checkbox(value=value, **look)
    elif kind is str:
        made = widgets.Text(value=value, **look)
    else:
        ends = {"min": info["least"] or 0, "max": info["most"] or MOST}
        number = widgets.BoundedIntText if kind is int else widgets.BoundedFloatText
        made = number(value=value, step=1 if kind is int else None, **ends, **look)
    return Control(made, lambda: made.value, lambda new: setattr(made, "value", new))


def explained(settings: type[Settings], made: dict[str, Control]) -> list[widgets.VBox]:
    """The controls, each with the help of its setting below it."""
    helps = {f.name: f.metadata["help"] for f in dataclasses.fields(settings)}
    look = "font-size:11px; line-height:1.2; opacity:.8; margin:0 6px 6px 120px; white-space:normal"
    return [
        widgets.VBox([c.widget, widgets.HTML(f"<div style='{look}'>{html.escape(helps[name])}</div>")])
        for name, c in made.items()
    ]


def _slider(value: Any, stops: Sequence[Any], look: dict[str, Any]) -> Control:
    def options(values: Iterable[Any]) -> list[tuple[str, Any]]:
        return [(f"{v:g}", v) for v in sorted(set(values))]

    made = widgets.SelectionSlider(options=options([value, *stops]), value=value, continuous_update=False, **look)

    def write(new: Any) -> None:
        there = [v for _, v in made.options]
        if new not in there:
            made.options = options([new, *there])
        made.value = new

    return Control(made, lambda: made.value, write)


def _words(value: tuple[str, ...], look: dict[str, Any]) -> Control:
    """Texts in a line, as a terminal takes them: one with a space stands in quotes."""
    made = widgets.Text(value=shlex.join(value), continuous_update=False, **look)
    return Control(made, lambda: tuple(shlex.split(made.value)), lambda new: setattr(made, "value", shlex.join(new)))


def _ticks(folders: dict[str, str], look: dict[str, Any]) -> Control:
    boxes = {k: widgets.Checkbox(True, description=k, indent=False, layout={"width": "auto"}) for k in folders}
    title = widgets.Label(look["description"], layout={"width": "115px", "justify_content": "flex-end"})
    made = widgets.HBox([title, *boxes.values()], layout=widgets.Layout(flex_flow="row wrap"))
    for box in boxes.values():
        box.style.description_width = "initial"
        box.layout.margin = "0 10px 0 4px"

    def write(new: Iterable[str]) -> None:
        for name, box in boxes.items():
            box.value = name in new

    return Control(made, lambda: {k: folder for k, folder in folders.items() if boxes[k].value}, write)
