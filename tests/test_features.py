from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F
from toys import CPU, differing, toy_backbone, toy_images, weights_of

from tlhelpers.analysis import features
from tlhelpers.analysis.features import Features, cached_features, extract_features, feature_key, knn_probe, linear_probe
from tlhelpers.tensor_files import keep_tensor


def clouds(classes=3, n=60, spread=2.0):
    """Overlapping clouds in 5 dimensions of unlike scales."""
    y = torch.arange(n) % classes
    centres = spread * torch.randn(10, 5, generator=torch.Generator().manual_seed(5))[:classes]
    scales = torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0])
    return Features((torch.randn(n, 5) + centres[y]) * scales + 7, y)


def test_features_are_those_of_a_direct_pass_in_eval_mode_in_order():
    backbone, part = toy_backbone(), toy_images(10)
    backbone.module.norm.running_mean.normal_()
    backbone.module.train()
    before = weights_of(backbone.module)
    found = extract_features(backbone, part, batch_size=4, device=CPU)
    assert torch.allclose(found.x, backbone.module.eval()(backbone.transform(part.x)), atol=1e-6)
    assert torch.equal(found.y, part.y)
    assert len(found) == 10
    assert not found.x.requires_grad
    assert differing(before, backbone.module) == []


def test_where_the_device_has_reduced_precision_the_body_uses_it_and_features_are_float32_all_the_same(monkeypatch):
    backbone, part = toy_backbone(), toy_images(10)
    exact = extract_features(backbone, part, device=CPU).x
    monkeypatch.setattr(features, "mixed_precision", lambda _device: torch.bfloat16)
    found = extract_features(backbone, part, device=CPU).x
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    assert torch.allclose(found, exact, atol=0.02)  # bfloat16 keeps 8 bits


@pytest.mark.parametrize("layer", ["conv", "relu", "pool.0"])
def test_a_named_layer_gives_its_mean_over_positions(layer):
    backbone, part = toy_backbone(), toy_images()
    backbone.module.eval()
    outputs = {}
    module = backbone.module.get_submodule(layer)
    hook = module.register_forward_hook(lambda *arguments: outputs.update(it=arguments[-1]))
    backbone.module(backbone.transform(part.x))
    hook.remove()
    found = extract_features(backbone, part, layer=layer, batch_size=3, device=CPU)
    assert torch.allclose(found.x, outputs["it"].flatten(2).mean(2), atol=1e-6)
    assert not module._forward_hooks


def test_a_layer_that_is_missing_or_gives_no_vectors_is_refused():
    backbone = toy_backbone()
    with pytest.raises(ValueError, match="no layer called 'block9'; the body has conv, norm, relu, pool"):
        extract_features(backbone, toy_images(), layer="block9")
    backbone.module.pool = nn.Flatten(2)
    with pytest.raises(ValueError, match=r"gives \[10, 5, 36\]; take one that gives \[N, D\]"):
        extract_features(backbone, toy_images())
    assert not backbone.module._forward_hooks


@pytest.mark.parametrize("classes", [2, 10])
def test_the_linear_probe_is_scikit_learns_and_its_layer_gives_the_same_probabilities(classes):
    train, test = clouds(classes, n=100), clouds(classes)
    oracle = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(train.x, train.y)
    probe = linear_probe(train, test)
    assert np.array_equal(probe.predictions, oracle.predict(test.x))
    assert probe.accuracy == pytest.approx(oracle.score(test.x, test.y))
    assert 1 / classes < probe.accuracy
    logits = F.linear(test.x, probe.weight, probe.bias)
    assert np.allclose(logits.log_softmax(1), oracle.predict_log_proba(test.x), atol=1e-3)
    assert torch.equal(logits.argmax(1), probe.predictions)


def test_a_class_without_examples_is_never_the_answer():
    train, test = clouds(3), clouds(3)
    some = train.y != 1
    probe = linear_probe(Features(train.x[some], train.y[some]), test)
    assert probe.weight.shape == (3, 5)
    assert F.linear(test.x, probe.weight, probe.bias).softmax(1)[:, 1].max() < 1e-6
    assert probe.predictions.unique().tolist() == [0, 2]


def test_validation_chooses_the_first_of_the_best_penalties():
    train, validation, test = (clouds(10, n=n, spread=0.6) for n in (40, 200, 50))
    scores = [linear_probe(train, validation, C=c).accuracy for c in features.C_GRID]
    chosen = linear_probe(train, test, validation=validation)
    assert len(set(scores)) > 1
    assert chosen.setting == features.C_GRID[int(np.argmax(scores))]
    assert torch.equal(chosen.predictions, linear_probe(train, test, C=chosen.setting).predictions)
    equal = linear_probe(train, test, validation=Features(validation.x[:1], torch.tensor([-1])))
    assert equal.setting == features.C_GRID[0]


@pytest.mark.parametrize("k", [1, 5])
def test_the_knn_probe_takes_the_majority_of_the_nearest_by_cosine(k):
    train, test = clouds(2), clouds(2)
    similarity = F.normalize(test.x) @ F.normalize(train.x).T
    votes = train.y[similarity.topk(k).indices]
    probe = knn_probe(train, test, k=k)
    assert torch.equal(probe.predictions, votes.mode(1).values)
    assert probe.accuracy == pytest.approx(float((probe.predictions == test.y).float().mean()))
    assert (probe.setting, probe.weight) == (k, None)
    longer = Features(test.x * 100, test.y)
    assert torch.equal(knn_probe(train, longer, k=k).predictions, probe.predictions)


@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_probes_refuse_what_they_cannot_learn_from(probe):
    good = clouds()
    holed = Features(good.x.clone(), good.y)
    holed.x[3, 2] = torch.nan
    with pytest.raises(ValueError, match="the test features hold NaN or infinity; look at the inputs"):
        probe(good, holed)
    with pytest.raises(ValueError, match="a single class; a classifier needs at least two"):
        probe(Features(good.x, torch.ones(60).long()), good)
    with pytest.raises(ValueError, match="train has 5 features, test 4; use one body for both"):
        probe(good, Features(good.x[:, :4], good.y))


@pytest.mark.parametrize("k", [0, 61])
def test_k_beyond_the_training_examples_is_refused(k):
    with pytest.raises(ValueError, match=rf"k is {k}, but there are 60 training examples; choose 1\.\.60"):
        knn_probe(clouds(), clouds(), k=k)


def test_the_second_call_reads_the_file_of_the_first(tmp_path):
    backbone, part = toy_backbone(), toy_images()
    first = cached_features(backbone, part)
    (file,) = (tmp_path / "cache" / "features").glob("*.safetensors")
    assert file.name == f"{feature_key(backbone, part, None)}.safetensors"
    assert torch.allclose(first.x, extract_features(backbone, part).x)
    keep_tensor(file, torch.full((10, 5), 42.0))
    again = cached_features(backbone, part)
    assert (again.x == 42).all()
    assert torch.equal(again.y, part.y)


def change_a_weight(backbone, part):
    with torch.no_grad():
        backbone.module.conv.bias[0] += 1e-6
    return backbone, part, None


def change_a_buffer(backbone, part):
    backbone.module.norm.running_var[2] *= 1.001
    return backbone, part, None


def change_the_activation(backbone, part):
    backbone.module.relu = nn.Tanh()
    return backbone, part, None


CHANGES = {
    "weights": change_a_weight,
    "batchnorm": change_a_buffer,
    "activation": change_the_activation,
    "body": lambda backbone, part: (replace(backbone, name="other"), part, None),
    "layer": lambda backbone, part: (backbone, part, "conv"),
    "transform": lambda backbone, part: (replace(backbone, transform=torch.neg), part, None),
    "rows": lambda backbone, part: (backbone, part.take(torch.arange(9)), None),
    "order": lambda backbone, part: (backbone, part.take(torch.arange(10).flip(0)), None),
    "indices": lambda backbone, part: (backbone, replace(part, indices=part.indices + 1), None),
    "split": lambda backbone, part: (backbone, replace(part, name="toy/test"), None),
    "pixels": lambda backbone, part: (backbone, replace(part, x=part.x.flip(3)), None),
    "dtype": lambda backbone, part: (backbone, replace(part, x=part.x.double()), None),
    "preparation": lambda backbone, part: (backbone, part.mapped(torch.clone), None),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_changes_the_key_changes(change):
    before = feature_key(toy_key_backbone(), toy_images(), None)
    assert feature_key(toy_key_backbone(), toy_images(), None) == before
    assert feature_key(*change(toy_key_backbone(), toy_images())) != before


def toy_key_backbone():
    torch.manual_seed(0)
    return toy_backbone()


def test_two_transforms_that_look_alike_do_not_share_a_file():
    class Scale:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, x):
            return self.factor * x

        def __repr__(self):
            return "Scale()"  # as uninformative as `<function <lambda> at 0x7f...>`

    backbone, part = toy_backbone(), toy_images()
    one, two = (cached_features(replace(backbone, transform=Scale(factor)), part) for factor in (1, 2))
    assert not torch.equal(one.x, two.x)


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(match=r"cannot keep features in .*file.below .*set TLHELPERS_CACHE to a folder with room"):
        kept = cached_features(toy_backbone(), toy_images(), folder=tmp_path / "file" / "below")
    assert len(kept) == 10  # no work is lost
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("fails", ["save_file", "os.replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk full")])
def test_a_crash_while_saving_leaves_nothing_behind(fails, error, tmp_path, monkeypatch):
    def crash(_tensors, path, *_metadata):
        if fails == "save_file":
            Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(f"tlhelpers.tensor_files.{fails}", crash)
    expected = pytest.warns(match="disk full") if isinstance(error, OSError) else pytest.raises(KeyboardInterrupt)
    with expected:
        cached_features(toy_backbone(), toy_images(), folder=tmp_path / "deep" / "folder")
    assert {path.suffix for path in (tmp_path / "deep" / "folder").iterdir()} == {".lock"}


def test_a_layer_that_does_not_run_once_per_pass_is_refused():
    backbone = toy_backbone()
    backbone.module.idle = nn.Identity()
    backbone.module.forward = lambda x: backbone.module.pool(backbone.module.conv(x))
    with pytest.raises(ValueError, match="layer 'idle' runs 0 times per pass; take one that runs once"):
        extract_features(backbone, toy_images(), layer="idle")


def test_a_probe_becomes_a_layer_that_decides_alike_and_k_nn_does_not():
    from tlhelpers.analysis.features import Features

    generator = torch.Generator().manual_seed(0)
    features = Features(torch.randn(60, 5, generator=generator), torch.arange(60) % 3)
    probe = linear_probe(features, features)
    assert torch.equal(probe.as_layer()(features.x).argmax(1), probe.predictions)
    with pytest.raises(ValueError, match="no weights"):
        knn_probe(features, features).as_layer()
