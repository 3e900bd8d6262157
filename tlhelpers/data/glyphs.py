"""Printed characters, drawn from the fonts that matplotlib carries.

The source domain of the quick world.  Every font file is part of the matplotlib wheel, so the same
pixels come out on every machine, offline.  A *master* is one clean 48x48 drawing; the data set is
made of masters seen through `augment.Jitter`, which bends, moves and blurs them.

Upper and lower case share a class where print alone cannot tell them apart at unknown size
(C/c, O/o, ...): the 47-class merge of EMNIST (Cohen et al. 2017, "EMNIST: an extension of MNIST to
handwritten letters", arXiv:1702.05373).
"""

import string
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tlhelpers.data.augment import Jitter
from tlhelpers.data.examples import Examples, Splits

MASTER_SIZE = 48  # pixels; a third more than the 32 px canvas, so that enlarging does not blur
INK_SIZE = 40  # pixels; the longer side of the character itself

FONTS = (
    *(f"DejaVuSans{style}.ttf" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}.ttf" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}.ttf" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}.ttf" for style in ("", "Bol", "Italic", "BolIta")),
    *(f"{name}.ttf" for name in ("cmr10", "cmb10", "cmss10", "cmtt10")),
)

MERGED_CASES = "CIJKLMOPSUVWXYZ"  # lower and upper case are one class (EMNIST "balanced")
ALL_CLASSES = tuple(
    string.digits + string.ascii_uppercase + "".join(c for c in string.ascii_lowercase if c.upper() not in MERGED_CASES)
)
# Letters that a reader could take for a digit (O 0, I 1, Z 2, ...).  Without them, and without the
# digits themselves, a pretrained body has never seen anything like a target class.
DIGIT_LOOKALIKES = tuple("OILZEASTGBQDbqg")
LETTER_CLASSES = tuple(c for c in ALL_CLASSES if not c.isdigit() and c not in DIGIT_LOOKALIKES)

VALIDATION_FONTS = (6, 18)  # DejaVu Sans Mono Oblique, Computer Modern sans: no image of these in training
TEST_FONTS = (11, 14)  # DejaVu Serif Bold Italic, STIX Italic
TRAIN_FONTS = tuple(number for number in range(len(FONTS)) if number not in VALIDATION_FONTS + TEST_FONTS)

# How printed characters are bent, moved and worn, in pretraining and in the held-out parts alike.
GLYPH_JITTER = Jitter(degrees=15, scale=(0.6, 1.1), shear=0.3, bend=0.06, coarse=(9, 20), fade=0.4, noise=0.04)


def character_class(character: str) -> str:
    """The class of a character: itself, or its upper case where the two cases are merged."""
    return character.upper() if character.upper() in MERGED_CASES else character


@lru_cache(maxsize=1)
def _masters() -> tuple[Tensor, tuple[str, ...], Tensor]:
    """All drawings, uint8 [62 * fonts * 3, 1, 48, 48], the character and the font number of each row."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawings, characters, fonts = [], [], []
    for number, file in enumerate(FONTS):
        font = ImageFont.truetype(str(folder / file), size=96)
        for character in string.digits + string.ascii_letters:
            ink = Image.new("L", (192, 192))
            ImageDraw.Draw(ink).text((40, 40), character, fill=255, font=font)
            ink = ink.crop(ink.getbbox())
            # Every character fills the same box: size must not tell C from c.
            ink.thumbnail((INK_SIZE, INK_SIZE), Image.Resampling.LANCZOS)
            image = Image.new("L", (MASTER_SIZE, MASTER_SIZE))
            image.paste(ink, ((MASTER_SIZE - ink.width) // 2, (MASTER_SIZE - ink.height) // 2))
            drawings.append(np.asarray(image))
            characters.append(character)
            fonts.append(number)
    regular = torch.from_numpy(np.stack(drawings)).unsqueeze(1).float() / 255  # [R, 1, 48, 48]
    bold = F.max_pool2d(regular, 3, stride=1, padding=1)
    # A thin stroke: half way to the eroded drawing, because a full erosion would cut hairlines.
    thin = (regular - F.max_pool2d(-regular, 3, stride=1, padding=1)) / 2
    images = torch.cat([thin, regular, bold]).mul(255).round().to(torch.uint8)
    return images, tuple(characters) * 3, torch.tensor(fonts * 3)


def draw_masters(
    classes: tuple[str, ...] = ALL_CLASSES, *, fonts: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor]:
    """Clean drawings of some characters.

    Args:
        classes: characters to draw, each a member of `ALL_CLASSES`.
        fonts: positions in `FONTS`; all of them when None.

    Returns:
        images uint8 [N, 1, 48, 48] with white ink (255) on black, and labels int64 [N], the position
        of each drawing's class in `classes`.

    Raises:
        ValueError: a class that is not drawn, or a font number out of range.
    """
    unknown = [c for c in classes if c not in ALL_CLASSES]
    if unknown:
        raise ValueError(f"no drawings for the classes {unknown}; choose from {''.join(ALL_CLASSES)}")
    if fonts is not None and not all(0 <= f < len(FONTS) for f in fonts):
        raise ValueError(f"font numbers {fonts} must lie in 0..{len(FONTS) - 1}")
    images, characters, font_numbers = _masters()
    position = {c: i for i, c in enumerate(classes)}
    labels = torch.tensor([position.get(character_class(c), -1) for c in characters])
    keep = labels >= 0
    if fonts is not None:
        keep &= torch.isin(font_numbers, torch.tensor(fonts))
    return images[keep], labels[keep]


def glyph_masters(classes: tuple[str, ...] = ALL_CLASSES) -> Examples:
    """Clean 48x48 drawings in the training fonts, to be varied by `GLYPH_JITTER` while training."""
    x, y = draw_masters(classes, fonts=TRAIN_FONTS)
    return Examples("glyphs/masters", x, y, classes, torch.arange(len(x)))


def load_glyphs(classes: tuple[str, ...]) -> Splits:
    """Printed characters 32x32, each part in fonts of its own: 100 / 20 / 40 images per class."""
    parts = []
    for seed, (split, fonts, per_class) in enumerate(
        [("train", TRAIN_FONTS, 100), ("validation", VALIDATION_FONTS, 20), ("test", TEST_FONTS, 40)]
    ):
        generator = torch.Generator().manual_seed(seed)
        x, y = draw_masters(classes, fonts=fonts)
        rows = torch.cat([_draw_rows(y == label, per_class, generator) for label in range(len(classes))])
        # Jitter blurs the first half of what it gets: in order of class, that would mark the classes.
        rows = rows[torch.randperm(len(rows), generator=generator)]
        images = GLYPH_JITTER(x[rows], generator)
        parts.append(Examples(f"glyphs/{split}", images, y[rows], classes, torch.arange(len(rows))))
    return Splits(*parts)


def _draw_rows(members: Tensor, n: int, generator: torch.Generator) -> Tensor:
    rows = members.nonzero().flatten()
    return rows[torch.randint(len(rows), (n,), generator=generator)]
