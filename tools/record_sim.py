#!/usr/bin/env python3
"""Record simulated episodes: RGB, point clouds and state, from Meta-World's scripted experts (extra ``sim``)."""

import argparse

from tqdm import tqdm

from rgb2pc_lib.command_line import run_resumable


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", required=True, default=argparse.SUPPRESS,
                        help="folder for rgb/, clouds/ and state/; finished episodes are kept")  # fmt: skip
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="Meta-World tasks; None: the eight of the sample")
    parser.add_argument("--episodes", type=int, default=8, metavar="N", help="episodes a task, successful ones only")
    parser.add_argument("--first_seed", type=int, default=0, metavar="N", help="seed of a task's first episode")
    parser.add_argument("--steps", type=int, default=16, metavar="N", help="steps kept an episode, evenly spaced")
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="height and width of the images, pixels")
    parser.add_argument("--points", type=int, default=1024, metavar="N", help="points a cloud")
    parser.add_argument("--randomise", choices=["fixed", "half", "mostly", "random"], default="half",
                        help="camera, light, colours, textures, distractors of no episode, of every second one, "
                             "of all but every fourth, or of all")  # fmt: skip
    parser.add_argument("--cameras", nargs="+", default=[], choices=["corner", "wrist"],
                        help="further cameras beside the first, into rgb_NAME/")  # fmt: skip
    parser.add_argument("--frame", choices=["camera", "world"], default="camera", help="frame of the clouds, metres")
    parser.add_argument("--jpeg_quality", type=int, default=85, metavar="Q", help="1 to 95")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    from rgb2pc_lib.recordings import sim  # not needed for --help, slow, and an optional extra

    config = sim.RecordConfig(
        size=args.size, steps=args.steps, points=args.points, frame=args.frame, more=tuple(args.cameras)
    )
    tasks = [sim.task_name(task) for task in args.tasks or sim.SAMPLE_TASKS]
    counts = {"recorded": 0, "kept": 0, "failed": 0}
    with tqdm(total=len(tasks) * args.episodes, unit="episode") as bar:
        for task in tasks:
            bar.set_description(task)
            for name, seed, outcome in sim.record_task(
                args.out, task, args.episodes, args.first_seed, args.randomise, config, args.jpeg_quality
            ):
                counts[outcome] += 1
                if outcome == "failed":
                    bar.write(f"{task}/{name}: the expert fails from seed {seed}, trying {seed + 1}")
                else:
                    bar.update()
    print(f"{args.out}: {counts['recorded']} episodes recorded, {counts['kept']} kept, {counts['failed']} seeds failed")


if __name__ == "__main__":
    run_resumable(main)
