"""onnx's backend cases through any list of passes: what onnxruntime passes before and after.

    python benchmarks/backend_cases.py [--passes simplify] [--passes deduplicate,fuse] [--every N]

Every case of the installed onnx package runs as it is, with all its inputs turned into constants,
and with all but the first. Prints a table and everything that got worse; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def main() -> int:
    from backend.cases import Tally, examine, originals, variants

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", action="append", help="default: simplify")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th case")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| passes | cases | onnxruntime passes | still | runs otherwise | cannot run | CPU s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    failed = 0
    for passes in options.passes or ["simplify"]:
        tally, count, start = Tally(), 0, time.process_time()
        for case in originals()[:: options.every]:
            for variant in variants(case):
                examine(variant, tally, passes)
                count += 1
        still = tally.passed - sum("no longer" in c[0] for c in tally.complaints.values())
        print(
            f"| {passes} | {count} | {tally.passed} | {still} | {tally.ran} "
            f"| {len(tally.skipped)} | {time.process_time() - start:.0f} |",
            flush=True,
        )
        for name, complaints in tally.complaints.items():
            print(f"{name}: {'; '.join(complaints)}")
        for reason, times in Counter(why[:70] for why in tally.skipped.values()).most_common(12):
            print(f"  cannot run: {times} times {reason}", file=sys.stderr)
        failed += len(tally.complaints)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
