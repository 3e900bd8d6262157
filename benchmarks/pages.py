"""Row 4: the seconds of every page, as `make notebooks` measured and saved them in the page itself."""

import json
from pathlib import Path

from benchmarks.timing import save, summary
from tools import PAGE_FILES

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def main() -> None:
    pages = sorted(NOTEBOOKS.glob(PAGE_FILES))
    facts = {page.stem: json.loads(page.read_text("utf-8"))["metadata"]["tlcourse"] for page in pages}
    seconds = {name: found["seconds"] for name, found in facts.items() if "seconds" in found}
    rows = {"pages/slowest": summary([max(seconds.values())]), "pages/all": summary([sum(seconds.values())])}
    save("pages", rows, {"seconds": seconds})


if __name__ == "__main__":
    main()
