"""What has to be said beside a run's figures: what it left out, what it saw of the future, what a sample was."""

from __future__ import annotations

import math
from typing import Any

from rgb2pc_lib.data.packs import LookAhead, sees_single_frames
from rgb2pc_lib.learning.config import Config

SIGHT: dict[str, Any] = {  # a `LookAhead` as it stands in a summary
    "mean": (int, float), "most": int, "told": bool, "window": int, "stride": int, "causal": bool,
}  # fmt: skip


def left_out_words(summary: dict[str, Any]) -> str:
    """What a run's data lacked on purpose, in a sentence; nothing where that is nothing.

    >>> left_out_words({"excluded": {"push/ep_3": "", "push/ep_4/step_0007": ""}, "unreadable": {"push/ep_5": "cut"}})
    'Left out: 1 episode and 1 step by the exclusion list, 1 episode that cannot be read.'
    """
    kinds = [name.count("/") for name in summary["excluded"]]
    counts = [(kinds.count(1), "episode"), (kinds.count(2), "step")]
    listed = " and ".join(f"{n} {what}{'s' * (n > 1)}" for n, what in counts if n)
    bad = len(summary["unreadable"])
    parts = [f"{listed} by the exclusion list"] * bool(listed)
    parts += [f"{bad} episode{'s' * (bad > 1)} that cannot be read"] * bool(bad)
    return f"Left out: {', '.join(parts)}." if parts else ""


def sights(summary: dict[str, Any]) -> dict[str, LookAhead | None]:
    """Expert -> what its features saw of the frames after their own, of a run's summary.

    None where that is not known: in runs trained before it was recorded, of experts that are not known by name to see
    single frames.

    >>> sights({"gates": {"dinov3": 0.5, "vggt": 0.5}})
    {'dinov3': LookAhead(mean=0, most=0, told=True, window=1, stride=0, causal=False), 'vggt': None}
    """
    told = {name: LookAhead(**{k: s[k] for k in SIGHT}) for name, s in summary.get("look_ahead", {}).items()}
    alone = LookAhead(0, 0, True, 1, 0, False)
    return {name: told.get(name, alone if sees_single_frames(name) else None) for name in summary.get("gates", told)}


def most_ahead(summary: dict[str, Any]) -> float:
    """The most frames after its own that an expert of a run saw: 0 is causal, NaN where that is not known."""
    seen = sights(summary).values()
    return math.nan if None in seen else max((sight.most for sight in seen if sight), default=0)


def look_ahead_words(summary: dict[str, Any]) -> str:
    """What a run saw of the future and no robot has, in a sentence; nothing where it saw nothing of it.

    >>> vggt = {"mean": 3.5, "most": 7, "told": True, "window": 8, "stride": 8, "causal": False}
    >>> look_ahead_words({"gates": {"vggt": 1.0}, "look_ahead": {"vggt": vggt}})
    'Trained with a view of the future: vggt sees 3.5 later frames on average, at most 7. A robot has none of them.'
    """
    seen = []
    for name, sight in sights(summary).items():
        if sight is None:
            seen.append(f"{name} may see later frames, which was not recorded")
        elif sight.most:
            sees = "sees" if sight.told else "is taken to see, as its packs do not say,"
            seen.append(f"{name} {sees} {sight.mean:.1f} later frames on average, at most {sight.most}")
    return f"Trained with a view of the future: {'; '.join(seen)}. A robot has none of them." if seen else ""


def window_words(config: Config) -> str:
    """What a run was fitted to, in a sentence, where its samples are windows of steps; nothing where they are steps.

    >>> window_words(Config(sample_unit="window", window=4))
    'Trained and judged on windows of 4 steps, pooled: its figures say nothing of single frames.'
    """
    if config.pooled_unit != "window":
        return ""
    return f"Trained and judged on windows of {config.window} steps, pooled: its figures say nothing of single frames."
