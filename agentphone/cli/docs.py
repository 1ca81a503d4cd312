"""`agentphone docs`: write the reference as static HTML, from the docstrings of the public modules."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any, get_type_hints

import click

from agentphone.cli._base import Command

MODULES = (
    "agentphone",
    "agentphone.models",
    "agentphone.errors",
    "agentphone.webhooks",
    "agentphone.inbox",
    "agentphone.agents",
    "agentphone.export",
    "agentphone.mcp",
    "agentphone.sandbox",
    "agentphone.sandbox.server",
    "agentphone.pytest_plugin",
)
"""What is rendered: the public modules."""
EXAMPLES = """\
examples:
  agentphone docs                    write it to the directory agentphone-docs
  agentphone docs --out public/api   write it elsewhere
"""


@click.command(cls=Command, examples=EXAMPLES)
@click.option(
    "--out",
    "directory",
    metavar="DIR",
    default="agentphone-docs",
    show_default=True,
    type=click.Path(file_okay=False),
    help="The directory to write to; created if it does not exist.",
)
def docs(directory: str) -> int:
    """Write the reference of this SDK as HTML.

    The pages are static: open index.html in a browser. It needs the extra packages of `docs`.
    """
    from pathlib import Path

    pdoc = importlib.import_module("pdoc")
    modules = [importlib.import_module(name) for name in MODULES]
    pages = render(pdoc, modules)
    for name, text in pages.items():
        path = Path(directory) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    sys.stdout.write(f"Wrote {len(modules)} modules: open {Path(directory) / 'index.html'} in a browser.\n")
    return 0


def render(pdoc: Any, modules: list[ModuleType]) -> dict[str, str]:
    """Return the pages, each under its path.

    Args:
        pdoc: The module pdoc.
        modules: The modules to render.
    """
    agentphone = importlib.import_module("agentphone")
    # The annotations of a named tuple's `__new__` are names of a module that pdoc cannot find.
    agentphone.NewMessage.__new__.__annotations__ = get_type_hints(agentphone.NewMessage)
    pdoc.render.configure(docformat="google", show_source=False, include_undocumented=False)
    for module in modules:
        _load_public_names(module)
    documented = {module.__name__: pdoc.doc.Module(module) for module in modules}
    pages = {name.replace(".", "/"): pdoc.render.html_module(page, documented) for name, page in documented.items()}
    pages["index"] = pdoc.render.html_index(documented)
    return {f"{name}.html": text for name, text in pages.items()} | {"search.js": pdoc.render.search_index(documented)}


def _load_public_names(module: ModuleType) -> None:
    """Load what a module has under its public names: pdoc finds only what is there already."""
    if module.__name__ in ("agentphone.errors", "agentphone.models"):  # without `__all__`: `agentphone` has it for them
        agentphone = importlib.import_module("agentphone")
        public = [(name, getattr(agentphone, name)) for name in agentphone.__all__]
        names = [name for name, value in public if getattr(value, "__module__", "") == module.__name__]
        vars(module)["__all__"] = names
    for name in getattr(module, "__all__", ()):
        getattr(module, name)
