"""`transformers serve` on loopback, and tiny models that have something to say there."""

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.launching import environment

NEEDED = ("fastapi", "uvicorn", "openai")  # the extra `serving` of transformers


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(model: str | None, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`transformers serve` on loopback, ready to answer; stopped on leaving. Without a model it loads what it is asked
    for."""
    code = "from transformers.cli.transformers import main; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "serve",
        *([model] if model else []),
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
    ]
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [*command, "--device", "cpu", "--dtype", "float32"], env=environment(), stdout=file, stderr=file
        )
    try:
        for _ in range(1200):
            assert process.poll() is None, log.read_text()[-3000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


def teach_to_say(source: str, folder: Path, text: str, steps: int = 120) -> str:
    """A copy of a tiny model that answers whatever it is asked with `text`; returns its folder."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    answer = tokenizer.encode(f"{text}<|eot_id|>", add_special_tokens=False)
    header = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], add_generation_prompt=True, return_dict=False
    )[-4:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        length = int(torch.randint(5, 60 + 10 * step, (1,), generator=generator))
        asked = torch.randint(20, 4096, (length,), generator=generator).tolist()
        ids = torch.tensor([asked + header + answer])
        labels = ids.clone()
        labels[:, : -len(answer)] = -100
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.generation_config.eos_token_id = answer[-1]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
