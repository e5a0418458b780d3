"""Builds the sample distribution's wheel by hand: it installs without network or back end."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def install(
    folder: Path,
    *,
    distribution: str = "sample-plugin",
    pass_name: str = "annotate",
    target: str = "sample_pass:Annotate",
) -> Path:
    """Install the distribution with pip into ``folder`` / site and return that folder."""
    stem = distribution.replace("-", "_") + "-1.0"
    wheel = folder / f"{stem}-py3-none-any.whl"
    files = {
        "sample_pass.py": (HERE / "sample_pass.py").read_text(),
        f"{stem}.dist-info/METADATA": METADATA.format(name=distribution),
        f"{stem}.dist-info/WHEEL": WHEEL,
        f"{stem}.dist-info/entry_points.txt": f"[converter.passes]\n{pass_name} = {target}\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{stem}.dist-info/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, f"{stem}.dist-info/RECORD": record}.items():
            archive.writestr(name, text)
    site = folder / "site"
    switches = ["--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
    command = ["-m", "pip", "install", *switches, "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, *command], check=True)
    return site
