"""Point-cloud-quality representations from RGB alone.

These names are the library's public face; what is not here is private and may move. They are imported when first
used, so that `import rgb2pc_lib` costs nothing.

>>> from rgb2pc_lib import Config, Workspace, train
>>> Config(fusion="moe").with_workspace(Workspace.load("data/sample.toml")).folder.name
'moe-seed0'
"""

import importlib
from typing import Any

_HOMES = {
    "errors": ["InputError"],
    "data.workspace": ["Workspace"],
    "data.packs": ["FeaturePack"],
    "data.pairing": ["pair", "select"],
    "learning.models": ["Student"],
    "learning.runs": ["Config", "Run"],
    "learning.train": ["train"],
    "deploy.embed": ["Embedder", "embed_packs"],
    "deploy.compact": ["CompactConfig", "CompactRun"],
    "deploy.compress": ["train_compact", "export_run"],
    "deploy.share": ["share"],
    "judging.evaluate": ["judged_config", "line_up", "judge"],
    "judging.verdicts": ["gap_closed", "verdict"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rgb2pc_lib' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
