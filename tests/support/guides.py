"""What the project documents with examples: the README, and the guides in the docstrings of the public modules."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

from agentphone.cli.docs import MODULES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def guide(module: str) -> str:
    """Return the docstring of a module, without importing it: some of them import large packages."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""


GUIDES = {"README": README} | {name: guide(name) for name in MODULES}
SHOWN = "\n".join(GUIDES.values())


def blocks(language: str, text: str = SHOWN) -> list[str]:
    """Return the fenced blocks of a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def file_name(block: str) -> str | None:
    """Return the name in a block's first line (`# views.py`), for a block that is one file of several."""
    name = re.match(r"# (\w+\.py)\n", block)
    return name[1] if name else None


FILES = {name: block for block in blocks("python") if (name := file_name(block))}
"""The blocks that are one file of several, by name."""
