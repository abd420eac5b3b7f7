"""What a panel leaves behind: its static twin, in the notebook's output, for whoever opens it without a kernel.

Below the panel its picture is kept, hidden while the panel lives. Where no kernel knows the panel any more, the picture
is what is seen; on sites that show notebooks too.
"""

from __future__ import annotations

import ipywidgets as widgets
from IPython.display import HTML, DisplayHandle, Image, Pretty, display
from matplotlib.figure import Figure

from rgb2pc_lib.errors import InputError
from rgb2pc_lib.views.notebook import picture, style

_NEXT = "<i class='rgb2pc-panel-next'></i>"  # what follows is a panel, to be hidden where it cannot come up


class Twinned:
    """A panel with a `view` to touch, and a `static` picture of the same.

    >>> display(browser)  # the view, and the twin below it  # doctest: +SKIP
    """

    view: widgets.Box
    _twin: DisplayHandle | None = None  # there once the panel was shown

    def static(self) -> Figure:
        """The same as one picture."""
        raise NotImplementedError

    def _ipython_display_(self) -> None:
        style(_NEXT)
        self.view.add_class("rgb2pc-live")
        bundle = self.view._repr_mimebundle_()
        display(bundle | {"text/plain": f"{type(self).__name__} needs a kernel; below is its picture."}, raw=True)
        self._twin = display(self._pictured(), display_id=True)

    def renew_twin(self) -> None:
        """Keep the panel's picture as it is now; nothing where the panel is not shown."""
        if self._twin:
            self._twin.update(self._pictured())

    def _pictured(self) -> Image | HTML | Pretty:
        try:
            return picture(self.static())
        except InputError as e:  # a file that cannot be read: the panel says so too
            return Pretty(str(e))
