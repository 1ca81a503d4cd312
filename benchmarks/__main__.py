"""`python -m benchmarks`: measure everything and print one table. It reads the command line, nothing else."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks import report
from benchmarks.measure import Result, is_installed, measure
from benchmarks.rows import PICTURE, ROWS, Peer, quickly

VENDOR = "agentphone==0.20.3"
DISTRIBUTION = "agentphone-0.20.3.dist-info"
"""What pip leaves beside it."""
ROOT = Path(__file__).parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 if a goal was missed."""
    parser = _parser()
    given = parser.parse_args(argv)
    if given.picture is not None and not is_installed("matplotlib"):
        parser.error("--picture needs matplotlib: pip install '.[bench]'")
    if given.rounds is not None and given.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {given.rounds}")
    if given.vendor is not None and not (given.vendor / DISTRIBUTION).exists():
        parser.error(f"--vendor {given.vendor} holds no {DISTRIBUTION}")
    began = time.monotonic()
    with _vendor(given.vendor, is_wanted=not given.without_vendor) as vendor:
        folders = {"ours": ROOT, "vendor": vendor, "other": given.against}
        found = {name: folder.resolve() for name, folder in folders.items() if folder is not None}
        missing = [package for package in ("aiohttp", "click", "dbos") if not is_installed(package)]
        if missing:
            print(f"Without {', '.join(missing)}: pip install '.[bench]' brings all.", file=sys.stderr)
        results = _measure_rows(given, found)
    measured = report.Report(results=results, took=round(time.monotonic() - began))
    print(measured.text(markdown=given.markdown))
    if given.json is not None:
        given.json.write_text(json.dumps(asdict(measured), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if given.picture is not None:
        measured.draw(given.picture, rows=given.row or PICTURE)
    return int(any(result.is_met is False for result in measured.results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Measure this SDK beside {VENDOR} (the vendor's), httpx, aiohttp, DBOS and what one would write by"
        " hand. Read the ratios: others use the machine, too. The exit status is 1 if a goal is not met.",
    )
    parser.add_argument("--quick", action="store_true", help="few rounds and smaller histories: about two minutes")
    parser.add_argument("--rounds", type=int, metavar="N", help="so many rounds of each row")
    parser.add_argument("--row", action="append", choices=[row.name for row in ROWS], help="only this one; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    picture = f"draw the rows given by --row, or {', '.join(PICTURE)}, as SVG or PNG"
    parser.add_argument("--picture", type=Path, metavar="FILE", help=picture)
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument(
        "--vendor",
        type=Path,
        metavar="FOLDER",
        help=f"where pip install --target has put {VENDOR}; without it, a temporary folder",
    )
    parser.add_argument("--without-vendor", action="store_true", help="leave the vendor's SDK out; no network needed")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout, as a peer in each row")
    return parser


def _measure_rows(given: argparse.Namespace, folders: Mapping[str, Path]) -> list[Result]:
    results = []
    for row in ROWS:
        if given.row and row.name not in given.row:
            continue
        print(f"{row.name} ...", file=sys.stderr, flush=True)
        if given.quick:
            row = quickly(row)
        if given.rounds is not None:
            row = replace(row, rounds=given.rounds)
        if given.against is not None:
            other = Peer(label=f"ours in {given.against}", library="other", size=row.ours.size)
            row = replace(row, peers=(*row.peers, other))
        results += measure(row, folders)
    return results


@contextmanager
def _vendor(folder: Path | None, *, is_wanted: bool) -> Iterator[Path | None]:
    """Yield the folder of the vendor's SDK, installed aside if needed: it has the same import name."""
    if folder is not None or not is_wanted:
        yield folder if is_wanted else None
        return
    with tempfile.TemporaryDirectory() as temporary:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", temporary, VENDOR]
        subprocess.run(install, check=True)
        yield Path(temporary)


if __name__ == "__main__":
    sys.exit(main())
