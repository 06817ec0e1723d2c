"""The torch-free install: its size on disk, and the memory of one `edgecnn predict`."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, demo_bundle, environment, print_machine

# Runs the command in this very process and prints its peak resident memory at the end.
MEASURED = """
import pathlib, sys
from edgecnn.cli import cli
cli.main(sys.argv[1:], standalone_mode=False)
print(pathlib.Path("/proc/self/status").read_text(), file=sys.stderr)
"""


def size_of(folder: Path) -> int:
    """Add up what the files below a folder take on the disk, in bytes."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if not path.is_dir())


def main() -> None:
    """Install into a fresh environment and measure."""
    print_machine()
    bundle = demo_bundle()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        before = size_of(Path(folder))
        python = Path(folder) / "bin" / "python"
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        constraint = ROOT / "deploy" / "box.txt"
        # Without --no-compile pip writes byte code for every module, 37 MB of it for what never runs.
        subprocess.run([*pip, "--no-compile", "--constraint", constraint, f"{ROOT}[cpu]"], check=True)
        golden = bundle / "goldens" / "000.png"
        command = [python, "-c", MEASURED, "predict", bundle, golden]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment())
        peak = re.search(r"VmHWM:\s+(\d+) kB", done.stderr)
        if peak is None:
            raise SystemExit("no VmHWM in /proc/self/status")
        added = size_of(Path(folder)) - before
        print(
            f"disk: {added / 1e6:.0f} MB added by pip install --no-compile -c deploy/box.txt '.[cpu]' and one run (150 wanted)"
        )
        print(f"memory: {int(peak.group(1)) * 1024 / 1e6:.0f} MB peak of `edgecnn predict BUNDLE one.png` (80 wanted)")


if __name__ == "__main__":
    main()
