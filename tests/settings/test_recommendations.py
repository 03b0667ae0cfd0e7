"""Settings beside the recommended ones."""

from simpo.settings import RunSettings, lint, recommendations
from tests.settings.conftest import Read


def warned(settings: RunSettings) -> list[str]:
    lines = recommendations(settings, lint(settings.training, settings.model, settings.data))
    return [line.split(":")[0].removeprefix("! ") for line in lines if line.startswith("!")]


def test_recommendations(read: Read) -> None:
    assert warned(read("total_train_batch_size: 128\nlearning_rate: 6e-7\n")) == []
    assert len(recommendations(read(""))) == 4
    everything = read("beta: 0.1\ngamma_beta_ratio: 5\nlearning_rate: 1e-5\ntotal_train_batch_size: 64\n")
    assert warned(everything) == ["learning_rate", "total_train_batch_size", "beta", "gamma_beta_ratio"]
    assert "learning_rate: 1e-05 (recommended 3e-7, 5e-7, 8e-7 or 1e-6)" in recommendations(everything)[0]


def test_recommendations_for_adapters(read: Read) -> None:
    text = "use_peft: true\ntotal_train_batch_size: 128\n"
    assert warned(read(text + "learning_rate: 1e-5\n")) == []
    assert warned(read(text + "learning_rate: 1e-4\n")) == ["learning_rate"]
