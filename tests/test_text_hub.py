"""Encoders of the hub, from a folder that transformers saved: no network here."""

from types import SimpleNamespace

import pytest
import torch
from toys import save_tiny_bert

from tlhelpers.models import load_backbone


@pytest.fixture
def saved(tmp_path):
    """A tiny BERT as a folder of the hub."""
    return save_tiny_bert(tmp_path)


def test_any_encoder_becomes_a_body_for_the_token_ids_of_its_own_tokenizer(saved):
    body = load_backbone(f"hub:{saved}")
    ids = body.tokens(["a book", "a"])
    assert ids.shape[0] == 2
    assert body.feature_dim == 16
    with torch.inference_mode():
        assert body.module(ids).shape == (2, 16)
        assert torch.allclose(body.module(ids)[1:], body.module(ids[1:, :3]), atol=1e-6)  # padding says nothing


def test_size_and_licence_are_printed_before_a_download_and_how_to_get_a_model_that_is_not_there(monkeypatch, capsys):
    import huggingface_hub

    file = SimpleNamespace(rfilename="model.safetensors", size=440_000_000)
    about = SimpleNamespace(siblings=[file], card_data=SimpleNamespace(license="apache-2.0"))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: about)
    monkeypatch.setattr("tlhelpers.models.encoders.is_offline", lambda: False)
    with pytest.raises(OSError, match=r"no/such-model could not be loaded.*prefetch --pages 04"):
        load_backbone("hub:no/such-model")
    printed = capsys.readouterr().out
    assert "440 MB" in printed
    assert "apache-2.0" in printed


def test_an_encoder_of_the_hub_is_fine_tuned_on_the_messages(saved):
    from tlhelpers.experiments.full_scale import text_tuned

    assert 0 <= text_tuned(str(saved), labels=1, epochs=1) < 0.5
