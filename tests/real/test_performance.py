"""A short run of the trial that needs a real vLLM."""

from pathlib import Path

from trials.performance import real_vllm


def test_a_short_run_has_no_measurement_errors(tmp_path: Path) -> None:
    figures = real_vllm.trial(tmp_path, full=False)
    assert real_vllm.measurement_errors(figures) == []
    assert real_vllm.summary(figures)
