import torch

from onelora_vision.metrics.classifier import GlyphClassifier


def test_a_saved_classifier_gives_the_same_answers(tmp_path):
    torch.manual_seed(0)
    model = GlyphClassifier(["a", "b", "c"], widths=(8, 16)).half().float().eval()
    model.save(tmp_path / "features", training_data="none")
    loaded = GlyphClassifier.load(tmp_path / "features")
    images = torch.rand(5, 3, 16, 16)
    assert loaded.class_names == ["a", "b", "c"] and not loaded.training
    for before, after in zip(model(images), loaded(images)):
        assert torch.equal(before, after)
    assert '"training_data": "none"' in (tmp_path / "features" / "config.json").read_text()


def test_shapes():
    features, logits = GlyphClassifier([*"0123"])(torch.rand(2, 3, 32, 32))
    assert features.shape == (2, 64) and logits.shape == (2, 4)
