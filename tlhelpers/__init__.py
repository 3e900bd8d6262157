"""Helpers of a hands-on course on transfer learning.

Data go into a model, an objective says what is learnt, training learns it, analysis says what came of it,
the course tells it.

    data/                  labelled examples, where they come from, batches of them
        examples           Examples, Splits, few-shot subsets, a look at what is suspicious
        loaders            batches from memory, for one task or several
        named              data sets by name
        glyphs             printed characters, drawn from fonts
        handwriting        MNIST and the UCI digits
        photos             CIFAR-10, MNIST, EMNIST
        folders            a folder of pictures per class
        messages           labelled texts
        tokens             texts as token ids
        strokes            what a hand drew on a pad, its picture, files of it
        augment            random variation of whole batches of images
    models/                pretrained bodies, and the surgery on them
        backbones          bodies by name
        normalize          the first child of every body for images
        glyphnet           the small network of the shipped weights
        photo_nets         torchvision's ImageNet networks without their classifiers
        encoders           transformers for texts
        surgery            heads, freezing, learning rates per part, mixed weights
    objectives/            what is learnt, one factory per method
        supervised         classification, and a pull towards the start
        multitask          several tasks at once, gradients in conflict
        distillation       a student learns from a teacher
        adaptation         objectives against a shift of domain
    training/              the loop, and what stands beside it
        loop               fit, evaluate, accuracy
        schedules          learning rates over a run
        history            what a run has logged, and how far it is
        checkpoint         stop and resume
        distributed        a batch in pieces, over processes or over time
        device             tensors on a device, and its precision
    analysis/              what came of it
        features           run a frozen body once, and keep what comes out
        probes             simple classifiers on features
        baselines          what anyone could do without a body
        transferability    how far apart domains are, how well a source will serve
        pseudo_labels      prototypes, k-means, self-training
        diagnose           checks that find silent mistakes
        strategy           from a few measurements to a strategy, with reasons
    course/                what a page is made of
        page               set up, claims, the machine
        exercise           questions that answer back
        exercises          the questions, a file per page
        scorebook          which exercises are solved: one small file
        overview           all questions beside the scorebook
        plots              figures that also say themselves in words
        drawings           networks as rows of boxes
        widgets            menus over plain functions
        pad                a pad to draw on, and what a network reads
        prefetch           fill the caches, to work without a network
    experiments/           one script per recorded result and shipped weight
        pretraining        the shipped bodies
        label_curve        pages 00 and 02
        fine_tuning        page 03
        text               page 04
        multi_task         page 05
        distillation       page 06
        text_distillation  page 06, a student for texts
        domain_adaptation  page 07
        choosing_a_source  page 08
        full_scale         real photographs and weights
        bug_clinic         plumbing of page 14
        strategies         the ways to use a body, a function each
        records            choose a setting, write down what came out
    files                  one way to write a file, one way to fetch one
    modules                a layer that is listened to, modes that are put back
    runtime                device, cores, profile, seeds, caches
    doctor                 can the course run on this machine?
    __main__               `python -m tlhelpers doctor | prefetch | progress`
    assets/                shipped weights, data and records, each with a card

Who may import whom is in pyproject.toml.  Importing the package itself imports nothing else.
"""

__version__ = "0.1.0"
