"""Runs the official alpaca_eval: a program of its own, so that the package may live in another environment.

    PYTHON alpaca_official.py JOB.json

The job: `evaluate`, the keyword arguments of `alpaca_eval.evaluate`; `df_gamed`, a local copy of that file of the hub
or null; `result`, where the metrics go. Nothing of simpo is imported. Exit status 3: stderr ends with a line for users.
"""

import json
import sys
from pathlib import Path
from typing import Any

HUB, GAMED, BASELINE = "tatsu-lab/alpaca_eval", "df_gamed.csv", "alpaca_eval_gpt4_baseline.json"
FOR_USERS = 3


def main(job_file: str) -> int:
    """Judge, or take the annotations that are there, and write the official metrics down."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    # a file beside this one has the package's name
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]
    try:
        import alpaca_eval
        from alpaca_eval import constants
        from alpaca_eval.metrics import glm_winrate
    except ImportError as error:
        return _tell(f"alpaca_eval cannot be imported by {sys.executable}: {error}")
    if job["df_gamed"] is not None:
        glm_winrate.hf_hub_download = _with_local_copy(glm_winrate.hf_hub_download, job["df_gamed"])
    try:  # before anything is paid for
        glm_winrate.hf_hub_download(repo_id=HUB, filename=GAMED, repo_type="dataset")
    except Exception as error:
        return _tell(_missing(GAMED, "the length-controlled win rate needs it", "df_gamed", error))
    if "reference_outputs" not in job["evaluate"]:
        try:
            job["evaluate"]["reference_outputs"] = constants.ALPACAEVAL_REFERENCE_OUTPUTS()
        except Exception as error:
            return _tell(_missing(BASELINE, "these are the baseline's answers", "baseline_answers", error))
    frame, _ = alpaca_eval.evaluate(**job["evaluate"], precomputed_leaderboard=None, is_return_instead_of_print=True)
    found = {name: _plain(value) for name, value in frame.loc[job["evaluate"]["name"]].items()}
    Path(job["result"]).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def _missing(file: str, why: str, setting: str, error: Exception) -> str:
    return (
        f"{file} of the hub's data set {HUB} cannot be had ({type(error).__name__}); {why}. "
        f"Where the hub can be reached: "
        f"hf download {HUB} {file} --repo-type dataset --local-dir . ; then give this copy as {setting}: {file}"
    )


def _tell(text: str) -> int:
    print(text, file=sys.stderr)
    return FOR_USERS


def _with_local_copy(download: Any, copy: str) -> Any:
    def found(*args: Any, **options: Any) -> Any:
        return copy if options.get("filename") == GAMED else download(*args, **options)

    return found


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
