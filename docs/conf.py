"""The documentation as a site: `make docs`.

The documents are those of the repository, in their places, and stay readable there. What Sphinx cannot do by itself is
below: a menu, the notebook as a page, links to folders, comments of fields as docstrings. Nothing is loaded from
elsewhere when the site is built or read, and it can be opened from the disk.
"""

import ast
import importlib.metadata
import inspect
import json
import pathlib
import re
import textwrap

ROOT = pathlib.Path(__file__).parents[1]
FRONT = "README"
# What the menu calls each page; so do links whose text is the page's file name.
MENU = {
    "Get started": {
        "docs/README": "All documents",
        "docs/notebooks/predict": "Notebook",
        "docs/own_data": "Your own data",
        "docs/own_task": "Your own task",
        "docs/own_method": "Your own method",
        "docs/own_backbone": "Your own backbone",
    },
    "Guides": {
        "tfds_pascal_context/README": "PASCAL-Context and NYUD",
        "docs/predict": "Looking at predictions",
        "docs/models": "Models and adapters",
        "docs/convert": "Weights of others",
        "docs/merging": "Merging",
        "docs/export": "Export",
        "docs/batch_jobs": "Batch jobs",
        "benchmarks/README": "Benchmarks",
    },
    "Reference": {
        "docs/api": "Python API",
        "docs/evaluation": "Evaluation",
        "docs/performance": "Performance",
        "docs/debugging": "Debugging",
        "docs/reliability": "Reliability",
        "docs/results": "Results",
    },
    "Project": {"CHANGELOG": "Changelog", "CONTRIBUTING": "Contributing", "SECURITY": "Security"},
}
NAMES = {page: name for pages in MENU.values() for page, name in pages.items()} | {FRONT: "README"}

project = "mtlora_jax"
author = "The mtlora_jax authors"
copyright = author
version = release = importlib.metadata.version(project)
root_doc = FRONT
include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/notebooks/*.ipynb",
    "tfds_pascal_context/README.md",
    "benchmarks/README.md",
]
source_suffix = {".md": "markdown", ".ipynb": "markdown"}

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4  # links to headings as on GitHub
highlight_language = "none"  # of code that names none
default_role = "code"  # of `names` in docstrings
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
python_maximum_signature_line_length = 100
napoleon_use_ivar = True
napoleon_custom_sections = ["Returns"]  # as text: before its first colon stands no type

html_theme = "furo"
html_title = f"mtlora_jax {version}"
html_favicon = "site/favicon.svg"
html_static_path = ["site/site.css"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = html_show_sphinx = False


def read(app, docname: str, source: list[str]) -> None:
    """Makes of a file what Sphinx reads."""
    text = notebook(source[0]) if app.env.doc2path(docname).suffix == ".ipynb" else source[0]
    folder = (ROOT / docname).parent

    def told(link: re.Match) -> str:
        words, target = link.groups()
        path = folder.joinpath(target).resolve()
        page = str(path.relative_to(ROOT).with_suffix("")) if path.is_relative_to(ROOT) else ""
        if path.is_dir():  # no page shows it
            return words
        return f"[{NAMES[page] if page in NAMES and target.endswith(words.removeprefix('../')) else words}]({target})"

    text = re.sub(r"(?<!!)\[([^\[\]]+)\]\(([^)\s#:]+)\)", told, text)
    if docname == FRONT:
        for caption, pages in MENU.items():
            lines = [f"{name} <{page}>" for page, name in pages.items()]
            text += "\n".join(["\n\n```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```"])
    source[0] = text


def notebook(text: str) -> str:
    """Markdown of a notebook and its outputs."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        printed = ""  # in lines that came one by one
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![What this code draws](data:image/png;base64,{''.join(data['image/png'].split())})")
            else:
                printed += "".join(output.get("text", ())) or "".join(data.get("text/plain", ()))
        if printed.strip():
            parts.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(parts)


def fields(app, what: str, name: str, owner: object, options: object, lines: list[str]) -> None:
    """Adds the fields of a class, each with the comment that ends its line, to a docstring that does not tell them."""
    if what != "class" or "Attributes:" in lines:
        return
    source = textwrap.dedent(inspect.getsource(owner)).splitlines()
    told = []
    for node in ast.parse("\n".join(source)).body[0].body:
        if isinstance(node, ast.AnnAssign) and not ast.unparse(node.target).startswith("_"):
            comment = source[node.end_lineno - 1][node.end_col_offset :].partition("#")[2].strip()
            told.append(f"    {ast.unparse(node.target)} ({ast.unparse(node.annotation)}): {comment}")
    if told:
        lines += ["", "Attributes:", *told, ""]


def front_page(app, error: Exception | None) -> None:
    """Servers and people look for index.html."""
    if error is None:
        there = f'<meta http-equiv="refresh" content="0; url={FRONT}.html"><a href="{FRONT}.html">{project}</a>'
        (pathlib.Path(app.outdir) / "index.html").write_text(f"<!DOCTYPE html><title>{project}</title>{there}\n")


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", fields, priority=1)  # before napoleon, which reads sections
    app.connect("build-finished", front_page)
