"""No file above 500 lines, no function above 60, no module whose name says nothing."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE, FUNCTION = 500, 60
EMPTY_NAMES = {"manager", "helper", "helpers", "util", "utils", "base", "common"}


def complaints(path: Path, text: str) -> list[str]:
    """What is too long, or named by nothing, in one file."""
    found = []
    lines = text.count("\n")
    if lines > FILE:
        found.append(f"{path}: {lines} lines, at most {FILE}")
    if path.stem in EMPTY_NAMES:
        found.append(f"{path}: name it by what is in it, not '{path.stem}'")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > FUNCTION:
                found.append(f"{path}:{node.lineno}: {node.name} has {length} lines, at most {FUNCTION}")
    return found


def main() -> int:
    found = []
    for folder in ("src", "tests", "bench", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found += complaints(path.relative_to(ROOT), path.read_text())
    print("\n".join(found) or "sizes are fine")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
