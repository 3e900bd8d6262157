"""Features of a body, in memory and in the cache."""

import contextlib
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import run

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import CPU, differing, toy_backbone, toy_images, weights_of

from tlhelpers.analysis import cached_features, extract_features, features
from tlhelpers.analysis.features import feature_key, read_tensor, write_tensor
from tlhelpers.models import Normalize
from tlhelpers.training import device as devices


def test_features_are_those_of_a_direct_pass_in_eval_mode_in_order():
    backbone = toy_backbone()
    examples = toy_images(10)
    backbone.module.norm.running_mean.normal_()
    backbone.module.train()
    before = weights_of(backbone.module)
    features = extract_features(backbone, examples, batch_size=4, device=CPU)
    assert torch.allclose(features.x, backbone.module.eval()(examples.x), atol=1e-6)
    assert torch.equal(features.y, examples.y)
    assert len(features) == 10
    assert not features.x.requires_grad
    assert differing(before, backbone.module) == []


def test_bytes_and_fractions_of_one_image_have_the_same_features():
    backbone = toy_backbone()
    images = torch.randint(256, (10, 1, 8, 8), dtype=torch.uint8)
    of_bytes = extract_features(backbone, replace(toy_images(), x=images), device=CPU)
    of_fractions = extract_features(backbone, replace(toy_images(), x=images.float() / 255), device=CPU)
    assert torch.equal(of_bytes.x, of_fractions.x)


def test_a_bare_module_is_a_body_too():
    backbone = toy_backbone()
    of_module = extract_features(backbone.module, toy_images(), device=CPU)
    assert torch.equal(of_module.x, extract_features(backbone, toy_images(), device=CPU).x)


class Traveller(nn.Sequential):
    """Notes where it is sent."""

    def to(self, device):
        self.sent_to = [*getattr(self, "sent_to", []), torch.device(device)]
        return super().to(device)


@pytest.mark.parametrize("fails", [False, True])
def test_the_body_comes_back_to_its_device_and_to_the_mode_of_each_of_its_parts(fails):
    module = Traveller(toy_backbone().module, nn.Sequential(nn.Dropout(), nn.Flatten()))
    module.train()
    module[0].norm.eval()
    modes = {name: part.training for name, part in module.named_modules()}
    elsewhere = torch.device("cpu", 0)  # the same place by another name
    layer = "nowhere" if fails else None
    with pytest.raises(ValueError, match="no layer") if fails else contextlib.nullcontext():
        extract_features(module, toy_images(), layer=layer, device=elsewhere)
    assert module.sent_to == [elsewhere, CPU]
    assert {name: part.training for name, part in module.named_modules()} == modes
    assert not any(part._forward_hooks for part in module.modules())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_body_of_the_cpu_is_on_the_cpu_again_after_the_gpu_has_run_it():
    backbone = toy_backbone()
    features = extract_features(backbone, toy_images(), device=torch.device("cuda"))
    tensors = [*backbone.module.parameters(), *backbone.module.buffers(), features.x, features.y]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    assert torch.allclose(features.x, extract_features(backbone, toy_images(), device=CPU).x, atol=0.02)


def test_where_the_device_has_reduced_precision_the_body_uses_it_and_features_are_float32_all_the_same(monkeypatch):
    backbone = toy_backbone()
    examples = toy_images(10)
    exact = extract_features(backbone, examples, device=CPU).x
    monkeypatch.setattr(devices, "mixed_precision", lambda _device: torch.bfloat16)
    reduced = extract_features(backbone, examples, device=CPU).x
    assert reduced.dtype == torch.float32
    assert not torch.equal(reduced, exact)
    assert torch.allclose(reduced, exact, atol=0.02)  # bfloat16 keeps 8 bits


@pytest.mark.parametrize("layer", ["conv", "norm", "relu", "pool.0", "pool"])
def test_a_named_layer_gives_its_mean_over_positions(layer):
    backbone = toy_backbone()
    examples = toy_images()
    backbone.module.eval()
    outputs = {}
    module = backbone.module.get_submodule(layer)
    hook = module.register_forward_hook(lambda *arguments: outputs.update(it=arguments[-1]))
    backbone.module(examples.x)
    hook.remove()
    backbone.module.relu.inplace = True  # writes over what "norm" has given
    backbone.module.last = nn.Threshold(9.0, 0.0, inplace=True)  # and this over what "pool" has
    features = extract_features(backbone, examples, layer=layer, batch_size=3, device=CPU)
    expected = outputs["it"].mean((2, 3)) if layer != "pool" else outputs["it"]
    assert torch.allclose(features.x, expected, atol=1e-6)
    assert not module._forward_hooks


def test_a_layer_that_is_missing_or_gives_no_vectors_is_refused():
    backbone = toy_backbone()
    with pytest.raises(
        ValueError, match=r"no layer called 'block9'; named_modules\(\) has normalize, conv, norm, relu, pool, and"
    ):
        extract_features(backbone, toy_images(), layer="block9")
    with pytest.raises(ValueError, match=r"\(GRU\) gives a tuple; take one that gives a tensor"):
        extract_features(nn.Sequential(nn.Flatten(2), nn.Flatten(1, 2), nn.GRU(64, 5)), toy_images(), layer="2")
    backbone.module.pool = nn.Flatten(2)
    with pytest.raises(ValueError, match=r"gives \[10, 5, 36\]; take one that gives \[N, D\]"):
        extract_features(backbone, toy_images())
    assert not backbone.module._forward_hooks


def test_the_second_call_reads_the_file_of_the_first(tmp_path):
    backbone = toy_backbone()
    examples = toy_images()
    first = cached_features(backbone, examples)
    (file,) = (tmp_path / "cache" / "features").iterdir()
    assert file.name == f"{feature_key(backbone, examples, None)}.safetensors"
    assert torch.equal(first.x, extract_features(backbone, examples).x)
    write_tensor(file, torch.full((10, 5), 42.0))
    again = cached_features(backbone, examples)
    assert (again.x == 42).all()
    assert torch.equal(again.y, examples.y)


def test_a_file_of_other_length_or_with_other_numbers_is_made_anew_with_a_warning(tmp_path):
    backbone = toy_backbone()
    right = cached_features(backbone, toy_images()).x
    (file,) = (tmp_path / "cache" / "features").iterdir()
    flipped = bytearray(file.read_bytes())
    flipped[-3] ^= 1
    write_tensor(tmp_path / "short", right[:9])
    for content in (bytes(flipped), (tmp_path / "short").read_bytes(), b"", b"text"):
        file.write_bytes(content)
        with pytest.warns(match="cannot be used .* its features are computed again"):
            assert torch.equal(cached_features(backbone, toy_images()).x, right)
        assert torch.equal(read_tensor(file, rows=10), right)


def change_a_weight(backbone):
    with torch.no_grad():
        backbone.module.conv.bias[0] += 1e-6


def change_a_buffer(backbone):
    backbone.module.norm.running_var[2] *= 1.001


def change_the_normalisation_a_little(backbone):
    before = repr(backbone.module)
    backbone.module.normalize = Normalize(0.5, 2.0000002)
    assert repr(backbone.module) == before


def with_attribute(value, name="act"):
    return lambda backbone: setattr(backbone.module, name, value)


def adding(n):
    return lambda x: x + n


def own_class(text):
    """A body whose last part is of a class of that text, as a learner writes it again in a later cell."""
    names = {}
    exec(f"import torch\nclass Own(torch.nn.Module):\n    {text}", names)
    return lambda backbone: backbone.module.append(names["Own"]())


OF_BODY = {  # what is done to one body, and to another; neither may read the features of the other, nor of the first
    "weights": (change_a_weight,),
    "batchnorm": (change_a_buffer,),
    "activation": (lambda backbone: setattr(backbone.module, "relu", nn.Tanh()),),
    "normalisation": (lambda backbone: setattr(backbone.module, "normalize", Normalize(0.25, 2.0)),),
    "digits of the normalisation that its text does not show": (change_the_normalisation_a_little,),
    "a function among the attributes": (with_attribute(torch.relu), with_attribute(torch.tanh)),
    "a function without a name": (with_attribute(lambda x: x + 1), with_attribute(lambda x: x + 2)),
    "what a function closes over": [with_attribute(adding(n)) for n in (1, 2)],
    "what a function is given": [with_attribute(partial(F.leaky_relu, negative_slope=n)) for n in (0.1, 0.2)],
    "a private attribute": (with_attribute(1.0, "_factor"), with_attribute(2.0, "_factor")),
    "an attribute within a table": (with_attribute({"by": [1.0]}), with_attribute({"by": [2.0]})),
    "a tensor that is no buffer": (with_attribute((torch.ones(1),)), with_attribute((torch.zeros(1),))),
    "another forward of the same class": [own_class(f"def forward(self, x): return {n} * x") for n in (1, 2)],
    "another method": [own_class(f"forward = lambda self, x: self.f(x)\n    def f(self, x): x + {n}") for n in (1, 2)],
    "an attribute of the class": (own_class("factor = 1"), own_class("factor = 2")),
    "a set within a method": [own_class(f"def forward(self, x): return 1 in {{0, {n}}}") for n in (1, 2)],
}


@pytest.mark.parametrize("changes", OF_BODY.values(), ids=OF_BODY)
def test_whatever_changes_in_the_body_the_key_changes(changes):
    keys = [feature_key(toy_key_backbone(), toy_images(), None)]
    for change in changes:
        for _ in range(2):
            backbone = toy_key_backbone()
            change(backbone)
            keys.append(feature_key(backbone, toy_images(), None))
    assert keys[1::2] == keys[2::2]
    assert len(set(keys)) == 1 + len(changes)


CHANGES = {
    "body": lambda backbone, examples: (replace(backbone, name="other"), examples, None),
    "layer": lambda backbone, examples: (backbone, examples, "conv"),
    "rows": lambda backbone, examples: (backbone, examples.take(torch.arange(9)), None),
    "order": lambda backbone, examples: (backbone, examples.take(torch.arange(10).flip(0)), None),
    "indices": lambda backbone, examples: (backbone, replace(examples, indices=examples.indices + 1), None),
    "split": lambda backbone, examples: (backbone, replace(examples, name="toy/test"), None),
    "pixels": lambda backbone, examples: (backbone, replace(examples, x=examples.x.flip(3)), None),
    "dtype": lambda backbone, examples: (backbone, replace(examples, x=examples.x.double()), None),
    "preparation": lambda backbone, examples: (backbone, examples.mapped(torch.clone), None),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_changes_in_the_examples_or_the_request_the_key_changes(change):
    before = feature_key(toy_key_backbone(), toy_images(), None)
    assert feature_key(*change(toy_key_backbone(), toy_images())) != before


def toy_key_backbone():
    torch.manual_seed(0)
    return toy_backbone()


def test_pixels_count_also_in_a_body_with_a_parameter_called_x():
    backbone = toy_key_backbone()
    backbone.module.x = nn.Parameter(torch.zeros(1))
    images = toy_images()
    flipped = replace(images, x=images.x.flip(3))
    assert feature_key(backbone, images, None) != feature_key(backbone, flipped, None)


def test_the_key_is_the_same_in_every_process():
    program = "from test_features import *; print(feature_key(toy_key_backbone(), toy_images(), None))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    seeds = [{"PYTHONHASHSEED": seed} for seed in ("1", "2")]
    calls = [run([sys.executable, "-c", program], env=environment | s, capture_output=True, text=True) for s in seeds]
    assert {call.stdout.strip() for call in calls} == {feature_key(toy_key_backbone(), toy_images(), None)}


def test_features_in_reduced_precision_are_not_read_for_those_in_float32(monkeypatch):
    backbone = toy_backbone()
    with torch.autocast(CPU.type, torch.bfloat16):
        around = cached_features(backbone, toy_images()).x
    exact = cached_features(backbone, toy_images()).x
    monkeypatch.setattr(devices, "mixed_precision", lambda _device: torch.float16)
    monkeypatch.setattr(features, "mixed_precision", lambda _device: torch.float16)
    of_device = cached_features(backbone, toy_images()).x
    assert len({feature.sum().item() for feature in (around, exact, of_device)}) == 3


def test_the_key_does_not_depend_on_the_mode_of_the_body_or_on_what_it_learns():
    backbone = toy_key_backbone()
    key = feature_key(backbone, toy_images(), None)
    backbone.module.train()
    backbone.module.requires_grad_(False)
    extract_features(backbone, toy_images(), device=CPU)
    assert feature_key(backbone, toy_images(), None) == key


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(match=r"cannot keep features in .*file.below .*set TLHELPERS_CACHE to a folder with room"):
        features = cached_features(toy_backbone(), toy_images(), folder=tmp_path / "file" / "below")
    assert len(features) == 10  # no work is lost
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("fails", ["analysis.features.save_file", "files.os.replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk full")])
def test_a_crash_while_saving_leaves_nothing_behind(fails, error, tmp_path, monkeypatch):
    def crash(_tensors, path, *_metadata):
        if fails.endswith("save_file"):
            Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(f"tlhelpers.{fails}", crash)
    expected = pytest.warns(match="disk full") if isinstance(error, OSError) else pytest.raises(KeyboardInterrupt)
    with expected:
        cached_features(toy_backbone(), toy_images(), folder=tmp_path / "deep" / "folder")
    assert list((tmp_path / "deep" / "folder").iterdir()) == []


def test_a_layer_that_does_not_run_once_per_pass_is_refused():
    backbone = toy_backbone()
    backbone.module.idle = nn.Identity()
    backbone.module.forward = lambda x: backbone.module.pool(backbone.module.conv(x))
    with pytest.raises(ValueError, match="layer 'idle' runs 0 times per pass; take one that runs once"):
        extract_features(backbone, toy_images(), layer="idle")
