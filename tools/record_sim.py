#!/usr/bin/env python3
"""Record simulated episodes: RGB, point clouds and state, from Meta-World's scripted experts (extra ``sim``)."""

import argparse
import sys

from tqdm import tqdm

from rgb2pc_lib.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", required=True, help="folder for rgb/, clouds/ and state/; finished episodes are kept")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="Meta-World tasks; without it the sample's eight")
    parser.add_argument("--episodes", type=int, default=8, help="episodes a task, successful ones only")
    parser.add_argument("--first_seed", type=int, default=0, help="seed of a task's first episode; the next follow")
    parser.add_argument("--steps", type=int, default=16, help="steps kept an episode, evenly spaced")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images, pixels")
    parser.add_argument("--points", type=int, default=1024, help="points a cloud")
    parser.add_argument("--randomise", choices=["fixed", "random", "half"], default="half",
                        help="look of the episodes: camera, light, colours, textures, distractors; "
                             "half randomises every second episode")  # fmt: skip
    parser.add_argument("--frame", choices=["camera", "world"], default="camera", help="frame of the clouds")
    parser.add_argument("--jpeg_quality", type=int, default=90, help="1 to 95")
    args = parser.parse_args()

    from rgb2pc_lib import sim  # slow, and only here is the simulator needed

    config = sim.RecordConfig(size=args.size, steps=args.steps, points=args.points, frame=args.frame)
    tasks = args.tasks or sim.SAMPLE_TASKS
    with tqdm(total=len(tasks) * args.episodes, unit="episode") as bar:
        for task in tasks:
            bar.set_description(task)
            recording = sim.record_task(
                args.out, task, args.episodes, args.first_seed, args.randomise, config, args.jpeg_quality
            )
            for name, seed, outcome in recording:
                if outcome == "failed":
                    bar.write(f"{task}/{name}: the expert fails from seed {seed}; trying seed {seed + 1}")
                else:
                    bar.update()


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(print(f"error: {error}", file=sys.stderr) or 2)
