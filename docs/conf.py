"""The static site, `make site`: Sphinx reads the pages with their saved outputs and loads nothing from elsewhere.

The source folder is the top folder of the repository, so that links in a page mean the same here
as in JupyterLab.
"""

import json
import re

from sphinx.application import Sphinx

project = "Transfer learning, hands on"
copyright = "the authors; text and figures CC BY 4.0, code BSD 3-Clause"
html_title = project
language = "en"
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx-mathjax-offline"]
root_doc = "docs/index"
include_patterns = ["docs/index.md", "docs/instructors.md", "notebooks/*.ipynb"]
exclude_patterns = [".venv", "build"]
html_theme = "furo"
html_static_path = revealjs_static_path = ["_static"]
revealjs_style_theme = "white"  # carries its fonts; for `make slides`, as is the next line
revealjs_css_files = ["slides.css"]
html_copy_source = False

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # no widget is saved, and the default is a script of another host
nb_merge_streams = True
nb_mime_priority_overrides = [("revealjs", "image/png", 10), ("revealjs", "image/svg+xml", 10)]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3


def add_alt_texts(app: Sphinx, docname: str, source: list[str]) -> None:
    """Give figures the alt text that `plots.show` has saved; myst-nb reads it from the cell instead."""
    if app.env.doc2path(docname).suffix != ".ipynb":
        return
    page = json.loads(source[0])
    for cell in page["cells"]:
        saved = [output.get("metadata", {}) for output in cell.get("outputs", [])]
        figures = [facts.get("image/png") or facts.get("image/svg+xml") or {} for facts in saved]
        words = [facts["alt"] for facts in figures if "alt" in facts]
        if words:
            cell["metadata"]["mystnb"] = {"image": {"alt": " ".join(words)}}
    source[0] = json.dumps(page)


def finish_body(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object) -> None:
    """Links that a cell printed lead to pages of the site; code and outputs too wide can be scrolled with keys."""
    body = re.sub(r'(href="[^":]*)\.ipynb\b', r"\1.html", context.get("body", ""))
    context["body"] = body.replace("<pre>", '<pre tabindex="0">')


def setup(app: Sphinx) -> None:
    app.connect("html-page-context", finish_body)
    app.connect("source-read", add_alt_texts)
