import hashlib
import json
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from toys import toy_backbone

from tlhelpers.data import load_dataset
from tlhelpers.files import ASSETS
from tlhelpers.models import (
    CUTS,
    SHIPPED,
    Backbone,
    GlyphNet,
    Normalize,
    cut_off,
    glyphnet,
    load_backbone,
    photo_weights,
)
from tlhelpers.models.glyphnet import ResidualBlock
from tlhelpers.training import accuracy

NAMES = list(SHIPPED)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_shipped_files_are_small_and_are_what_their_cards_say(name):
    weights = (ASSETS / f"{name}.safetensors").read_bytes()
    card = json.loads((ASSETS / f"{name}.json").read_text("utf-8"))
    assert len(weights) <= 700_000
    assert hashlib.sha256(weights).hexdigest() == card["sha256"]
    assert len({run["seed"] for run in card["runs"]}) >= 3
    assert {"data", "command", "budget", "licence", "shipped_seed"} <= set(card)


def test_every_load_is_a_fresh_copy_of_the_stored_halves_in_float32_and_eval_mode(name):
    changed = load_backbone(name)
    changed.module.requires_grad_(False).stem.conv.weight.zero_()
    backbone = load_backbone(name)
    for module in (backbone.module, backbone.head):
        assert not any(part.training for part in module.modules())
        assert {t.dtype for t in module.parameters()} == {torch.float32}
    stored = load_file(ASSETS / f"{name}.safetensors")
    loaded = nn.ModuleDict({"body": backbone.module, "head": backbone.head}).state_dict()
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(tensor.to(stored[key].dtype), stored[key]) for key, tensor in loaded.items())


load_source = cache(load_dataset)


def test_the_source_accuracy_is_the_one_on_the_card(name):
    backbone = load_backbone(name)
    source = backbone.card["data"].split(":")[0]
    run = next(run for run in backbone.card["runs"] if run["seed"] == backbone.card["shipped_seed"])
    measured = accuracy(nn.Sequential(backbone.module, backbone.head), load_source(source).test)
    assert measured == pytest.approx(run["source_test_accuracy_float16"], abs=0.01)


def test_features_and_answers_have_their_sizes_and_do_not_depend_on_how_images_are_batched(name):
    backbone = load_backbone(name)
    x = torch.rand(12, 1, 32, 32)
    with torch.inference_mode():
        whole = backbone.module(x)
        split = torch.cat([backbone.module(batch) for batch in x.split([1, 4, 7])])
        assert backbone.head(whole).shape == (12, len(backbone.classes))
    assert whole.shape == (12, backbone.feature_dim)
    assert torch.allclose(whole, split, atol=1e-4)
    assert backbone.classes == tuple(backbone.card["classes"])


def test_a_single_flipped_byte_is_noticed(name, tmp_path, monkeypatch):
    for file in ASSETS.glob(f"{name}.*"):
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(glyphnet, "ASSETS", tmp_path)
    load_backbone(name)
    weights = tmp_path / f"{name}.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"{name}.safetensors is damaged: its sha256 is .*; install the package again"
    ):
        load_backbone(name)


def test_an_unknown_name_brings_the_near_ones():
    with pytest.raises(ValueError, match=r"no backbone called 'glyph-all'; did you mean 'glyphs-all'"):
        load_backbone("glyph-all")
    with pytest.raises(ValueError, match="'glyphs-all' or 'glyphs-letters' or 'glyphs-random'"):
        load_backbone("???")


@pytest.mark.parametrize("shape", [(2, 32, 32), (2, 3, 32, 32)])
def test_images_without_one_channel_are_refused_with_the_remedy(shape):
    with pytest.raises(
        ValueError, match=r"must be \[N, 1, H, W\], not .*x\.unsqueeze\(1\) adds a missing channel axis"
    ):
        GlyphNet()(torch.zeros(shape))


def test_a_residual_block_is_two_convolutions_plus_its_input():
    block = ResidualBlock(3, 3, stride=1).eval()
    for norm in (block.bn1, block.bn2):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 8, 8)

    def scaled(norm, y):
        return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    hidden = scaled(block.bn1, F.conv2d(x, block.conv1.weight, padding=1)).relu()
    expected = (scaled(block.bn2, F.conv2d(hidden, block.conv2.weight, padding=1)) + x).relu()
    assert torch.allclose(block(x), expected, atol=1e-5)


def test_the_children_of_the_net_give_the_shapes_of_its_docstring():
    x = torch.rand(2, 1, 32, 32)
    shapes = {}
    for child, module in GlyphNet().named_children():
        x = module(x)
        shapes[child] = list(x.shape[1:])
    assert shapes == {
        "normalize": [1, 32, 32],
        "stem": [16, 16, 16],
        "block1": [16, 16, 16],
        "block2": [32, 8, 8],
        "block3": [64, 4, 4],
        "block4": [96, 2, 2],
        "pool": [96],
    }


def test_every_channel_is_normalised_by_its_own_numbers_which_its_text_says():
    images = torch.rand(4, 3, 5, 6)
    one = Normalize(0.25, 0.5)
    three = Normalize([0.1, 0.2, 0.3], (0.5, 1.0, 2.0))
    assert torch.equal(one(images), (images - 0.25) / 0.5)
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 1.0), (0.3, 2.0)]):
        assert torch.allclose(three(images)[:, channel], (images[:, channel] - mean) / std)
    assert repr(one) == "Normalize(mean=0.25, std=0.5)"
    assert repr(three) == "Normalize(mean=[0.1, 0.2, 0.3], std=[0.5, 1.0, 2.0])"


@pytest.mark.parametrize(
    "normalize",
    [Normalize(), Normalize(0.3, np.float32(0.7)), Normalize((0.1, 0.2), (0.5, 3.0)), Normalize(torch.rand(2), 1)],
)
def test_bytes_are_normalised_as_their_fractions(normalize):
    images = torch.randint(256, (3, 2, 4, 4), dtype=torch.uint8)
    assert torch.equal(normalize(images), normalize(images.float() / 255))
    assert torch.equal(Normalize()(images), images.float() / 255)


def test_images_that_are_true_or_false_or_have_other_channels_are_refused():
    with pytest.raises(TypeError, match=r"images torch.bool \[2, 1, 4, 4\] must be numbers; images.float\(\)"):
        Normalize()(torch.ones(2, 1, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"images \[2, 1, 4, 4\] must be \[N, 3, H, W\], one channel per mean"):
        Normalize((0.1, 0.2, 0.3))(torch.ones(2, 1, 4, 4))  # which torch would make three of


def test_normalisation_moves_with_its_body_but_is_no_weight():
    normalize = Normalize((0.1, 0.2), (0.5, 3.0))
    assert not normalize.state_dict()
    assert not list(normalize.parameters())
    assert normalize.to("meta").mean.is_meta
    assert not any("normalize" in key for key in GlyphNet(0.1, 0.2).state_dict())


@pytest.mark.parametrize("std", [0, 0.0, -1.0, float("nan"), np.float32(-1), (0.5, 0.0, 0.5)])
def test_a_standard_deviation_that_is_not_positive_is_refused(std):
    with pytest.raises(ValueError, match=r"the standard deviation is .*; it must be positive"):
        Normalize(0.5, std)


def test_a_body_takes_what_a_data_set_gives_because_it_normalises_first(name):
    body = load_backbone(name).module
    images = torch.randint(256, (3, 1, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        features = body(images)
        assert torch.equal(features, body(images.float() / 255))
        card = load_backbone(name).card
        prepared = (images.float() / 255 - card["mean"]) / card["std"]
        body.normalize = nn.Identity()
        assert torch.equal(body(prepared), features)


def test_another_normalisation_is_one_assignment_and_gives_other_features():
    body = load_backbone("glyphs-all").module
    assert next(iter(dict(body.named_children()))) == "normalize"
    images = torch.rand(3, 1, 32, 32)
    with torch.inference_mode():
        right = body(images)
        body.normalize = Normalize(0.9, 0.1)
        assert not torch.allclose(body(images), right, atol=0.1)


def test_a_body_of_ones_own_needs_a_module_and_its_width_only():
    backbone = Backbone(nn.Flatten(), 4)
    assert (backbone.name, backbone.head, backbone.classes, backbone.card) == ("custom", None, (), {})
    assert backbone.tokens is None
    images = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    toy = toy_backbone().module.eval()
    assert torch.equal(toy(images), toy(images.float() / 255))


@pytest.mark.parametrize("name", CUTS)
def test_every_torchvision_body_gives_the_features_that_its_table_says(name):
    from torchvision.models import get_model

    cut = CUTS[name]
    with torch.device("meta"):  # shapes without weights or work
        net = get_model(cut.network, weights=None, **({"init_weights": False} if "inception" in name else {})).eval()
        head = cut_off(net, cut)
        size = photo_weights(name)[0].transforms().crop_size[0]
        features = net(torch.empty(2, 3, size, size))
        assert features.shape == (2, cut.feature_dim)
        if head is not None:
            assert head(features).shape == (2, 1000)


@pytest.fixture
def own_squeezenet(tmp_path, monkeypatch):
    """SqueezeNet with random weights where torchvision would have put the real ones."""
    from torchvision.models import squeezenet1_0

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    net = squeezenet1_0().eval()
    path = tmp_path / "hub" / "checkpoints" / "squeezenet1_0-b66bff10.pth"
    path.parent.mkdir(parents=True)
    torch.save(net.state_dict(), path)
    return net


def test_a_torchvision_body_gives_what_its_network_gives_before_the_classifier(own_squeezenet):
    from torchvision.models import SqueezeNet1_0_Weights

    backbone = load_backbone("squeezenet1_0", image_size=64)
    photographs = torch.randint(256, (3, 3, 80, 100), dtype=torch.uint8)
    prepared = SqueezeNet1_0_Weights.DEFAULT.transforms(crop_size=64, resize_size=64)(photographs.float() / 255)
    assert prepared.shape == (3, 3, 64, 64)
    with torch.inference_mode():
        expected = own_squeezenet.features(prepared).mean(dim=(2, 3))
        assert torch.allclose(backbone.module(photographs), expected, atol=1e-6)
        assert torch.equal(backbone.module(photographs.float() / 255), backbone.module(photographs))
    assert [child for child, _ in backbone.module.named_children()] == ["normalize", "network"]
    assert backbone.module.feature_dim == backbone.feature_dim == 512
    assert not any(part.training for part in backbone.module.modules())
    assert len(backbone.classes) == 1000


def test_missing_weights_are_announced_with_size_and_licence_before_they_are_fetched(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(OSError, match="offline"):
        load_backbone("resnet50")
    printed = capsys.readouterr().out
    assert "resnet50: 98 MB from https://download.pytorch.org" in printed
    assert "BSD" in printed


@pytest.mark.parametrize("name", ["glyphs-all", "minilm", "minilm-random", "hub:no/such-model"])
def test_an_image_size_is_for_photographs_only(name):
    with pytest.raises(ValueError, match=f"{name} takes its inputs as they are; leave out image_size=64"):
        load_backbone(name, image_size=64)


def test_a_vision_transformer_takes_images_of_its_own_size_only():
    with pytest.raises(ValueError, match="vit_b_16 has one size of image, 224 pixels; leave out image_size=64"):
        load_backbone("vit_b_16", image_size=64)
