"""A compact student as ONNX files for deployment: fp32, fp16 and int8 (calibrated on real frames), and a table of each.

    python tools/export.py runs/compact/more-frames
    python tools/export.py runs/compact/more-frames --opset 17

Leaves model.onnx, model.fp16.onnx, model.int8.onnx, infer.py, onnx.json and exports.csv in the student's folder. The
table: size, milliseconds of the processor for one frame, how far outputs are from the network's on held-out frames,
and what each keeps of retrieval and probes.
"""

import argparse
import sys

from rgb2pc_lib import CompactRun, InputError
from rgb2pc_lib.deploy.export import OPSET
from rgb2pc_lib.judging.exports import judge_exports, lost


def main(argv=None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", help="folder of a compact student")
    p.add_argument("--opset", type=int, default=OPSET, help=f"version of ONNX's operators (default: {OPSET})")
    a = p.parse_args(argv)
    try:
        table = judge_exports(CompactRun.open(a.run), a.opset)
    except InputError as e:
        print(f"export: {e}", file=sys.stderr)
        return 2
    print(table.to_string(float_format=lambda v: f"{v:.3g}", na_rep=""))
    print("\nlost against torch\n")
    print(lost(table).to_string(float_format=lambda v: f"{v:+.3f}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
