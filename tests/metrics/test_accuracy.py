import pytest
import torch
from PIL import Image

from onelora_vision.metrics.accuracy import Predictions, confusion_matrix, draw_confusion_matrix, per_class_accuracy


def predictions_of(logits, labels):
    return Predictions.of(torch.tensor(logits), torch.tensor(labels), torch.arange(len(labels)))


def test_predictions_by_hand():
    predictions = predictions_of([[2.0, 0.0, 0.0, 0.0, 0.0, -1.0], [0.0, 0.0, 3.0, 0.0, 0.0, -1.0]], [0, 5])
    assert predictions.predicted.tolist() == [0, 2]
    assert predictions.correct.tolist() == [True, False]
    assert predictions.in_top5.tolist() == [True, False]
    e = torch.e
    assert predictions.confidence[0].item() == pytest.approx(e**2 / (e**2 + 4 + 1 / e))
    assert predictions.nll[1].item() == pytest.approx(1 + torch.log(torch.tensor(e**3 + 4 + 1 / e)).item(), abs=1e-6)


def test_agrees_with_torchmetrics_like_references_from_sklearn():
    from sklearn.metrics import confusion_matrix as reference
    from sklearn.metrics import log_loss, top_k_accuracy_score

    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(300, 12, generator=generator), torch.randint(12, (300,), generator=generator)
    predictions = Predictions.of(logits, labels, torch.arange(300))
    probabilities = logits.double().softmax(1).numpy()
    top5 = top_k_accuracy_score(labels, probabilities, k=5, labels=range(12))
    assert predictions.in_top5.double().mean().item() == pytest.approx(top5)
    nll = log_loss(labels, probabilities, labels=range(12))
    assert predictions.nll.mean().item() == pytest.approx(nll, rel=1e-5)
    assert confusion_matrix(predictions, 12).tolist() == reference(labels, predictions.predicted).tolist()


def test_fewer_than_five_classes_and_half_precision():
    predictions = Predictions.of(
        torch.tensor([[0.0, 9.0]], dtype=torch.bfloat16), torch.tensor([0]), torch.tensor([7])
    )
    assert predictions.in_top5.tolist() == [True] and predictions.nll.dtype == torch.float32


def test_an_image_counts_once_whatever_the_order_of_the_parts():
    parts = [
        Predictions.of(torch.eye(3)[[2, 0]], torch.tensor([2, 0]), torch.tensor([5, 1])),
        Predictions.of(torch.eye(3)[[1, 2]], torch.tensor([1, 2]), torch.tensor([3, 5])),
    ]
    whole = Predictions.cat(parts)
    assert whole.index.tolist() == [1, 3, 5] and whole.label.tolist() == [0, 1, 2]


def test_confusion_rows_are_true_classes_and_absent_classes_have_no_accuracy():
    predictions = predictions_of(torch.eye(3)[[0, 1, 1]].tolist(), [0, 0, 1])
    confusion = confusion_matrix(predictions, 3)
    assert confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert per_class_accuracy(confusion, ["a", "b", "c"]) == {"a": 0.5, "b": 1.0}


@pytest.mark.parametrize("num_classes", [3, 60])
def test_picture(tmp_path, num_classes):
    counts = torch.eye(num_classes, dtype=torch.long)
    names = [f"Klasse ß{k}" for k in range(num_classes)]
    draw_confusion_matrix({"before": counts.flip(0), "after": counts}, names, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.width > 1.5 * picture.height
