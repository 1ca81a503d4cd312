"""`python -m benchmarks`: measure everything and print one table. It reads the command line, nothing else."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.measure import Result, measure
from benchmarks.report import describe_machine, table
from benchmarks.rows import ROWS, Peer, Row

VENDOR = "agentphone==0.20.3"
ROOT = Path(__file__).parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and say by the exit status whether all goals were met."""
    given = _parser().parse_args(argv)
    began = time.monotonic()
    results: list[Result] = []
    with _vendor(given.vendor, is_wanted=not given.without_vendor) as vendor:
        folders = {"ours": ROOT, "dependencies": ROOT, "vendor": vendor, "other": given.against}
        found = {name: folder.resolve() for name, folder in folders.items() if folder is not None}
        for row in _chosen(given.row, vendor=vendor is not None, against=given.against):
            print(f"{row.name} ...", file=sys.stderr, flush=True)
            results += measure(row, found, quick=given.quick)
    print(table(results))
    print(f"\n{describe_machine()}; {time.monotonic() - began:.0f} s")
    if given.json is not None:
        told = {"machine": describe_machine(), "results": [asdict(each) | {"is_met": each.is_met} for each in results]}
        given.json.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(any(result.is_met is False for result in results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Measure this SDK beside {VENDOR} (the vendor's), httpx and aiohttp. Read the ratios: others use"
        " the machine, too. The exit status is 1 if a goal is not met.",
    )
    parser.add_argument("--quick", action="store_true", help="do with few rounds: less than a minute")
    parser.add_argument("--row", action="append", choices=[row.name for row in ROWS], help="only this one; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    parser.add_argument(
        "--vendor",
        type=Path,
        metavar="FOLDER",
        help=f"where pip install --target has put {VENDOR}; else it is put into a temporary folder",
    )
    parser.add_argument("--without-vendor", action="store_true", help="leave the vendor's SDK out: without a network")
    parser.add_argument(
        "--against", type=Path, metavar="FOLDER", help="another checkout of this SDK, as a peer in each row"
    )
    return parser


def _chosen(names: Sequence[str] | None, *, vendor: bool, against: Path | None) -> Iterator[Row]:
    for row in ROWS:
        if not names or row.name in names:
            peers = [peer for peer in row.peers if vendor or peer.library != "vendor"]
            if against is not None:
                peers.append(Peer(label=f"ours in {against}", library="other", size=row.ours.size))
            yield replace(row, peers=tuple(peers))


@contextmanager
def _vendor(folder: Path | None, *, is_wanted: bool) -> Iterator[Path | None]:
    """Give where the vendor's SDK is, installing it aside if need be: it has our import name."""
    if folder is not None or not is_wanted:
        yield folder if is_wanted else None
        return
    with tempfile.TemporaryDirectory() as temporary:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", temporary, VENDOR]
        subprocess.run(install, check=True)
        yield Path(temporary)


if __name__ == "__main__":
    sys.exit(main())
