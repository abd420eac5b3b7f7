"""Settings: what a field of them says of itself, how they are checked, and the fields that every training has.

A training's own settings are a frozen dataclass of its own (`config.Config`, `compact.CompactConfig`), each field
made by `option`, or by `shared` where another training has it too. Command lines, widgets and run folders are made
from them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
import sys
import typing
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from rgb2pc_lib.data.files.guarded import parse_json, read_text, shown
from rgb2pc_lib.errors import InputError

Value = TypeVar("Value")
_SAME: Any = object()


def option(
    default: Value, text: str, choices: tuple[str, ...] = (), least: float | None = None, most: float | None = None,
    absent: Value = _SAME,
) -> Value:  # fmt: skip
    """A field of settings: its help (with the unit), what is allowed, and what it was before there was a setting."""
    info: dict[str, Any] = {"help": text, "choices": choices, "least": least, "most": most}
    info["absent"] = default if absent is _SAME else absent
    if isinstance(default, (dict, tuple)):
        return field(default_factory=lambda: default, metadata=info)
    return field(default=default, metadata=info)


SEEDS = 2**32 - 1  # the largest seed
PRECISIONS = ("auto", "on", "off")
_SHARED: dict[str, dict[str, Any]] = {  # of every training: what `option` is told, but for the default
    # losses
    "tau": {"text": "temperature of InfoNCE", "least": 1e-4},
    "learn_tau": {"text": "learn the temperature, starting at tau"},
    "loss_mse": {"text": "weight of the squared distance of normalised embeddings", "least": 0},
    "loss_relational": {"text": "weight of the match of similarity matrices", "least": 0},
    "exclude_near": {"text": "steps of one episode this near in time are not negatives, steps", "least": 0},
    # training
    "steps": {"text": "training steps", "least": 1},
    "batch_size": {"text": "samples a batch", "least": 2},
    "lr": {"text": "peak learning rate of AdamW (5 % warm-up, then cosine to zero)", "least": 0},
    "weight_decay": {"text": "AdamW weight decay", "least": 0},
    "grad_clip": {"text": "largest gradient norm; 0: no clipping", "least": 0},
    "amp": {"text": "bfloat16 autocast; auto measures which is faster here", "choices": PRECISIONS},
    "seed": {"text": "seed of weights, batches and every other random draw", "least": 0, "most": SEEDS},
    "device": {"text": "auto, cpu, cuda or cuda:N"},
    "num_threads": {"text": "CPU threads of torch; 0: leave as it is", "least": 0, "most": 1024},
    # the run's folder
    "save_every": {"text": "steps between checkpoints", "least": 1},
    "log_every": {"text": "steps between lines of metrics.jsonl", "least": 1},
    "eval_every": {"text": "steps between checks on validation samples; 0: at the end only", "least": 0},
}


def shared(name: str, default: Value) -> Value:
    """The field of a setting that every training has; trainings differ in its default only.

    >>> shared("tau", 0.05).metadata["help"]
    'temperature of InfoNCE'
    """
    made: Value = option(default, **_SHARED[name])
    return made


_FREE = {"num_threads", "device", "micro_batch", "save_dir", "save_every", "log_every"}  # cannot change a run's numbers


_MENDED = "restore the file from a copy"


@dataclass(frozen=True)
class Settings:
    """Settings of a training: checked when made, round trip through JSON, and back to a command line.

    Raises InputError naming the setting when a value is of another type or out of range, and when settings are given
    with which no training can work. `stored` are those of a run that there is: they had their training.
    """

    tool = "tools/train_rgb2pc_distill.py"
    micro_batch = 0  # where it is no setting: a batch goes through the network as a whole
    centre = True  # where it is no setting: the teacher's mean is taken away
    if TYPE_CHECKING:  # what every training has (`shared`), each at its place among a training's own settings
        tau: float
        learn_tau: bool
        loss_mse: float
        loss_relational: float
        exclude_near: int
        steps: int
        batch_size: int
        lr: float
        weight_decay: float
        grad_clip: float
        amp: str
        seed: int
        device: str
        num_threads: int
        save_every: int
        log_every: int
        eval_every: int

    stored: InitVar[bool] = field(default=False, kw_only=True)

    def __post_init__(self, stored: bool) -> None:
        for f in dataclasses.fields(self):
            value, info = self._typed(f.name), f.metadata
            if info["choices"] and value not in info["choices"]:
                raise InputError(f"--{f.name}: expected one of {', '.join(info['choices'])}, found {shown(value)}")
            if info["least"] is not None and not value >= info["least"]:
                raise InputError(f"--{f.name}: expected at least {info['least']}, found {value}")
            if info["most"] is not None and not value <= info["most"]:
                raise InputError(f"--{f.name}: expected at most {info['most']}, found {value}")
        if not stored:
            self.refuse()

    def refuse(self) -> None:
        """Raise InputError where settings, each fine by itself, cannot work; each training knows more of them."""
        if self.lr * self.weight_decay >= 1:
            raise InputError(
                f"--lr {self.lr:g} with --weight_decay {self.weight_decay:g}: every step would take all weights away "
                "(their product must stay below 1); lower --lr"
            )

    def _typed(self, name: str) -> Any:
        """A field's value, plain and of its type."""
        settings: Any = type(self)  # which can be hashed, though a checker thinks of its objects
        value, kind = getattr(self, name), _kinds(settings)[name]
        if isinstance(value, np.generic | list):
            value = tuple(value) if isinstance(value, list) else value.item()
            object.__setattr__(self, name, value)
        fits, wanted = _TYPES[kind]
        if not fits(value):
            raise InputError(f"--{name}: expected {wanted}, found {shown(value)}")
        return value

    def to_json(self) -> str:
        """As a run's config.json."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The settings in a run's `config.json`. Raises InputError naming file and setting for anything that this
        version did not write.
        """
        return cls.from_json(read_text(path, _MENDED), path)

    @classmethod
    def from_json(cls, text: str, path: Path = Path("config.json")) -> Self:
        """What `to_json` wrote, in `path`; a setting that is not there has the value it had before it existed.

        >>> Config.from_json(Config(steps=10).to_json()) == Config(steps=10)
        True
        """
        raw = cls._before() | cls._raw(text, path)
        if unknown := [k for k in raw if k not in cls._before()]:
            raise InputError(
                f"{path}: {', '.join(unknown)}: no such setting here, so the run is of another version (or not of this "
                "kind of training); open it with the version that made it"
            )
        if isinstance(raw["amp"], bool):  # of runs made before it could be measured
            raw["amp"] = "on" if raw["amp"] else "off"
        try:
            return cls(**raw, stored=True)
        except InputError as e:
            raise InputError(f"{path}: {str(e).removeprefix('--')}; {_MENDED}") from None

    @classmethod
    def missing(cls, path: Path) -> dict[str, Any]:
        """Settings that a run's `config.json` does not name, as it is older than they are, with what stands in."""
        raw = cls._raw(read_text(path, _MENDED), path)
        return {k: v for k, v in cls._before().items() if k not in raw}

    @classmethod
    def _raw(cls, text: str, path: Path) -> dict[str, Any]:
        raw = parse_json(text, path, _MENDED)
        if not isinstance(raw, dict):
            raise InputError(f"{path}: expected settings by name, found a {type(raw).__name__}; {_MENDED}")
        return raw

    @classmethod
    def _before(cls) -> dict[str, Any]:
        """Every setting, as it was before it existed."""
        return {f.name: f.metadata["absent"] for f in dataclasses.fields(cls)}

    def changes(self, other: Settings) -> dict[str, tuple[Any, Any]]:
        """Settings that differ, name -> (here, there), without those that cannot change a run's numbers.

        >>> Config(steps=10, device="cpu").changes(Config(device="cuda"))
        {'steps': (10, 400)}
        """
        ours, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return {k: (ours[k], theirs[k]) for k in ours if k not in _FREE and ours[k] != theirs[k]}

    def command(self) -> str:
        """The command line, for the project's folder, that repeats this run.

        >>> Config(fusion="moe", amp="on", tasks=("push", "pull")).command()
        'python tools/train_rgb2pc_distill.py --tasks push pull --fusion moe --amp on'
        """
        words = ["python", self.tool]
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            if value == default:
                continue
            if isinstance(value, bool):
                words.append(f"--{f.name}" if value else f"--no_{f.name}")
            elif isinstance(value, dict):
                words += [f"--{f.name}", *(f"{k}={v}" for k, v in value.items())]
            elif isinstance(value, tuple):
                words += [f"--{f.name}", *value]
            else:
                words += [f"--{f.name}", str(value)]
        return shlex.join(words)


@functools.cache
def _kinds(settings: type[Settings]) -> dict[str, Any]:
    return typing.get_type_hints(settings)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


# type of a field -> whether a value is of it, and what it is called
_TYPES: dict[Any, tuple[typing.Callable[[Any], bool], str]] = {
    bool: (lambda v: isinstance(v, bool), "true or false"),
    int: (lambda v: isinstance(v, int) and not isinstance(v, bool), "a whole number"),
    float: (_is_number, "a number"),
    str: (_is_text, "text"),
    tuple[str, ...]: (lambda v: isinstance(v, tuple) and all(map(_is_text, v)), "a list of texts"),
    dict[str, str]: (
        lambda v: isinstance(v, dict) and all(_is_text(x) for pair in v.items() for x in pair),
        "names with folders",
    ),
}
