"""Data: labelled examples, where they come from, and how they reach the loop in batches."""

from tlhelpers.data.augment import Jitter, random_flip
from tlhelpers.data.examples import Examples, Splits, as_float, check_dataset, few_shot, overlap
from tlhelpers.data.folders import read_folder
from tlhelpers.data.glyphs import (
    ALL_CLASSES,
    FONTS,
    GLYPH_JITTER,
    LETTER_CLASSES,
    TEST_FONTS,
    TRAIN_FONTS,
    VALIDATION_FONTS,
    draw_masters,
    glyph_masters,
)
from tlhelpers.data.handwriting import DIGIT_PLACEMENT, TARGET_JITTER, crop_to_ink
from tlhelpers.data.loaders import JointLoader, TensorLoader, make_loaders
from tlhelpers.data.messages import (
    Messages,
    load_messages,
    load_sst2,
    read_table,
    split_messages,
    text_examples,
)
from tlhelpers.data.named import DATASETS, load_dataset
from tlhelpers.data.strokes import Strokes, check_strokes, read_strokes, render, write_strokes
from tlhelpers.data.tokens import Tokens, length_order, load_tokens, minilm_folder, trimmed
