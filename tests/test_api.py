import subprocess
import sys

import settle


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
