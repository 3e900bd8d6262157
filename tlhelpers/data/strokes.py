"""Drawings as strokes: what a hand did on a pad, the picture of it, and files of drawings with names.

A stroke is the list of points (x, y) that a pen passed without being lifted; x grows to the right and y
downwards, both from 0 to 1 across the pad.  A drawing is a list of strokes.
"""

import json
import reprlib
from collections.abc import Iterable
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tlhelpers.files import atomic

Strokes = list[list[tuple[float, float]]]

MAX_STROKES = 200  # in a drawing
MAX_POINTS = 10_000  # in a drawing; a minute of steady drawing has fewer

FORMAT = "signs 1"
MAX_SIGNS = 1000  # in a file
MAX_NAME = 40  # characters
MAX_BYTES = 20_000_000  # of a file; 24 drawings take about 14,000

# Shares of the picture's side.  Measured with 360 simulated drawings (two ways to write each digit, bent, turned and
# reduced at random) and the body "glyphs-all": how many are read rightly, in per cent; standard errors are about one.
#
#     longer side of the ink, of 32 pixels    20    23    27    29   MNIST's: 23, around the centre of mass
#     its own head, digits only             95.8  95.8  96.9  95.8   95.6
#     a probe on 3,000 digits of MNIST      98.3  98.1  97.8  96.7   97.2
#     a probe on 50, 5 draws                89.1  90.1  89.9  88.8   88.3
#     nearest mean, 3 drawings per class    95.7  96.0  96.5  96.3   96.0
#
# Pens of 2, 2.5 and 3 pixels differ by half a point at most.
INK = 27 / 32
PEN = 2.5 / 32
SMALLEST = 0.05  # of the pad; a finger that taps moves a little, and that is a dot, not a scribble to enlarge
AT_ONCE = 500  # segments whose distances to all pixels are in memory


def check_strokes(strokes: Any) -> Strokes:
    """A drawing from outside (a browser, a file) as lists of points of two floats.

    Args:
        strokes: lists or tuples in place of lists and points are taken too.

    Raises:
        ValueError: anything else than strokes, a point outside the pad, or more strokes or points than a hand draws.
    """
    if not isinstance(strokes, list | tuple):
        raise ValueError(f"strokes are {reprlib.repr(strokes)}; give a list of strokes, each a list of points (x, y)")
    if len(strokes) > MAX_STROKES:
        raise ValueError(f"{len(strokes)} strokes; draw with at most {MAX_STROKES}")
    for number, stroke in enumerate(strokes, start=1):
        if not isinstance(stroke, list | tuple) or len(stroke) == 0:
            raise ValueError(f"stroke {number} is {reprlib.repr(stroke)}; give a list of at least one point (x, y)")
    points = sum(len(stroke) for stroke in strokes)
    if points > MAX_POINTS:
        raise ValueError(f"{points} points; draw with at most {MAX_POINTS:,}")
    return [[_point(point, number) for point in stroke] for number, stroke in enumerate(strokes, start=1)]


def _point(point: Any, number: int) -> tuple[float, float]:
    """A point of stroke `number`, as two floats."""
    right = isinstance(point, list | tuple) and len(point) == 2 and all(map(_is_place, point))
    if not right:
        raise ValueError(f"stroke {number} holds the point {reprlib.repr(point)}; give two numbers from 0 to 1")
    return float(point[0]), float(point[1])


def _is_place(number: Any) -> bool:
    return isinstance(number, Real) and not isinstance(number, bool) and 0 <= number <= 1  # false for NaN


def render(strokes: Strokes, *, size: int = 32) -> Tensor:
    """The picture of a drawing as the networks of this course know signs: white ink on black, in the middle.

    The drawing is cut to its ink and scaled, its aspect kept, until the longer side takes 27 of 32 pixels; so it
    does not matter where on the pad it was drawn, nor how large.  What is smaller than a twentieth of the pad
    is a dot.

    Args:
        strokes: as `check_strokes` takes them; without a stroke the picture is black.
        size: pixels per side.

    Returns:
        float32 [1, size, size] in [0, 1].

    Raises:
        ValueError: as `check_strokes`, or a size below 8.
    """
    if size < 8:
        raise ValueError(f"size={size} shows no sign; give at least 8 pixels")
    strokes = check_strokes(strokes)
    if not strokes:
        return torch.zeros(1, size, size)
    starts, ends = _segments(_centred(strokes, size))
    reach = (PEN * size + 1) / 2 - _distances(starts, ends, size)  # an edge goes from 1 to 0 over the width of a pixel
    return reach.clamp(0, 1).reshape(1, size, size)


def _centred(strokes: Strokes, size: int) -> list[Tensor]:
    """Strokes [L, 2] in pixels, so scaled that pen and all they take INK of the picture, and in its middle."""
    paths = [torch.tensor(stroke) for stroke in strokes]
    low, high = torch.cat(paths).aminmax(dim=0)
    extent = max((high - low).max().item(), SMALLEST)
    scale = (INK - PEN) * size / extent  # the pen reaches half its width beyond the points, on either side
    return [(path - (low + high) / 2) * scale + size / 2 for path in paths]


def _segments(paths: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Start and end of each straight piece, both [S, 2]; the last point of a path makes a piece without length."""
    starts = torch.cat(paths)
    ends = torch.cat([torch.cat([path[1:], path[-1:]]) for path in paths])
    return starts, ends


def _distances(starts: Tensor, ends: Tensor, size: int) -> Tensor:
    """From the centre of each pixel to the nearest of the segments [S, 2], in pixels [size * size], row by row."""
    centre = torch.arange(size) + 0.5
    pixel_y, pixel_x = torch.cartesian_prod(centre, centre).unbind(dim=1)  # [P]
    nearest = torch.full((size * size,), float("inf"))
    for start, end in zip(starts.split(AT_ONCE), ends.split(AT_ONCE), strict=True):
        x, y = start.T.unsqueeze(2)  # [S, 1]
        along_x, along_y = (end - start).T.unsqueeze(2)
        away_x, away_y = pixel_x - x, pixel_y - y  # [S, P]
        length = (along_x**2 + along_y**2).clamp(min=1e-12)
        # Where on the segment the nearest point is, from 0 to 1.
        share = ((away_x * along_x + away_y * along_y) / length).clamp(0, 1)
        distance = torch.hypot(away_x - share * along_x, away_y - share * along_y)
        nearest = torch.minimum(nearest, distance.amin(dim=0))
    return nearest


def write_strokes(path: Path, signs: Iterable[tuple[str, Strokes]]) -> None:
    """Write named drawings to a file that `read_strokes` takes, all or nothing.

    Args:
        signs: name and strokes of each; a name may come several times.

    Raises:
        ValueError: what `read_strokes` would refuse.
        OSError: the file cannot be written.
    """
    checked = _check_signs(path, [{"name": name, "strokes": strokes} for name, strokes in signs])
    content = {"format": FORMAT, "signs": [{"name": name, "strokes": strokes} for name, strokes in checked]}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content), "utf-8")


def read_strokes(path: Path) -> list[tuple[str, Strokes]]:
    """Name and strokes of every drawing in a file of the form {"format": "signs 1", "signs": [{"name", "strokes"}]}.

    The file stays as it is, whatever it holds.

    Raises:
        ValueError: not such a file, or more in it than a hand draws; the message names the place.
        OSError: the file is not there or cannot be read.
    """
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise ValueError(f"{path} is no file; give one that write_strokes or the pad has written")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size / 1e6:.0f} MB; a file of signs has at most {MAX_BYTES / 1e6:.0f}")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # bytes that are not UTF-8 raise a ValueError too
        raise ValueError(f"{path} is not JSON ({error}); give a file that write_strokes has written") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("signs"), list):
        raise ValueError(f'{path} is no file of signs; it must hold {{"format": "{FORMAT}", "signs": [...]}}')
    return _check_signs(path, content["signs"])


def _check_signs(path: Path, signs: list) -> list[tuple[str, Strokes]]:
    """Name and strokes of the signs of a file.

    Raises:
        ValueError: a faulty one; the message says which.
    """
    if len(signs) > MAX_SIGNS:
        raise ValueError(f"{path}: {len(signs)} signs; keep at most {MAX_SIGNS} in a file")
    checked = []
    for number, sign in enumerate(signs, start=1):
        if not isinstance(sign, dict) or not {"name", "strokes"} <= sign.keys():
            raise ValueError(f"{path}, sign {number}: {reprlib.repr(sign)}; give its name and its strokes")
        name = sign["name"]
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
            raise ValueError(f"{path}, sign {number}: the name {reprlib.repr(name)}; give 1 to {MAX_NAME} characters")
        try:
            checked.append((name, check_strokes(sign["strokes"])))
        except ValueError as error:
            raise ValueError(f"{path}, sign {number} ({name!r}): {error}") from error
    return checked
