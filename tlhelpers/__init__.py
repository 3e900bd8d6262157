"""Helpers of a hands-on course on transfer learning.

A method of transfer learning is a model (a pretrained body plus a head, parts of it frozen), an
objective (what is optimised) and a loop (which never changes).  They meet in the notebook:

    runtime          device, precision, threads, seeds, caches, quick or full profile
    surgery          edit a model: heads, freezing, learning rates per part
    backbones        named pretrained bodies
    objectives       what is optimised, one factory per method
    alignment        objectives against a shift of domain
    pseudo_labels    target features that label themselves: prototypes, k-means, self-training
    transferability  how far apart two domains are, from features
    strategy         from a few measurements to a strategy, with reasons
    data             parts, splits, few-shot subsets, batches resident on the device
    downloads        files from the network, resumed and checked
    tensor_files     a tensor in a file, checked when read
    augment          random variation of whole batches of images
    glyphs           printed characters, drawn from matplotlib's fonts
    text             tokens, pooling and layers of a pretrained transformer
    messages         labelled texts
    folders          a folder of image files per class
    photos           CIFAR-10, MNIST, EMNIST
    datasets         named data sets
    train            the loop
    schedules        learning rates over a run
    progress         how far a run is
    checkpoint       stop and resume
    distributed      a batch in pieces: over processes, or over time
    features         run a frozen body once; probes
    feature_files    the same for data larger than memory
    plots            figures that also say themselves in words
    widgets          interactive versions of plain functions
    diagnose         checks that find silent mistakes in a training program
    scorebook        which exercises are solved: one small file
    checks           claims and exercises
    badges           launch badges, and the cell that installs the package where it is missing
    doctor           can the course run on this machine?
    cli              `python -m tlhelpers doctor | prefetch | progress | badges`
    exercises/       the questions of each page
    recipes/         the scripts that made the shipped weights and recorded results
    assets/          what they made, each with a card

Importing the package itself imports nothing else.
"""

__version__ = "0.1.0"
