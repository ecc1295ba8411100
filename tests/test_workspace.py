"""How large arrays may be."""

import pytest
import torch
from torch import nn

from skvae.networks import Perceptron, Shaped
from skvae.workspace import CACHED, WORKSPACE, how_many, slices, width


def test_parts_hold_what_fits_one_row_at_least(monkeypatch):
    assert how_many(3) == WORKSPACE // 3
    assert how_many(3, CACHED) == CACHED // 3
    assert how_many(2 * WORKSPACE) == 1
    assert how_many(0) == WORKSPACE
    monkeypatch.setattr("skvae.workspace.WORKSPACE", 12)
    assert list(slices(8, 4)) == [slice(0, 3), slice(3, 6), slice(6, 8)]
    assert list(slices(5, 4, most=2)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(slices(5, 4, most=9)) == [slice(0, 3), slice(3, 5)]
    assert list(slices(3, 4, workspace=4)) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert list(slices(0, 4)) == []


def test_width_is_of_dense_layers_or_a_networks_own_word():
    assert width(nn.Identity()) == 1
    assert width(nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 2))) == 7
    shaped = Shaped()
    shaped.n_units = 50
    assert width(nn.Sequential(nn.Linear(3, 7), shaped)) == 50
    assert not hasattr(Perceptron, "n_units")  # what builds a network is none


class Own(nn.Module):
    """A user's network with an attribute of the same name, which means something else."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 7)

    @property
    def n_units(self):
        raise RuntimeError("not built yet")


class Huge(Own):
    n_units = 10**30


class Counted(Own):
    n_units = torch.tensor(5)


@pytest.mark.parametrize("kind", [Own, Huge, Counted])
def test_an_attribute_of_a_users_network_is_its_own(kind):
    assert width(kind()) == 7
