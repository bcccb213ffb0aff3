# SPDX-License-Identifier: Apache-2.0
"""Put reports of benchmark_throughput.py that differ in one thing each into one JSON.

    python benchmarks/gpu/collect_throughput.py FOLDER --output-json FILE

A report's case is its file's name without the suffix.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def collect(folder: Path) -> dict[str, Any]:
    """The reports of a folder, and the machine that made them.

    Raises:
        ValueError: if there are none, or they are of several machines or days.
    """
    reports = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    machines = [report.pop("machine") for report in reports.values()]
    for report in reports.values():
        report["model_id"] = Path(report["model_id"]).name
    if not machines or any(machine != machines[0] for machine in machines):
        raise ValueError(f"{folder}: {len(machines)} reports, which must be of one machine and day")
    return {"machine": machines[0], "cases": reports}


def main() -> None:
    """Parse the command line, collect and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output-json", type=Path, required=True)
    options = parser.parse_args()
    report = collect(options.folder)
    options.output_json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
