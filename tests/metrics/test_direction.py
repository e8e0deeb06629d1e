from onelora_vision.metrics.direction import arrow, changes, is_retention, main_metric


def test_the_main_metric_is_the_task_s_or_the_first():
    assert main_metric("classification", ["ece", "top1"]) == "top1"
    assert main_metric("depth", ["delta1", "abs_rel"]) == "abs_rel"
    assert main_metric("generation", ["kid_dinov2", "fd_dinov2"]) == "fd_dinov2"
    assert main_metric("new", ["x", "y"]) == "x" and main_metric("depth", []) is None


def test_changes_have_arrows_and_leave_out_what_has_no_direction():
    metrics = {
        "before": {"top1": 0.5, "ece": 0.25, "fd_x_floor": 1.0, "nll": None},
        "after": {"top1": 0.75, "ece": 0.125, "fd_x_floor": 1.0, "nll": 1.0},
    }
    assert changes(metrics) == "top1 ↑ 0.5 → 0.75, ece ↓ 0.25 → 0.125"
    assert changes(metrics, most=1) == "top1 ↑ 0.5 → 0.75" and changes({}) == ""


def test_metrics_of_the_old_data_have_the_direction_of_their_metric_and_are_never_the_main_one():
    assert [arrow(f"retention_{name}") for name in ("top1", "abs_rel", "fd_dinov2", "class_accuracy")] == [*"↑↓↓↑"]
    assert is_retention("retention_top1") and not is_retention("top1")
    assert main_metric("generation", ["retention_fd_embedded"]) is None
    assert main_metric("new", ["retention_top1", "x"]) == "x"
