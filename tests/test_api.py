import subprocess
import sys

import pytest

import settle
from settle.base.files import write_json
from settle.base.run import Run


def test_the_verbs_stay_functions_when_rooms_of_their_name_are_loaded():
    code = (
        "import importlib, settle\n"
        "room = importlib.import_module('settle.train')\n"
        "from settle.train import __path__ as path\n"
        "assert settle.train is not room and settle.train.__name__ == 'train' and path is room.__path__"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_everything_that_is_promised_is_there():
    assert all(hasattr(settle, name) for name in settle.__all__) and settle.__version__.count(".") == 2


def test_what_python_shows_of_settle(home):
    assert dir(settle) == sorted([*settle.__all__, "__version__"])
    with pytest.raises(settle.SettleError) as error:
        settle.train("x", tiem="1m")
    assert error.value.what == "there is no setting 'tiem'" and "time" in error.value.fix
    run = Run.create("train", "notes")
    write_json(run.path / "result.json", {"verdict": "settled", "best": {"loss": 1.9, "bits_per_byte": 1.4}})
    assert repr(settle.open_run("notes")) == "<FinishedRun notes: settled, 1.4000 bits per byte>"
