"""`python -m tlhelpers doctor | prefetch | progress | badges`: machine, downloads, exercises solved, launch badges.

torch is imported inside the functions: the doctor must be able to speak when it is broken.
"""

import argparse
import json
import os
import re
from pathlib import Path

from tlhelpers.course.doctor import doctor

# What the full profile of a page uses: bodies for photographs, data sets, models of the hub.
NEEDS = {
    "02": ("resnet50", "squeezenet1_0", "cifar10"),
    "03": ("vgg16", "cifar10"),
    "04": ("google-bert/bert-base-uncased",),
    "05": ("mnist", "emnist-letters"),
    "06": ("resnet50", "cifar10"),
}
HUB = ("google-bert/bert-base-uncased",)
HUB_FILES = ["*.json", "*.txt", "model.safetensors"]  # never the pickled weights


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tlhelpers", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="check Python, packages, GPU, memory, disk, caches, network and kernels")
    fill = commands.add_parser("prefetch", help="download what the full profile uses, to work offline later")
    fill.add_argument("--pages", help="such as 02,03; all pages when left out")
    fill.add_argument("--profile", choices=("quick", "full"), default="full", help="quick needs nothing")
    fill.add_argument("--to", type=Path, metavar="DIR", help="one folder for everything, to be shared")
    solved = commands.add_parser("progress", help="show which exercises are solved, or make a table of a class")
    solved.add_argument("files", nargs="*", type=Path, help="progress files of learners; your own when left out")
    solved.add_argument("--csv", type=Path, metavar="FILE", help="write one row per learner and question")
    launch = commands.add_parser("badges", help="write launch badges and install cells into README.md and the pages")
    launch.add_argument("--repo", metavar="OWNER/NAME", help="on GitHub; the one that pyproject.toml keeps if left out")
    launch.add_argument("--ref", default="main", metavar="TAG", help="better a tag than a branch: Binder builds once")
    launch.add_argument("--remove", action="store_true", help="take everything out again")
    asked = parser.parse_args(arguments)
    if asked.command == "badges":
        try:
            return badges(asked.repo, asked.ref, remove=asked.remove)
        except (ValueError, OSError) as error:
            parser.error(str(error))
    if asked.command == "doctor":
        return doctor()
    if asked.command == "progress":
        return progress(asked.files, asked.csv)
    pages = asked.pages.split(",") if asked.pages else list(NEEDS)
    if unknown := [page for page in pages if not re.fullmatch(r"\d\d", page)]:
        parser.error(f"--pages {','.join(unknown)}: give two digits per page, such as 02,03")
    return prefetch(pages if asked.profile == "full" else [], asked.to)


def prefetch(pages: list[str], to: Path | None) -> int:
    """Fill the caches for these pages and write, or verify, `manifest.json`; 0 if everything is there.

    Args:
        to: a folder that then serves as TLHELPERS_CACHE, with torch/ as TORCH_HOME and huggingface/ as HF_HOME.
    """
    if to is not None:
        to = to.expanduser().resolve()
        os.environ |= {"TLHELPERS_CACHE": str(to), "TORCH_HOME": str(to / "torch"), "HF_HOME": str(to / "huggingface")}
    wanted = dict.fromkeys(name for page in pages for name in NEEDS.get(page, ()))
    if not wanted:
        print("nothing to fetch: the quick profile is inside the package")
    missing = 0
    for name in wanted:
        try:
            files = _fetch_one(name)
            print(f"ok {name}: {_verified(files)}")
        except Exception as error:  # the next one may still work
            missing += 1
            print(f"NO {name}: {error}")
    if to is not None and wanted:
        print(f"To use it: TLHELPERS_CACHE={to} TORCH_HOME={to / 'torch'} HF_HOME={to / 'huggingface'}")
    return int(missing > 0)


def progress(files: list[Path], table: Path | None) -> int:
    """Show what is solved; several files are the books of several learners, named by their paths."""
    from tlhelpers.course import scorebook

    if missing := [path for path in files if not path.exists()]:
        print(f"{', '.join(map(str, missing))}: no such file; give the {scorebook.FILE} of each learner")
        return 1
    books = {str(path): scorebook.read(path) for path in files} or {"me": scorebook.collected()}
    if table is not None:
        with table.open("w", encoding="utf-8", newline="") as to:
            scorebook.export(books, to)
        print(f"{table}: {len(books)} learner(s)")
        return 0
    for learner, solved in books.items():
        print(f"{learner}: {len(solved)} of {sum(map(len, scorebook.questions().values()))} exercises")
    if not files:
        scorebook.show()
    return 0


def badges(repository: str | None, ref: str, *, remove: bool) -> int:
    """Write or remove badges in the working folder.

    Raises:
        ValueError: a wrong address, or none.
        OSError: the working folder is not the top folder of the course.
    """
    from tools.badges import address, remove_badges, write_badges

    if remove:
        remove_badges(Path())
        return 0
    if repository is None:
        if (kept := address(Path())) is None:
            raise ValueError("no address is kept yet; give --repo OWNER/NAME --ref TAG")
        repository, ref = kept
    write_badges(Path(), repository, ref)
    print(f"badges and install cells lead to {repository} at {ref}")
    return 0


def _fetch_one(name: str) -> list[Path]:
    """The files that make up a body, a data set or a model of the hub; downloaded where they are missing."""
    if name in HUB:
        from huggingface_hub import snapshot_download

        return [p for p in Path(snapshot_download(name, allow_patterns=HUB_FILES)).rglob("*") if p.is_file()]
    from tlhelpers.models.backbones import CUTS, photo_weights
    from tlhelpers.files import fetch
    from tlhelpers.data.photos import data_files
    from tlhelpers.runtime import torch_home

    if name in CUTS:
        remote = photo_weights(name)[1]
        return [fetch(remote, torch_home() / "hub" / "checkpoints" / remote.name)]
    return data_files(name)


def _verified(files: list[Path]) -> str:
    """Compare files with the manifest of the cache folder, and add those that it does not list yet.

    Raises:
        OSError: a file that changed since it was fetched; it is removed, so that a new run fetches it.
    """
    from filelock import FileLock

    from tlhelpers.files import digest_of
    from tlhelpers.runtime import cache_dir

    manifest = cache_dir() / "manifest.json"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{manifest}.lock"):  # two at once would each drop what the other has added
        listed = _listed(manifest)
        for path in files:
            key = os.path.relpath(path, cache_dir())
            digest = digest_of(path)
            if listed.setdefault(key, digest) != digest:
                path.unlink()
                raise OSError(f"{path} is not what was fetched before; it is removed, run this again")
        aside = manifest.with_suffix(".part")
        aside.write_text(json.dumps(listed, indent=1, sort_keys=True), "utf-8")
        os.replace(aside, manifest)
    return f"{len(files)} files, {sum(p.stat().st_size for p in files) / 1e6:,.0f} MB"


def _listed(manifest: Path) -> dict[str, str]:
    """File -> sha256, as an earlier run wrote it."""
    if not manifest.exists():
        return {}
    try:
        listed = json.loads(manifest.read_text("utf-8"))
    except ValueError as error:
        raise OSError(f"{manifest} is damaged ({error}); remove it, and it is written anew") from error
    if not isinstance(listed, dict):
        raise OSError(f"{manifest} is damaged (it holds no table of files); remove it, and it is written anew")
    return listed
