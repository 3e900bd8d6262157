from dataclasses import replace

import pytest
import torch
from toys import differing, weights_of

from tlhelpers.data import overlap
from tlhelpers.experiments import domain_adaptation as experiment
from tlhelpers.experiments.records import read_record
from tlhelpers.objectives import classification, dann


@pytest.fixture(scope="module")
def pair() -> experiment.Pair:
    """The smallest pair, and of it one step of training."""
    return replace(experiment.pairs()["plain print to handwriting"], steps=1)


@pytest.fixture(scope="module")
def blind(pair) -> experiment.Pair:
    """The same images, every target label replaced by 0."""
    hidden = {name: getattr(pair, name) for name in ("unlabelled", "test")}
    return replace(pair, **{name: replace(part, y=torch.zeros_like(part.y)) for name, part in hidden.items()})


def test_no_pair_shares_images_between_what_is_adapted_to_and_what_is_scored():
    for pair in experiment.pairs().values():
        assert len(overlap(pair.unlabelled.x, pair.test.x)) == 0
        assert len(overlap(torch.cat([pair.sample.x, pair.validation.x]), pair.unlabelled.x)) == 0
        assert len(pair.unlabelled) >= experiment.UNLABELLED
        assert pair.source.classes == pair.sample.classes == pair.unlabelled.classes == pair.test.classes


def test_no_method_on_features_reads_a_label_of_the_target(pair, blind, monkeypatch):
    monkeypatch.setattr(experiment, "SAMPLE", 150)
    monkeypatch.setattr(experiment, "UNLABELLED", 150)
    model = experiment.train(pair, None, seed=0, lr=1e-2)
    with_labels, without = (experiment.on_features(one, model, seed=0) for one in (pair, blind))
    for name, outcome in with_labels.items():
        assert torch.equal(outcome["predictions"], without[name]["predictions"]), name
    # The check can fail: the score does read them.
    plain = {"source only": with_labels["source only"]}
    assert experiment.score(pair, plain, seed=0) != experiment.score(blind, plain, seed=0)


@pytest.mark.parametrize("method", ["both in one batch", *experiment.WEIGHTS])
def test_training_and_the_choice_of_weights_read_no_label_of_the_target(pair, blind, method):
    one, other = (experiment.aligned(p, method, seed=3, lr=1e-2, weight=0.5) for p in (pair, blind))
    assert torch.equal(one.head.weight, other.head.weight)
    assert experiment.reverse_validation(pair, one, seed=3) == experiment.reverse_validation(blind, other, seed=3)


def test_adabn_edits_a_copy(pair):
    model = experiment.new_model(pair)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    experiment.with_own_statistics(pair, model, seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_that_calls_everything_one_class_scores_0_in_reverse_validation(pair):
    model = experiment.new_model(pair)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.arange(10.0))
    assert experiment.reverse_validation(pair, model, seed=0) == 0.0


def test_draws_depend_on_their_seed_alone_and_may_ask_for_too_many(pair):
    assert torch.equal(experiment.draw(pair.test, 9, seed=1).indices, experiment.draw(pair.test, 9, seed=1).indices)
    assert len(experiment.draw(pair.test, 10_000, seed=1)) == len(pair.test)


def test_another_seed_of_the_course_draws_other_images(pair, monkeypatch):
    drawn = {}
    for shift in ("0", "1"):
        monkeypatch.setenv("TLHELPERS_SEED", shift)
        drawn[shift] = experiment.draw(pair.test, 9, seed=1).indices
    assert not torch.equal(drawn["0"], drawn["1"])


def test_the_discriminator_learns_together_with_the_network(pair, monkeypatch):
    discriminators = []  # and their weights before training

    def noted(discriminator, *, weight):
        discriminators.append((discriminator, weights_of(discriminator)))
        return dann(discriminator, weight=weight)

    monkeypatch.setattr(experiment, "dann", noted)
    experiment.aligned(pair, "DANN", seed=0, lr=1e-2, weight=1.0)
    ((discriminator, before),) = discriminators
    assert differing(before, discriminator) == list(before)


def test_what_is_chosen_is_written_as_in_the_record():
    choice = experiment.choose_one(lambda weight: 1 - abs(weight - 0.3), "weight", (0.1, 0.3, 1.0), by="nothing")
    assert choice.pop("at_the_edge") == []
    assert choice == {"chosen": 0.3, "by": "nothing", "table": {"0.1": 0.8, "0.3": 1.0, "1.0": 0.3}}
    recorded = read_record(experiment.RECORD)
    for scores in recorded["pairs"].values():
        assert all(set(one) == set(choice) for one in scores["tuning"].values())
        assert set(scores["tuning"]) == {"lr", *experiment.WEIGHTS}


def test_training_on_the_source_alone_is_the_plain_loop(pair):
    assert torch.equal(
        experiment.train(pair, None, seed=0, lr=1e-2).head.weight,
        experiment.train(pair, classification_of_source, seed=0, lr=1e-2).head.weight,
    )


def classification_of_source(model, batch):
    """An objective of both domains that looks at the source only."""
    return classification()(model, batch["source"])


def test_the_record_holds_every_method_of_every_pair_at_every_seed():
    recorded = read_record(experiment.RECORD)
    assert set(recorded["pairs"]) == set(experiment.pairs())
    for scores in recorded["pairs"].values():
        assert set(scores["trained"]) == {"source only", "both in one batch", *experiment.WEIGHTS}
        for kind in ("on features", "trained", "ceiling"):
            assert all(len(one["accuracy"]) == len(experiment.SEEDS) for one in scores[kind].values())
        assert all(0 <= value <= 1 for one in scores["on features"].values() for value in one["accuracy"])
