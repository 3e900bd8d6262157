"""Fetch what the full profile of the pages uses, for work without a network, and keep a list of it with digests."""

import json
import os
from pathlib import Path

from filelock import FileLock
from huggingface_hub import snapshot_download

from tlhelpers.data.photos import data_files
from tlhelpers.files import atomic, digest_of, fetch
from tlhelpers.models.photo_nets import CUTS, photo_weights
from tlhelpers.runtime import cache_dir, torch_home

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


def prefetch(pages: list[str], to: Path | None) -> int:
    """Fill the caches for these pages and write, or verify, `manifest.json`; 0 if everything is there, else 1.

    Args:
        pages: such as ["02", "03"]; if none of them needs anything, the answer is 1 too.
        to: a folder that then serves as TLHELPERS_CACHE, with torch/ as TORCH_HOME and huggingface/ as HF_HOME.
    """
    hub_cache = None
    if to is not None:
        to = to.expanduser().resolve()
        os.environ |= {"TLHELPERS_CACHE": str(to), "TORCH_HOME": str(to / "torch"), "HF_HOME": str(to / "huggingface")}
        hub_cache = to / "huggingface" / "hub"  # huggingface_hub has read HF_HOME when it was imported
    if idle := [page for page in pages if page not in NEEDS]:
        print(f"nothing to fetch for {', '.join(idle)}: the pages that need something are {', '.join(NEEDS)}")
    wanted = dict.fromkeys(name for page in pages for name in NEEDS.get(page, ()))
    missing = 0
    for name in wanted:
        try:
            files = _fetch_one(name, hub_cache)
            print(f"ok {name}: {_verified(files)}")
        except Exception as error:  # the next one may still work
            missing += 1
            print(f"NO {name}: {error}")
    if to is not None and wanted:
        print(f"To use it: TLHELPERS_CACHE={to} TORCH_HOME={to / 'torch'} HF_HOME={to / 'huggingface'}")
    return int(missing > 0 or not wanted)


def _fetch_one(name: str, hub_cache: Path | None) -> list[Path]:
    """The files that make up a body, a data set or a model of the hub; downloaded where they are missing."""
    if name in HUB:
        folder = snapshot_download(name, allow_patterns=HUB_FILES, cache_dir=hub_cache)
        return [path for path in Path(folder).rglob("*") if path.is_file()]
    if name in CUTS:
        remote = photo_weights(name)[1]
        return [fetch(remote, torch_home() / "hub" / "checkpoints" / remote.name)]
    return data_files(name)


def _verified(files: list[Path]) -> str:
    """Compare files with the manifest of the cache folder, and add those that it does not list yet.

    Raises:
        OSError: a file that changed since it was fetched; it is removed, so that a new run fetches it.
    """
    manifest = cache_dir() / "manifest.json"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{manifest}.lock"):  # two at once would each drop what the other has added
        listed = _listed(manifest)
        for path in files:
            key = os.path.relpath(path, cache_dir())
            digest = digest_of(path)
            if listed.setdefault(key, digest) != digest:
                blob = path.resolve()
                path.unlink()
                # The hub's cache keeps the bytes in blobs/, and a link to them in the model.
                if blob.parent.name == "blobs":
                    blob.unlink(missing_ok=True)
                raise OSError(f"{path} is not what was fetched before; it is removed, run this again")
        with atomic(manifest) as temporary:
            temporary.write_text(json.dumps(listed, indent=1, sort_keys=True), "utf-8")
    return f"{len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:,.0f} MB"


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
