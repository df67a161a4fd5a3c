import os

import pytest
import torch

from support.console import UserError
from weights import read_model


def test_a_pickle_is_read_only_where_it_holds_nothing_but_tensors(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert read_model(tmp_path)["w"].tolist() == [1, 1]
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    torch.save({"w": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="can be read safely"):
        read_model(tmp_path)
    assert not marker.exists()


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        read_model(tmp_path)
