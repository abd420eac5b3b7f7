"""Settings: what a field of them says of itself, how they are checked, and the fields that every training has.

A training's own settings are a frozen dataclass of its own (`runs.Config`, `compact.CompactConfig`), each field made by
`option`, or by `shared` where another training has it too. Command lines, widgets and run folders are made from them.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar

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
    "seed": {"text": "seed of weights, batches and every other random draw", "least": 0},
    "device": {"text": "auto, cpu, cuda or cuda:N"},
    "num_threads": {"text": "CPU threads of torch; 0: leave as it is", "least": 0},
    # the run's folder
    "save_every": {"text": "steps between checkpoints", "least": 1},
    "log_every": {"text": "steps between lines of metrics.jsonl", "least": 1},
    "eval_every": {"text": "steps between checks on held-out samples; 0: at the end only", "least": 0},
}


def shared(name: str, default: Value) -> Value:
    """The field of a setting that every training has; trainings differ in its default only.

    >>> shared("tau", 0.05).metadata["help"]
    'temperature of InfoNCE'
    """
    made: Value = option(default, **_SHARED[name])
    return made


_FREE = {"num_threads", "device", "micro_batch", "save_dir", "save_every", "log_every"}  # cannot change a run's numbers


@dataclass(frozen=True)
class Settings:
    """Settings of a training: checked when made, round trip through JSON, and back to a command line.

    Raises InputError naming the setting when a value is out of range.
    """

    tool = "tools/train_rgb2pc_distill.py"
    micro_batch = 0  # where it is no setting: a batch goes through the network as a whole

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

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, info = getattr(self, f.name), f.metadata
            if info["choices"] and value not in info["choices"]:
                raise InputError(f"--{f.name}: expected one of {', '.join(info['choices'])}, found {value!r}")
            if info["least"] is not None and not value >= info["least"]:
                raise InputError(f"--{f.name}: expected at least {info['least']}, found {value}")
            if info["most"] is not None and not value <= info["most"]:
                raise InputError(f"--{f.name}: expected at most {info['most']}, found {value}")

    def to_json(self) -> str:
        """As a run's config.json."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote; a setting that is not there has the value it had before it existed.

        >>> Config.from_json(Config(steps=10).to_json()) == Config(steps=10)
        True
        """
        raw = {f.name: f.metadata["absent"] for f in dataclasses.fields(cls)} | json.loads(text)
        if isinstance(raw["amp"], bool):  # of runs made before it could be measured
            raw["amp"] = "on" if raw["amp"] else "off"
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        return cls(**values)

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
