"""Settings of every test and every notebook's kernel: no network, bars or old runs."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent

os.environ.update(
    TQDM_DISABLE="1",  # bars end in stored outputs; tqdm.auto ignores this, so: tqdm
    HF_HUB_OFFLINE="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
    PYTHONHASHSEED="0",
    PYTHONPATH=os.pathsep.join(
        [
            str(ROOT / "tests" / "offline"),
            *filter(None, [os.environ.get("PYTHONPATH")]),
        ]
    ),
)

_folders: dict[Path, str] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Give every notebook an empty `runs` of its own, before its kernel starts."""
    if item.path.suffix == ".ipynb" and item.path not in _folders:
        _folders[item.path] = tempfile.mkdtemp(prefix="minillm-runs-")
        os.environ["MINILLM_RUNS"] = _folders[item.path]


def pytest_unconfigure(config):
    for folder in _folders.values():
        shutil.rmtree(folder, ignore_errors=True)
