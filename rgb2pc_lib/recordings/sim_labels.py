"""What each pixel of a simulated image shows: the simulator's own segmentation, in a handful of names.

Only the recorder (`sim`) uses this; with it, it needs the extra ``sim``.
"""

import mujoco
import numpy as np

LABELS = ("background", "table", "robot", "object", "distractor", "goal")  # a label is an index into this
_TABLES = {"tablelink", "RetainingWall"}  # bodies that stand in for a table's top and its rims
GEOM, SITE = int(mujoco.mjtObj.mjOBJ_GEOM), int(mujoco.mjtObj.mjOBJ_SITE)  # comparing enums is slow


def geom_labels(model) -> np.ndarray:
    """Label of every geometric body of a Meta-World scene, uint8 [ngeom].

    Everything below the arm's base is the robot; table and rims are the table; distractors are ours. What else hangs
    on a body is the task's: the object, with what it is attached to or goes into (a drawer's chest, the peg of a ring).
    The rest, floor and walls, is background.
    """
    out = np.zeros(model.ngeom, np.uint8)
    for i in range(model.ngeom):
        bodies, body = set(), model.geom_bodyid[i]
        while body:  # 0 is the world
            bodies.add(model.body(body).name)
            body = model.body_parentid[body]
        if model.geom(i).name.startswith("distractor"):
            out[i] = LABELS.index("distractor")
        elif bodies & _TABLES:
            out[i] = LABELS.index("table")
        elif "base" in bodies:
            out[i] = LABELS.index("robot")
        elif bodies and "mocap" not in bodies:
            out[i] = LABELS.index("object")
    return out


def pixel_labels(segmentation: np.ndarray, of_geom: np.ndarray) -> np.ndarray:
    """MuJoCo's segmentation image [H, W, 2] of (id, kind) -> labels, uint8 [H, W]. The only visible sites are goals.

    >>> pixel_labels(np.array([[[1, GEOM], [-1, -1], [0, SITE]]]), np.array([1, 2], np.uint8))
    array([[2, 0, 5]], dtype=uint8)
    """
    ids, kinds = segmentation[..., 0], segmentation[..., 1]
    out = np.zeros(ids.shape, np.uint8)
    out[kinds == GEOM] = of_geom[ids[kinds == GEOM]]
    out[kinds == SITE] = LABELS.index("goal")
    return out
