"""Runs every benchmark of this folder, one after the other; see README.md.

python benchmarks/run.py          # reduced sizes, a few minutes
python benchmarks/run.py --full   # the sizes of docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# arguments for a run of reduced size; a full run uses each script's defaults
QUICK = {
    "backend_cases.py": ["--every", "10"],
    "differential.py": ["--cases", "300"],
    "load_save.py": ["--small"],
    "pack.py": ["--shares", "80", "--samples", "0", "--rounds", "3"],
    "prune.py": ["--weights", "1e8"],
    "prune_recurrent.py": ["--hidden", "256", "--rounds", "3"],
    "quantize.py": ["--repeat", "1"],
    "quantize_costs.py": ["--quick"],
}

# what needs a folder, or makes models for the others
NOT_ALONE = {
    "export_transformers.py",
    "hard_digits.py",
    "prune_channels.py",
    "prune_weights.py",
    "quantize_models.py",
}


def main() -> int:
    """Run all scripts; the exit code is the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="sizes of docs/benchmarks.md")
    options = parser.parse_args()
    failed = 0
    for script in sorted(FOLDER.glob("*.py")):
        if script.name in {Path(__file__).name, *NOT_ALONE}:
            continue
        if "__main__" not in script.read_text():
            continue
        print(f"\n== {script.name}", flush=True)
        arguments = [] if options.full else QUICK.get(script.name, [])
        done = subprocess.run([sys.executable, str(script), *arguments], check=False)
        failed += done.returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
