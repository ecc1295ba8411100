"""Arrays larger than memory: read by slices, chunk by chunk, and never as a whole."""

import mmap
import warnings
import weakref

import numpy as np
import pytest
import torch

import skvae.columns
import skvae.rows
import skvae.targets
from skvae import VAETransformer
from skvae.columns import Columns, is_large
from skvae.rows import DistinctRows, StreamedRows
from skvae.targets import Stored, Streamed

N_ROWS, N_COLUMNS = 3000, 4
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(N_ROWS, 1))
X = (Z * [1, -1, 0.5, 2] + [0, 5, 0, 1] + 0.3 * RNG.normal(size=(N_ROWS, 4))).astype("float32")


@pytest.fixture(autouse=True)
def small_memory(monkeypatch):
    """Of 12,000 cells, a window holds 2,048 and a chunk 128."""
    monkeypatch.setattr(skvae.columns, "IN_MEMORY", 8_000)
    monkeypatch.setattr(skvae.rows, "CHUNK_CELLS", 128)
    monkeypatch.setattr(skvae.rows, "SAMPLE", 4_000)
    monkeypatch.setattr(skvae.targets, "WINDOW", 2_048)


class Slices:
    """What h5py and zarr offer, and a record of what was read."""

    chunks = (100, 4)

    def __init__(self, array):
        self.array, self.read = array, []
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __len__(self):
        return len(self.array)

    def __getitem__(self, key):
        part = self.array[key]
        self.read.append(part.size)
        return part

    def __array__(self, *args, **kwargs):
        raise AssertionError("read as a whole")


def on_disk(tmp_path, array=X, mode="r"):
    path = tmp_path / f"rows of {array.dtype}"
    array.tofile(path)
    return np.memmap(path, array.dtype, mode, shape=array.shape)


def model(**params):
    defaults = {"hidden_layer_sizes": (16,), "max_iter": 3, "random_state": 0}
    return VAETransformer(1, **defaults | params)


def fitted(array, **params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(**params).fit(array)


def streamed(array=X, weights=None):
    return StreamedRows(Columns.read(array, "auto", None), array, weights)


class Identity:
    """A likelihood whose targets are T."""

    def standardize(self, T):
        return T

    def log_unit(self, T):
        return 0.0 * T + 0.25


def stream(array=X, weights=None):
    rows = streamed(array, weights)
    sample = rows.sample.block(slice(None))
    ones = torch.ones(len(sample), dtype=torch.float64)
    stored = Stored(torch.from_numpy(sample).float(), ones, 2 * ones, gaps=False)
    return Streamed(rows, Identity(), stored)


def epoch(data, seed=0, n_batches=190):
    generator = torch.Generator().manual_seed(seed)
    numbers, parts = zip(
        *data.reader(n_batches, generator, "cpu", lambda rows: None)(), strict=True
    )
    assert sum(numbers) == n_batches
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def epoch_batches(data, n_batches=190):
    generator = torch.Generator().manual_seed(0)
    for _, batch in data.reader(n_batches, generator, "cpu", lambda rows: None)():
        yield batch


# ---------------------------------------------------------------- what is large


def test_what_is_large(tmp_path):
    small = X[:2000]  # as many cells as memory holds
    assert is_large(on_disk(tmp_path)) and is_large(Slices(X))
    assert is_large(on_disk(tmp_path)[::-1][:2001]) and not is_large(on_disk(tmp_path)[:2000])
    for other in (X, small, Slices(small), on_disk(tmp_path, small), X.tolist()):
        assert not is_large(other)


# ---------------------------------------------------------------- rows and chunks


def test_no_more_is_in_memory_than_there_is_room_for(monkeypatch):
    """Of the sample, of a window, and of held-out rows; and one window at a time."""
    rows = StreamedRows(Columns.read(X, "auto", None), X, None, room=1_000)
    assert len(rows.sample) == 250
    data = Streamed(
        rows, Identity(), Stored(torch.zeros(1, 4), torch.ones(1), torch.ones(1), False)
    )
    read, windows = data._read, []

    def watched(self, chunks, *args):
        assert all(window() is None for window in windows)
        window = read(chunks, *args)
        if not args:
            windows.append(weakref.ref(window))
        sizes.append(window.targets.numel())
        return window

    sizes = []
    monkeypatch.setattr(Streamed, "_read", watched)
    rest, held_out = data.split(2_000, torch.Generator().manual_seed(0))
    n_rows = sum(len(batch[0]) for batch in epoch_batches(rest))
    assert n_rows == len(rest) == len(X) - len(held_out)
    assert len(windows) > 10 and max(sizes) <= 1_000 + 128  # chunks are not cut


def test_chunks_cover_all_rows_once():
    rows = streamed()
    parts = [rows.chunk(number) for number in range(rows.n_chunks)]
    assert [i for start, stop in parts for i in range(start, stop)] == list(range(N_ROWS))
    assert max(stop - start for start, stop in parts) == 32  # 128 cells
    few = streamed(X[:70])
    assert few.n_chunks == 70  # rather small chunks than few of them


def test_the_sample_is_of_rows_from_everywhere():
    X = np.repeat(np.arange(3000.0)[:, None], 4, axis=1)
    rows = streamed(X)
    found = np.sort(rows.sample.block(slice(None))[:, 0])
    assert len(found) == 1000 and len(set(found)) == 1000  # 4,000 cells
    for part in np.split(found, 10):
        assert part.max() - part.min() < 400
    assert abs(found.mean() - 1499.5) < 5
    assert (found[1:] - found[:-1]).min() == 1  # not at equal distances
    assert isinstance(rows.sample, DistinctRows)


def test_weights_have_a_mean_of_one_and_reach_the_sample():
    weights = np.where(np.arange(N_ROWS) < 1500, 3.0, 0.0)
    rows = streamed(X, weights)
    assert rows.weights.mean() == 1.0
    known = {tuple(row) for row in X[:1500].astype(float)}
    assert all(tuple(row) in known for row in rows.sample.block(slice(None)))
    stands_for = N_ROWS / 1_000  # of 4,000 cells
    assert set(rows.sample.weights) == {2.0 * stands_for}


def test_a_sample_keeps_double_precision():
    X = RNG.normal(size=(N_ROWS, 4)) + 1e9
    assert {tuple(row) for row in streamed(X).sample.block(slice(None))} <= {tuple(r) for r in X}


# ---------------------------------------------------------------- epochs


def test_an_epoch_has_each_row_once_in_random_order():
    weights = RNG.uniform(0.5, 1.5, N_ROWS)
    data = stream(X, weights)
    targets, found = epoch(data)
    assert len(targets) == len(data) == N_ROWS
    order = np.lexsort(targets.numpy().T)
    np.testing.assert_array_equal(targets.numpy()[order], X[np.lexsort(X.T)])
    np.testing.assert_allclose(
        found.numpy()[order], (weights / weights.mean())[np.lexsort(X.T)], rtol=1e-6
    )
    other, _ = epoch(data, seed=1)
    assert not torch.equal(other, targets)
    assert torch.equal(epoch(data)[0], targets)


def test_rows_of_a_sorted_array_are_mixed():
    X = np.repeat(np.arange(3000.0)[:, None], 4, axis=1)
    targets = epoch(stream(X))[0][:, 0]
    for batch in targets[:2900].split(100):
        assert abs(float(batch.mean()) - 1499.5) < 900
        assert batch.std() > 400
        assert (batch[1:] - batch[:-1]).abs().mean() > 300  # not in the order of chunks


def test_no_more_than_a_window_is_read_at_once():
    source = Slices(X)
    data = stream(source)
    source.read.clear()
    read = data.reader(190, torch.Generator().manual_seed(0), "cpu", lambda rows: None)
    parts = read()
    next(parts)
    assert sum(source.read) <= 2_048
    assert max(source.read) <= 128
    assert sum(len(part[0]) for _, part in parts) > 2000
    assert sum(source.read) == X.size


def test_hints_belong_to_their_rows():
    data = stream()
    generator = torch.Generator().manual_seed(0)
    read = data.reader(190, generator, "cpu", lambda rows: rows[:][0].square())
    for _, (targets, _, hints) in read():
        assert torch.equal(hints, targets.square())


def test_held_out_rows_are_not_trained_on():
    data = stream()
    train, held_out = data.split(300, torch.Generator().manual_seed(0))
    assert 250 < len(held_out) < 350
    targets, weights = held_out[:]
    assert (weights == 1.0).all() and held_out.unit == 1.0  # four times a quarter of a nat
    both = torch.cat([epoch(train)[0], targets]).numpy()
    assert len(train) == N_ROWS - len(held_out)
    np.testing.assert_array_equal(both[np.lexsort(both.T)], X[np.lexsort(X.T)])
    # as many as a window holds, and of some chunks at least
    assert len(data.split(2_000, torch.Generator())[1]) <= 544
    assert len(data.split(1, torch.Generator())[1]) > 0
    assert data.unit == train.unit == 2.0  # the sample's
    # chunks of rows from everywhere, and in no order
    ordered = np.repeat(np.arange(3000.0)[:, None], 4, axis=1)
    found = stream(ordered).split(300, torch.Generator().manual_seed(0))[1][:40][0][:, 0]
    assert found.max() - found.min() > 1500 and (found.diff().abs() > 32).sum() > 25


def test_chunks_that_do_not_count_are_not_held_out():
    weights = np.zeros(N_ROWS)
    weights[64:320] = 1.0  # eight chunks of 32
    train, held_out = stream(X, weights).split(60, torch.Generator().manual_seed(0))
    assert len(train) + len(held_out) == 256
    assert held_out[:99][1].min() > 0
    weights[96:] = 0.0
    with pytest.raises(ValueError, match="a stretch of 32 rows"):
        stream(X, weights).split(60, torch.Generator())


# ---------------------------------------------------------------- models


def test_a_stream_learns_what_memory_learns(tmp_path):
    params = {"max_iter": 8, "learning_rate_init": 0.01}
    expected = fitted(X, **params)
    for array in (on_disk(tmp_path), Slices(X), on_disk(tmp_path, X.astype(float))):
        found = fitted(array, **params)
        assert found.score(X) == pytest.approx(expected.score(X), abs=0.03)
        assert abs(np.corrcoef(found.transform(X)[:, 0], expected.transform(X)[:, 0])[0, 1]) > 0.999
        assert found.n_features_in_ == 4
        # held-out bounds are in original units too
        assert found.validation_scores_[-1] == pytest.approx(
            expected.validation_scores_[-1], abs=0.3
        )


def test_gaps_in_a_stream(tmp_path):
    holes = X.copy()
    holes[RNG.random(X.shape) < 0.2] = np.nan
    expected = fitted(holes)
    found = fitted(on_disk(tmp_path, holes))
    assert found.score(holes) == pytest.approx(expected.score(holes), abs=0.05)


def test_weights_of_a_stream(tmp_path):
    # the second half does not count
    strange = X.copy()
    strange[1500:] = strange[1500:, ::-1]
    weights = np.r_[np.ones(1500), np.zeros(1500)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model().fit(on_disk(tmp_path, strange), sample_weight=weights)
    assert found.score(X[:1500]) == pytest.approx(fitted(X[:1500]).score(X[:1500]), abs=0.05)


def test_families_of_a_stream(tmp_path):
    table = X.copy()
    table[:, 0] = np.floor(4 * RNG.random(N_ROWS)) ** 2
    table[:, 1] = table[:, 1] > 5
    table[:, 2] = RNG.poisson(np.exp(0.3 * table[:, 2]))
    table[2999, 0] = 81.0  # a level that the sample may not have
    likelihood = {1: "bernoulli", 2: "poisson"}
    found = fitted(on_disk(tmp_path, table), likelihood=likelihood, categorical_features=[0])
    expected = fitted(table, likelihood=likelihood, categorical_features=[0])
    assert found._columns.levels[0].tolist() == [0.0, 1.0, 4.0, 9.0, 81.0]
    assert found.score(table) == pytest.approx(expected.score(table), abs=0.1)


@pytest.mark.parametrize("method", ["transform", "score_samples", "impute"])
def test_methods_read_by_slices(method, tmp_path, monkeypatch):
    monkeypatch.setattr("skvae.workspace.WORKSPACE", 400)
    vae = fitted(X)
    expected = getattr(vae, method)(X)
    np.testing.assert_array_equal(getattr(vae, method)(on_disk(tmp_path)), expected)
    if method != "impute":
        source = Slices(X)
        np.testing.assert_array_equal(getattr(vae, method)(source), expected)
        assert max(source.read) == 400


def test_small_sources_are_as_good_as_arrays():
    source = Slices(X[:500])
    expected = fitted(X[:500])
    found = fitted(source)
    np.testing.assert_array_equal(found.transform(source), expected.transform(X[:500]))


def test_partial_fit_takes_a_stream(tmp_path):
    vae = model().partial_fit(X[:200]).partial_fit(on_disk(tmp_path))
    assert vae.n_iter_ == 2
    assert np.isfinite(vae.score(X))


@pytest.mark.parametrize("make", [Slices, None])
def test_a_stream_is_fitted_as_one(make, tmp_path, monkeypatch):
    seen = []
    original = skvae.targets.Streamed.reader

    def reader(self, *args):
        seen.append(len(self))
        return original(self, *args)

    monkeypatch.setattr(skvae.targets.Streamed, "reader", reader)
    array = on_disk(tmp_path) if make is None else make(X)
    fitted(array, early_stopping=False)
    assert seen == [N_ROWS]
    fitted(array[:2000])
    assert seen == [N_ROWS]  # these are read


def test_going_on_with_a_stream(tmp_path):
    array = on_disk(tmp_path)
    options = {"warm_start": True, "early_stopping": False, "noise": "homoscedastic"}
    once = fitted(array, max_iter=4, **options)
    twice = fitted(array, max_iter=2, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twice.fit(array)
    np.testing.assert_array_equal(twice.transform(X), once.transform(X))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("make", [Slices, None])
def test_infinities_are_named_by_row(make, tmp_path, monkeypatch):
    monkeypatch.setattr("skvae.workspace.WORKSPACE", 400)  # a later part of a later block
    wrong = X.copy()
    wrong[2395, 2] = np.inf
    array = on_disk(tmp_path, wrong) if make is None else make(wrong)
    vae = model()
    message = r"Column 2 of X holds inf \(row 2395\)\."
    with pytest.raises(ValueError, match=message):
        vae.fit(array)
    assert not hasattr(vae, "module_")
    with pytest.raises(ValueError, match=message):
        fitted(X).transform(array)


def test_values_outside_the_support_are_named_by_row(tmp_path):
    wrong = np.abs(X).round()
    wrong[1234, 1] = -3.0
    with pytest.raises(ValueError, match=r"column 1 holds -3 \(row 1234\)"):
        model(likelihood="poisson").fit(on_disk(tmp_path, wrong))


def test_text_and_wrong_widths_are_refused():
    with pytest.raises(TypeError, match="X holds <U1: convert it to numbers"):
        model().fit(Slices(np.full((3000, 4), "a")))
    with pytest.raises(ValueError, match="3 features"):
        fitted(X).transform(Slices(np.ones((4000, 3))))


def test_streams_of_one_distinct_row_are_refused():
    with pytest.raises(ValueError, match="Found array with 1 sample"):
        model().fit(Slices(np.ones((3000, 4), "float32")))


# ---------------------------------------------------------------- memory


def test_reading_lets_go(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(skvae.columns, "_let_go", calls.append)
    monkeypatch.setattr("skvae.workspace.WORKSPACE", 400)
    array = on_disk(tmp_path)
    rows = streamed(array)
    assert len(calls) == rows.n_chunks
    vae = fitted(X)
    calls.clear()
    vae.transform(array)
    assert len(calls) == N_ROWS / (400 // X.shape[1])


def test_pages_are_let_go_where_that_is_safe(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        skvae.columns, "_let_go", lambda mapped: calls.append(type(mapped)), raising=True
    )
    Columns.release(on_disk(tmp_path)[10:][::2])
    assert calls == [mmap.mmap]
    changed = on_disk(tmp_path, mode="c")
    changed[0, 0] = 7.0
    for array in (changed, np.asarray(changed).view(np.memmap), X, Slices(X)):
        Columns.release(array)
    assert len(calls) == 1


def test_changes_of_a_copy_on_write_map_survive(tmp_path):
    array = on_disk(tmp_path, mode="c")
    array[:] = X[::-1]
    fitted(array, max_iter=1)
    np.testing.assert_array_equal(array, X[::-1])
