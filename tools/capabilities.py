"""Say how many of the capabilities of nova/compute are proven by tests, and which are not.

A test proves a capability by its mark, ``@pytest.mark.capability("API-7")``.  An id that nobody knows is an
error.  ``--missing`` lists what is not proven; ``--entry E22`` shows one entry only.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def known() -> dict[str, tuple[str, str, str]]:
    """id -> (entry, file, subject)."""
    lines = (ROOT / "tests/capabilities.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return {row[0]: (row[1], row[2], row[3]) for row in rows}


def _ids(node: ast.expr) -> list[str]:
    """The ids of ``pytest.mark.capability(...)``, or none for any other expression."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return []
    if node.func.attr != "capability":
        return []
    return [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]


def proven(tests: Path) -> dict[str, list[str]]:
    """id -> the tests that carry it."""
    result: dict[str, list[str]] = defaultdict(list)
    for path in sorted(tests.rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for decorator in node.decorator_list:
                    for each in _ids(decorator):
                        result[each].append(f"{path.relative_to(ROOT)}::{node.name}")
            elif (  # pytest.param(..., marks=pytest.mark.capability(...))
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "param"
            ):
                for keyword in node.keywords:
                    for each in _ids(keyword.value):
                        result[each].append(str(path.relative_to(ROOT)))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--missing", action="store_true", help="list what is not proven")
    parser.add_argument("--entry", help="one entry only, e.g. E22")
    chosen = parser.parse_args()
    all_known, found = known(), proven(ROOT / "tests")
    unknown = sorted(set(found) - set(all_known))
    if unknown:
        print(f"unknown capability ids: {', '.join(unknown)}", file=sys.stderr)
        return 1
    entries: dict[str, list[str]] = defaultdict(list)
    for each, (entry, _, _) in all_known.items():
        if chosen.entry in (None, entry):
            entries[entry].append(each)
    for entry, ids in sorted(entries.items()):
        done = [each for each in ids if each in found]
        print(f"{entry} {all_known[ids[0]][1]:<32} {len(done):>4} of {len(ids)}")
        if chosen.missing:
            for each in ids:
                if each not in found:
                    print(f"    {each:<12} {all_known[each][2]}")
    total = [each for ids in entries.values() for each in ids]
    print(f"{sum(each in found for each in total)} of {len(total)} capabilities are proven by tagged tests")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
