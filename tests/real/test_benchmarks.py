"""The benchmark that needs a real vLLM measures what it says it does, in small."""

from pathlib import Path

from benchmarks import served_vllm


def test_a_small_form_is_sound(tmp_path: Path) -> None:
    figures = served_vllm.trial(tmp_path, full=False)
    assert served_vllm.unsound(figures) == []
    assert served_vllm.told(figures)
