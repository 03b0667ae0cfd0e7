"""Settings of `simpo generate`: from a file, and what is refused."""

from pathlib import Path

import pytest

from simpo.errors import ConfigError
from simpo.onpolicy.settings import read_generate_settings


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("temprature: 1", r"g.yaml:4: unknown setting 'temprature'; did you mean 'temperature'\?"),
        ("temperature: warm", "g.yaml:4: temperature: warm has the wrong type: write a number"),
        ("top_p: 1.5", "g.yaml:4: top_p: 1.5 must be above 0 and at most 1"),
        ("engine: tgi", "g.yaml:4: engine: tgi is unknown: write one of transformers, vllm, server"),
        ("server_urls: [http://a/v1]", "g.yaml:4: server_urls: belongs to engine: server, and engine is transformers"),
        ("engine: server", "server_urls: is missing"),
        ("seeds: [1, 1]", "g.yaml:4: seeds: .* must differ"),
        ("temperature: 0", "g.yaml:4: temperature: 0 gives the same response 5 times"),
        ("{engine: server, server_urls: [http://me:pw@a/v1]}", "settings must be|server_urls: holds a password"),
        ("num_responses: 0", "g.yaml:4: num_responses: 0 must be at least 1"),
        ("tensor_parallel_size: 2", "belongs to engine: vllm"),
    ],
)
def test_wrong_settings_are_named_with_their_line(tmp_path: Path, line: str, message: str) -> None:
    head = ["model_name_or_path: m", "dataset_name: d", "output_dir: o"]
    path = tmp_path / "g.yaml"
    if line.startswith("{"):
        head, line = [], "{model_name_or_path: m, dataset_name: d, output_dir: o, " + line[1:]
    path.write_text("\n".join([*head, line]))
    with pytest.raises(ConfigError, match=message):
        read_generate_settings(path)


def test_settings_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("model_name_or_path: m\ndataset_name: d\noutput_dir: o\nnum_responses: 7\n")
    settings = read_generate_settings(path)
    assert settings.seeds == [13, 21, 42, 79, 100, 101, 102]
    with pytest.raises(ConfigError, match="dataset_name is missing"):
        read_generate_settings([], ["--model_name_or_path=m", "--output_dir=o"])
