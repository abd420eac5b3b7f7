"""After the loop, and beside it: embeddings of samples, the held-out curve, and what a finished run leaves behind."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.data.sampling import Gatherer, embedding_lattice, lattice, ordered_plans, refuse_not_finite
from rgb2pc_lib.data.teacher import frame_of
from rgb2pc_lib.data.workspace import camera_of
from rgb2pc_lib.learning import ranks
from rgb2pc_lib.learning.metrics import agreement, retrieval
from rgb2pc_lib.learning.models import Student
from rgb2pc_lib.learning.prepare import Prepared
from rgb2pc_lib.learning.runs import Run

_CURVE_SAMPLES = 512  # validation samples behind the curve; the final figures use all held-out ones
_CURVE_IMAGES = 48  # of those, where places are searched for points


@torch.no_grad()
def embed_samples(
    student: Student, gatherer: Gatherer, index: np.ndarray, positions: np.ndarray, batch: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings `[n, E]` and mean gates `[n, M]` of samples at fixed positions `[K, 2]`.

    This is the forward path of the curves, the final figures and every later use of a run. Ranks share the batches
    of `batch` samples among them, and all have the result.
    """
    was_training = student.training
    student.eval()
    embeddings = torch.zeros(len(index), student.embed_dim)
    gates = torch.zeros(len(index), len(student.experts))
    starts = ranks.shard(range(0, len(index), batch))
    plans = ranks.shard(ordered_plans(gatherer.samples, index, batch, positions))
    with ranks.agreed():
        for start, b in zip(starts, gatherer.run(plans), strict=True):
            out = student(b.tokens, b.present, b.positions)
            refuse_not_finite(b, gatherer.samples, out.embedding)
            embeddings[start : start + batch] = out.embedding.float()
            gates[start : start + batch] = out.gates.mean(1).float()
    ranks.add_up([embeddings, gates])  # each row stands on one rank and is zero on the others
    student.train(was_training)
    return embeddings.numpy(), gates.numpy()


def curve(prepared: Prepared) -> dict[str, float]:
    """Figures on some samples for validation (held-out ones without such), at a lattice about as fine as training's."""
    data, gatherer, aim = prepared.data, prepared.gatherer, prepared.learner.objective
    index = data.curve[:: math.ceil(len(data.curve) / _CURVE_SAMPLES)]
    with ranks.agreed():
        own = aim.figures(gatherer, index, _CURVE_IMAGES)
    if not aim.distils:
        return data.on_curve(own)
    places = min(prepared.config.student_tokens, math.prod(gatherer.samples.pairing.finest_grid))
    side = max(round(math.sqrt(places)), 1)
    embedding, _ = embed_samples(prepared.student, gatherer, index, lattice((side, side)))
    teacher = gatherer.teacher_embeddings(data.samples.teacher_rows[index]) - prepared.mean.numpy()
    return data.on_curve(retrieval(embedding, teacher) | own)


def finish(run: Run, prepared: Prepared) -> None:
    """Weights, embeddings of every sample, and the final figures on all held-out ones."""
    data, gatherer, mean = prepared.data, prepared.gatherer, prepared.mean
    student, aim = prepared.student.eval(), prepared.learner.objective
    index = np.arange(len(data.samples))
    embedding, gates = embed_samples(student, gatherer, index, embedding_lattice(gatherer.samples.pairing.finest_grid))
    if ranks.rank() > 0:
        return
    run.save_student(student, gatherer.samples.pairing.channels, mean)
    teacher = gatherer.teacher_embeddings(data.samples.teacher_rows[index]).astype(np.float32)
    keys = data.samples.keys().loc[index]
    held_out, validation = np.isin(index, data.held_out), np.isin(index, data.validation)
    arrays = {k: keys[k].to_numpy(str) for k in ("task", "episode", "step")}
    arrays |= {"time": keys["time"].to_numpy(), "held_out": held_out, "validation": validation}
    arrays |= {"gates": gates, "student": embedding, "teacher": teacher, "experts": np.array(student.experts)}
    write_atomic(run.file("embeddings.npz"), lambda p: np.savez(p, **arrays))
    ours, theirs = embedding[held_out], (teacher - mean.numpy())[held_out]
    figures = retrieval(ours, theirs) | agreement(ours, theirs) if aim.distils else {}
    means = dict(zip(student.experts, gates[held_out].mean(0).tolist(), strict=True))
    summary = {
        "n_train": len(data.training),
        "n_validation": len(data.validation),
        "n_held_out": int(held_out.sum()),
        "excluded": data.samples.pairing.excluded,
        "unreadable": data.samples.pairing.unreadable,
        "look_ahead": {k: v._asdict() for k, v in data.samples.pairing.look_ahead(prepared.config.frame_copy).items()},
        "teacher_frame": frame_of(next(f for files in data.samples.pairing.teacher.values() for f in files.values())),
        "licences": data.samples.pairing.licences,
        "precision": "bfloat16" if aim.amp else "float32",
        "held-out": figures | aim.figures(gatherer, data.held_out),
        "gates": means,
        "data_hash": _data_hash(keys, teacher, student),
    }
    if len(student.cameras) > 1:
        summary["cameras"] = camera_shares(means)
    write_atomic(run.file("summary.json"), lambda p: p.write_text(json.dumps(summary, indent=2), encoding="utf-8"))


def camera_shares(gates: Mapping[str, float]) -> dict[str, float]:
    """How much each camera counts: the sum of its experts' gates.

    >>> camera_shares({"vggt@head": 0.5, "vggt@wrist": 0.25, "da3@wrist": 0.25})
    {'head': 0.5, 'wrist': 0.5}
    """
    shares: dict[str, float] = {}
    for name, gate in gates.items():
        shares[camera_of(name)] = shares.get(camera_of(name), 0.0) + gate
    return shares


def _data_hash(keys: pd.DataFrame, teacher: np.ndarray, student: Student) -> str:
    """What was trained on: the steps, the teacher's values and the experts' names."""
    text = keys.to_csv(index=False) + ",".join(student.experts)
    return hashlib.sha256(text.encode() + np.ascontiguousarray(teacher).tobytes()).hexdigest()[:16]
