"""No pickle from data, caches, stores or checkpoints runs code, and no YAML makes objects."""

import contextlib
import io
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from datasets import Dataset

from simpo import cli
from simpo.data.sources import open_source
from simpo.errors import DataError, ModelError, SimPOError, StoreError
from simpo.evals.judges.costs import PRICES
from simpo.onpolicy.recipe import read_recipe
from simpo.reference import ReferenceCache
from simpo.run.checkpoints.pickles import check_pickles
from simpo.run.checkpoints.seal import FILES, IDENTITY
from simpo.settings import read_settings
from simpo.settings.entries import read_overrides
from simpo.store import Store
from simpo.sweep.space import read_space

ROW = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}


def _tar(folder: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(folder / "train.tar", "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _script(folder: Path, marker: Any) -> None:
    (folder / f"{folder.name}.py").write_text(marker.code)


def _metadata(folder: Path, marker: Any) -> None:
    (folder / "train.pkl").write_bytes(marker.pickle())
    head = "configs:\n- config_name: default\n  data_files: train.pkl\n  builder_name: pandas\nbuilder_name: pandas\n"
    (folder / "README.md").write_text(f"---\n{head}---\n")


def _object_array(marker: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, np.array([marker.pickle(), _Holder(marker.path)], dtype=object), allow_pickle=True)
    return content.getvalue()


class _Holder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


# What a folder of data may hold, by what it tries.
FOLDERS: dict[str, Callable[[Path, Any], None]] = {
    "pickle": lambda folder, marker: (folder / "train.pkl").write_bytes(marker.pickle([ROW])) and None,
    "pickle named as json": lambda folder, marker: (folder / "train.jsonl").write_bytes(marker.pickle([ROW])) and None,
    "pickle named as parquet": lambda folder, marker: (
        (folder / "train.parquet").write_bytes(marker.pickle([ROW])) and None
    ),
    "pickle named as arrow": lambda folder, marker: (folder / "train.arrow").write_bytes(marker.pickle([ROW])) and None,
    "script": _script,
    "metadata that name a pickle": _metadata,
    "archive of torch files": lambda folder, marker: _tar(
        folder, {"0.pth": marker.torch_file(folder / "x").read_bytes()}
    ),
    "archive of pickles": lambda folder, marker: _tar(folder, {"0.pkl": marker.pickle(), "0.pickle": marker.pickle()}),
    "archive of object arrays": lambda folder, marker: _tar(folder, {"0.npy": _object_array(marker)}),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_of_data_runs_no_code(kind: str, marker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "pairs"
    folder.mkdir()
    FOLDERS[kind](folder, marker)
    with contextlib.suppress(DataError):
        for part in open_source(str(folder)).values():
            list(part)
    assert not marker.touched


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv", ".jsonl.gz", ".pkl"])
def test_a_pickle_with_the_name_of_data_is_an_error(suffix: str, marker, tmp_path: Path) -> None:
    file = tmp_path / f"pairs{suffix}"
    file.write_bytes(marker.pickle([ROW]))
    with pytest.raises(DataError):
        list(open_source(str(file)))
    assert not marker.touched


def test_a_saved_data_set_with_spoilt_files_runs_no_code(marker, tmp_path: Path) -> None:
    Dataset.from_list([ROW] * 3).save_to_disk(str(tmp_path / "saved"))
    for file in sorted((tmp_path / "saved").iterdir()):
        spoilt = tmp_path / f"spoilt-{file.name}"
        shutil.copytree(tmp_path / "saved", spoilt)
        (spoilt / file.name).write_bytes(marker.pickle())
        with pytest.raises(DataError):
            list(open_source(str(spoilt)))
    assert not marker.touched


def test_a_spoilt_cache_is_computed_again(marker, tmp_path: Path) -> None:
    cache, rows = ReferenceCache(str(tmp_path), {"a": 1}), range(3)
    cache.write(rows, {"ref_chosen": np.zeros(3, dtype=np.float32)})
    assert cache.read(rows) is not None
    for content in (marker.pickle(), marker.torch_file(tmp_path / "x").read_bytes(), _object_array(marker)):
        (file,) = cache.path.glob("rows-*")
        file.write_bytes(content)
        assert cache.read(rows) is None
    assert not marker.touched


def test_a_spoilt_store_runs_no_code(marker, tmp_path: Path) -> None:
    with Store(tmp_path / "store", {"a": 1}) as store:
        store.append("1", {"text": "x"})
    files = [path for path in (tmp_path / "store").iterdir() if path.suffix in (".json", ".jsonl")]
    assert len(files) > 1
    for file in files:
        spoilt = tmp_path / f"spoilt-{file.stem}"
        shutil.copytree(tmp_path / "store", spoilt)
        (spoilt / file.name).write_bytes(marker.pickle() + b"\n")
        with contextlib.suppress(StoreError), Store(spoilt, {"a": 1}) as store:  # a torn line is cut off, and told
            list(store.records())
    assert not marker.touched


# --- checkpoints --------------------------------------------------------------------------------------------------


def test_a_run_does_not_go_on_from_a_checkpoint_that_holds_code(marker, make_config, tmp_path: Path, capsys) -> None:
    path = make_config(save_strategy="steps", save_steps=1, max_steps=2, eval_dataset_mixer=None)
    assert cli.main(["train", str(path), "--no-audit"]) == 0
    out = tmp_path / "out"
    assert not list(out.rglob("training_args.bin"))  # a pickle that nobody reads
    whole = out / "checkpoint-1"
    check_pickles(whole)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "more/states.pt"):
        spoilt = tmp_path / name.replace("/", "-") / "checkpoint-1"
        shutil.copytree(whole, spoilt)
        (spoilt / name).parent.mkdir(exist_ok=True)
        marker.torch_file(spoilt / name)
        for file in (FILES, IDENTITY):  # whoever spoils a file can leave the hashes out, or write his own
            (spoilt / file).unlink()
        words = [f"--resume_from_checkpoint={spoilt}", "--overwrite", "--no-audit", f"--output_dir={tmp_path / 'new'}"]
        assert cli.main(["train", str(path), *words]) == 2
        said = capsys.readouterr().err
        assert f"{name}: holds " in said and "system, which no checkpoint of a run holds" in said
        shutil.copy(whole / "optimizer.pt", spoilt / "cut.pt")
        (spoilt / name).unlink()
        (spoilt / "cut.pt").write_bytes((whole / "optimizer.pt").read_bytes()[:1000])
        with pytest.raises(ModelError, match=r"cut\.pt: "):
            check_pickles(spoilt)
    assert not marker.touched


def test_what_deepspeed_writes_is_known(marker, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    folder = tmp_path / "global_step1"
    folder.mkdir()
    state = {"loss_scaler": LossScaler(1.0), "zero_stage": ZeroStageEnum(3), "weights": torch.ones(3)}
    torch.save(state, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    check_pickles(tmp_path)
    marker.torch_file(folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt", state)
    with pytest.raises(ModelError, match=r"holds posix\.system"):
        check_pickles(tmp_path)
    assert not marker.touched


def test_a_checkpoint_does_not_lead_out_of_its_folder(marker, tmp_path: Path) -> None:
    """Engines follow links of folders, and the name in DeepSpeed's `latest`."""
    linked, named, outside = tmp_path / "linked", tmp_path / "named", tmp_path / "outside"
    for folder in (linked, named, outside):
        folder.mkdir()
    marker.torch_file(outside / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (linked / "global_step1").symlink_to(outside, target_is_directory=True)
    for name in ("../outside", str(outside), ".."):
        (named / "latest").write_text(name)
        with pytest.raises(ModelError, match=r"latest: names '.*', which is no folder beside it"):
            check_pickles(named)
    with pytest.raises(ModelError, match=r"optim_states\.pt: holds posix\.system"):
        check_pickles(linked)
    (linked / "global_step1").unlink()
    (linked / "global_step1").symlink_to(linked, target_is_directory=True)  # round and round
    (linked / "latest").write_text("global_step1\n")
    check_pickles(linked)
    assert not marker.touched


class ByName:
    """Pickled as `getattr` of something, which is how some versions of Python pickle members of enumerations."""

    def __init__(self, owner: Any, name: str) -> None:
        self.given = owner, name

    def __reduce__(self) -> Any:
        return getattr, self.given


def test_members_of_enumerations_by_name(tmp_path: Path) -> None:
    zero = pytest.importorskip("deepspeed.runtime.zero.config")
    file = tmp_path / "global_step1" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    file.parent.mkdir()
    torch.save({"zero_stage": ByName(zero.ZeroStageEnum, "weights")}, file)
    check_pickles(tmp_path)
    for owner, name in ((zero.ZeroStageEnum, "__subclasses__"), (torch.Tensor, "numpy"), ("", "__class__")):
        torch.save({"zero_stage": ByName(owner, name)}, file)
        with pytest.raises(ModelError, match=r"holds builtins\.getattr"):
            check_pickles(tmp_path)


def test_members_of_enumerations_by_name_in_an_index(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

    sound = Metadata(
        state_dict_metadata={}, storage_data={}, planner_data=ByName(_MEM_FORMAT_ENCODING, "TORCH_PRESERVE_FORMAT")
    )
    (tmp_path / ".metadata").write_bytes(pickle.dumps(sound))
    check_pickles(tmp_path)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(ByName(Metadata, "__init__")))
    with pytest.raises(ModelError, match=r"\.metadata: holds builtins.getattr"):
        check_pickles(tmp_path)


def test_what_a_distributed_checkpoint_holds_is_known(marker, tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    dcp.save(states, checkpoint_id=tmp_path / "good", no_dist=True)
    check_pickles(tmp_path / "good")
    bomb = torch.load(marker.torch_file(tmp_path / "x"), weights_only=False)  # unpickled, it is a number
    assert bomb["value"] is None and marker.touched
    marker.path.unlink()
    from tests.security.conftest import Bomb

    dcp.save({**states, "more": Bomb(marker.path)}, checkpoint_id=tmp_path / "bytes", no_dist=True)
    shutil.copytree(tmp_path / "good", tmp_path / "index")
    (tmp_path / "index" / ".metadata").write_bytes(marker.pickle())
    for name, file in (("bytes", r"__0_0\.distcp"), ("index", r"\.metadata")):
        with pytest.raises(ModelError, match=f"{file}: holds posix.system"):
            check_pickles(tmp_path / name)
    assert not marker.touched


# --- YAML ---------------------------------------------------------------------------------------------------------

TAGS = (
    "!!python/object/apply:os.system ['touch {marker}']",
    "!!python/object/new:os.system ['touch {marker}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object:simpo.errors.ConfigError {{}}",
)
READERS: dict[str, Callable[[Path], Any]] = {
    "settings": read_settings,
    "recipe": lambda path: read_recipe([path]),
    "space": read_space,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("tag", TAGS)
def test_yaml_makes_no_objects(reader: str, tag: str, marker, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"model_name_or_path: {tag.format(marker=marker.path)}\n")
    with pytest.raises(SimPOError, match=r"run\.yaml.*tags that make objects are refused"):
        READERS[reader](path)
    assert not marker.touched


def test_an_override_makes_no_objects(marker) -> None:
    text = TAGS[0].format(marker=marker.path)
    (entry,) = read_overrides([f"--model_name_or_path={text}"])
    assert entry.value == text and not marker.touched


def test_no_module_reads_yaml_or_pickles_otherwise() -> None:
    """What the tests above show holds for every reader: the unsafe ones are nowhere called."""
    unsafe = ("yaml.load(", "yaml.unsafe_load", "yaml.full_load", "allow_pickle=True", "pd.read_pickle", "pickle.load(",
              "weights_only=False", "joblib", "jinja2.Environment(", "shelve", "marshal.load")  # fmt: skip
    package = PRICES.parents[2]
    assert package.name == "simpo"
    found = {
        (str(file.relative_to(package)), word)
        for file in package.rglob("*.py")
        for word in unsafe
        if word in file.read_text(encoding="utf-8")
    }
    # the templates of pages are the package's own, and what they show is escaped
    assert found == {("audit/page.py", "jinja2.Environment("), ("analysis/report/page.py", "jinja2.Environment(")}
