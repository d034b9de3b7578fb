"""A scenario that test_link_faults runs within a network namespace: the interface goes down and up."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from proving_ground.faults.ground import ProvingGround

OUTAGES = 4


def main(folder: Path) -> int:
    """0 where nothing was lost."""
    with ProvingGround(folder, seed=25) as ground:
        ground.add_collector()
        ground.add_vehicle(count=60, rate=15)
        for number in range(OUTAGES):
            time.sleep(0.5)
            subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
            time.sleep(0.5 + number)
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        settled = ground.settle()
        result = ground.audit()
    sys.stdout.write(f"{settled} {result}\n")
    return 0 if settled and result.sound and result.stored == 60 else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
