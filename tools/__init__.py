"""What makes and tests the course around the package, and is not in the wheel: run one with `python -m tools.NAME`.

pages: execute the pages and save their outputs.  seeds: run them with other seeds.  badges: launch badges and
install cells.  kit: slides, student copies and the instructor's guide.  All run in the top folder.
"""

import re

PAGE_FILES = "[0-9]*.ipynb"  # of notebooks/; whatever else lies there is no page


def with_block(text: str, name: str, block: str) -> str:
    """A Markdown text with the block between `<!-- name -->` and `<!-- /name -->` made anew.

    Raises:
        ValueError: the text does not hold both marks, once each.
    """
    head, tail = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    new, found = re.subn(f"{head}.*{tail}", lambda _: head + block.strip("\n") + tail, text, flags=re.DOTALL)
    if not found or text.count(head) != 1 or text.count(tail) != 1:
        raise ValueError(f"the text needs a line '{head.strip()}' and below it a line '{tail.strip()}', once each")
    return new
