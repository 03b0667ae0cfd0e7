"""An engine that keeps what it was asked, and what a generation has left."""

from typing import Any

from simpo.engines.base import Request, Result, Sample
from simpo.onpolicy.settings import GenerateSettings
from simpo.store import read_records


class Recorder:
    """Answers with the prompt's ids and the seed; keeps what it was asked."""

    batch_size = None

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def generate(self, requests):
        for number, request in enumerate(requests):
            self.requests.append(request)
            yield Result(number, Sample(f"{list(request.prompt_ids)} {request.seed}", "stop", 3))

    def close(self) -> None:
        pass


def records_of(settings: GenerateSettings) -> list[dict[str, Any]]:
    return list(read_records(settings.output_dir))
