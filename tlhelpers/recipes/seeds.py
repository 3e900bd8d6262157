"""Run the pages with other seeds and name every claim that fails: `python -m tlhelpers.recipes.seeds [PAGE ...]`.

Each page runs in a fresh kernel under `TLHELPERS_SEED`, which shifts the seeds of everything that draws
at random (`runtime.shifted`).  A cell that fails is reported and the page goes on, so that one run shows all.
Pages are not written.  A check that a live number equals, or falls near, a recorded one *of the same
seed* is a claim about seed 0 alone; such a check fails here, and the report shows it as what it is.
Run it from the top folder.  The exit status is 1 if a cell failed.
"""

import argparse
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def failures(path: Path, seed: int) -> list[str]:
    """Run one page with `TLHELPERS_SEED`; returns "cell N: the error" for every cell that fails."""
    page = nbformat.read(path, as_version=4)
    client = NotebookClient(
        page,
        timeout=600,
        kernel_name="python3",
        allow_errors=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute(env=os.environ | {"TLHELPERS_SEED": str(seed)})
    return [
        f"cell {number}: {output.ename}: {COLOUR.sub('', output.evalue)}"
        for number, cell in enumerate(page.cells)
        for output in cell.get("outputs", [])
        if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", [])
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", type=Path, help="notebook files; all of notebooks/ when none is named")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="values of TLHELPERS_SEED")
    asked = parser.parse_args()
    count = 0
    for path in asked.pages or sorted(Path("notebooks").glob("[0-9]*.ipynb")):
        for seed in asked.seeds:
            found = failures(path, seed)
            count += len(found)
            print(f"{path.name}, seed {seed}: {len(found)} cells failed", *found, sep="\n    ", flush=True)
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
