"""What anyone could do without a pretrained body: the baselines that a method has to beat."""

import itertools

import numpy as np
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from tlhelpers.data.examples import Examples, as_float
from tlhelpers.data.handwriting import crop_to_ink

COSTS = (1.0, 10.0)  # C of the SVM, to choose from on validation
GAMMAS = (1.0, 3.0, 10.0, 30.0, 100.0)  # of its kernel exp(-gamma * mean squared difference of pixels)


def pixel_baseline(train: Examples, validation: Examples, test: Examples, *, crop: bool | None = None) -> float:
    """Test accuracy of `pixel_scores`, the trivial baseline for characters.

    Args:
        crop: None takes whichever reads the validation part better, cropped or whole images.
    """
    tried = (False, True) if crop is None else (crop,)
    scores = [pixel_scores(train, validation, test, crop=one) for one in tried]
    _, test_accuracy = max(scores, key=lambda score: score[0])
    return test_accuracy


def pixel_scores(train: Examples, validation: Examples, test: Examples, *, crop: bool) -> tuple[float, float]:
    """Validation and test accuracy of an SVM on raw pixels; C and gamma are chosen by the former.

    Args:
        train, validation, test: images [N, C, H, W], float in [0, 1] or uint8; to be cropped, [N, 1, H, W].
        crop: cut every image to the bounding box of its ink first, which undoes place and size.
    """
    images = [as_float(examples.x) for examples in (train, validation, test)]
    pixels = [(crop_to_ink(x) if crop else x).flatten(1).numpy() for x in images]
    with threadpool_limits(1):
        # All settings share the squared distances of the kernel; SVC would compute them anew for each.
        among_train, to_validation, to_test = (
            euclidean_distances(rows, pixels[0], squared=True) / rows.shape[1] for rows in pixels
        )
        fits = []
        for cost, gamma in itertools.product(COSTS, GAMMAS):
            svm = SVC(C=cost, kernel="precomputed").fit(np.exp(-gamma * among_train), train.y)
            fits.append((svm.score(np.exp(-gamma * to_validation), validation.y), gamma, svm))
        validation_accuracy, gamma, svm = max(fits, key=lambda fit: fit[0])  # the first of equals
        return float(validation_accuracy), float(svm.score(np.exp(-gamma * to_test), test.y))
