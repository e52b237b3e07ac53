import subprocess
import sys
from importlib.util import find_spec

import pytest

import settle


@pytest.mark.skipif(find_spec("settle.train") is None, reason="the room is not there yet")
def test_the_verbs_stay_functions_when_rooms_of_their_name_are_loaded():
    code = (
        "import settle, sys; from settle.train import loop; import settle.train.loop\n"
        "assert callable(settle.train) and settle.train.__name__ == 'train'\n"
        "assert loop is sys.modules['settle.train.loop']"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_everything_that_is_promised_is_there():
    assert all(hasattr(settle, name) for name in settle.__all__) and settle.__version__.count(".") == 2
