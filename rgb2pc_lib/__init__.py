"""Point-cloud-quality representations from RGB alone.

These names are the library's public face; what is not here is private and may move. They are imported when first
used, so that `import rgb2pc_lib` costs nothing.

>>> from rgb2pc_lib import Config, Workspace, train
>>> Config(fusion="moe").with_workspace(Workspace.load("data/sample.toml")).folder.name
'moe-seed0'
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same for checkers and editors, which run nothing
    from rgb2pc_lib.data.packs import FeaturePack as FeaturePack
    from rgb2pc_lib.data.pairing import pair as pair
    from rgb2pc_lib.data.pairing import select as select
    from rgb2pc_lib.data.workspace import Workspace as Workspace
    from rgb2pc_lib.deploy.compact import CompactConfig as CompactConfig
    from rgb2pc_lib.deploy.compact import CompactRun as CompactRun
    from rgb2pc_lib.deploy.compress import train_compact as train_compact
    from rgb2pc_lib.deploy.embed import Embedder as Embedder
    from rgb2pc_lib.deploy.embed import embed_packs as embed_packs
    from rgb2pc_lib.deploy.export import export_run as export_run
    from rgb2pc_lib.deploy.policy import PolicyBackbone as PolicyBackbone
    from rgb2pc_lib.deploy.share import share as share
    from rgb2pc_lib.encoders.rays import Camera as Camera
    from rgb2pc_lib.errors import InputError as InputError
    from rgb2pc_lib.judging.evaluate import judge as judge
    from rgb2pc_lib.judging.evaluate import judged_config as judged_config
    from rgb2pc_lib.judging.evaluate import line_up as line_up
    from rgb2pc_lib.judging.verdicts import gap_closed as gap_closed
    from rgb2pc_lib.judging.verdicts import verdict as verdict
    from rgb2pc_lib.learning.config import Config as Config
    from rgb2pc_lib.learning.models import Student as Student
    from rgb2pc_lib.learning.runs import Run as Run
    from rgb2pc_lib.learning.train import train as train

_HOMES = {
    "errors": ["InputError"],
    "data.workspace": ["Workspace"],
    "data.packs": ["FeaturePack"],
    "data.pairing": ["pair", "select"],
    "learning.models": ["Student"],
    "learning.config": ["Config"],
    "learning.runs": ["Run"],
    "learning.train": ["train"],
    "encoders.rays": ["Camera"],
    "deploy.embed": ["Embedder", "embed_packs"],
    "deploy.compact": ["CompactConfig", "CompactRun"],
    "deploy.compress": ["train_compact"],
    "deploy.export": ["export_run"],
    "deploy.policy": ["PolicyBackbone"],
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
