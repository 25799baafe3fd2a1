"""The benchmark that needs a real vLLM measures what it says it does, in small."""

from pathlib import Path

from trials.performance import real_vllm


def test_a_small_form_is_sound(tmp_path: Path) -> None:
    figures = real_vllm.trial(tmp_path, full=False)
    assert real_vllm.unsound(figures) == []
    assert real_vllm.told(figures)
