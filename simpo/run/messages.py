"""What a run says: libraries by `log_level`, its own lines once."""

import logging

import transformers
from accelerate import PartialState
from transformers import TrainingArguments


def quiet_libraries(args: TrainingArguments) -> None:
    """Library messages by `log_level`; ours at info on the main process."""
    level = args.get_process_log_level()
    transformers.utils.logging.set_verbosity(level)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("simpo").setLevel(level)


def say(text: str) -> None:
    """Print once, however many processes there are."""
    if PartialState().is_main_process:
        print(text, flush=True)
