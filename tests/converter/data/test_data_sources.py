"""What open_data accepts, how it cuts arrays into feeds, and what it refuses."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
from support import model_from_text

from converter.data.sources import open_data
from converter.errors import BatchError, DataError, UsageError

RNG = np.random.default_rng(0)


def dynamic():
    return model_from_text("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")


def fixed(rows):
    return model_from_text(f"g (float[{rows},3] x) => (float[{rows},3] y) {{ y = Relu(x) }}")


def rows(count):
    return RNG.standard_normal((count, 3)).astype(np.float32)


def shapes(dataset, name="x"):
    return [batch.inputs[name].shape for batch in dataset]


@pytest.fixture
def save(tmp_path):
    def write(name="data.npz", **arrays):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
        return path

    return write


def test_own_rank_is_cut_along_axis_0_into_batches(save):
    data = rows(5)
    dataset = open_data(save(x=data), dynamic(), batch=2)
    assert shapes(dataset) == [(2, 3), (2, 3), (1, 3)]
    assert [b.samples for b in dataset] == [2, 2, 1]
    assert (dataset.samples, len(dataset), dataset.synthetic) == (5, 3, False)
    np.testing.assert_array_equal(np.concatenate([b.inputs["x"] for b in dataset]), data)


def test_every_iteration_starts_again_and_the_dataset_is_picklable(save):
    dataset = open_data(save(x=rows(3)), dynamic())
    again = pickle.loads(pickle.dumps(dataset))
    first = [b.inputs["x"] for b in dataset]
    for other in (dataset, again):
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b.inputs["x"])


def test_one_axis_more_holds_complete_inputs(save):
    data = RNG.standard_normal((4, 2, 3)).astype(np.float32)
    assert shapes(open_data(save(x=data), dynamic())) == [(2, 3)] * 4
    assert shapes(open_data(save(x=data), fixed(2))) == [(2, 3)] * 4


def test_complete_inputs_are_joined_for_larger_batches(save):
    data = RNG.standard_normal((4, 1, 3)).astype(np.float32)
    assert shapes(open_data(save(x=data), dynamic(), batch=3)) == [(3, 3), (1, 3)]


def test_fixed_axis_0_of_one_is_cut_into_single_rows(save):
    assert shapes(open_data(save(x=rows(3)), fixed(1))) == [(1, 3)] * 3


def test_fixed_axis_0_is_cut_into_groups_of_its_size(save):
    dataset = open_data(save(x=rows(4), labels=np.arange(4)), fixed(2))
    assert shapes(dataset) == [(2, 3)] * 2
    assert dataset.samples == 4
    assert [b.targets.tolist() for b in dataset] == [[0, 1], [2, 3]]
    with pytest.raises(BatchError, match="cannot be cut into groups of 2"):
        open_data(save(x=rows(5)), fixed(2))


def test_a_batch_does_not_fit_a_fixed_axis(save):
    with pytest.raises(BatchError, match=r"leave --batch out"):
        open_data(save(x=rows(4)), fixed(1), batch=2)


def test_samples_takes_the_first(save):
    data = rows(9)
    dataset = open_data(save(x=data), dynamic(), samples=3, batch=2)
    assert dataset.samples == 3
    np.testing.assert_array_equal(np.concatenate([b.inputs["x"] for b in dataset]), data[:3])


def test_labels_come_along(save):
    dataset = open_data(save(x=rows(3), labels=np.array([2, 0, 1])), dynamic(), batch=2)
    assert [b.targets.tolist() for b in dataset] == [[2, 0], [1]]
    assert dataset.labelled


def test_an_input_named_labels_is_an_input(save):
    model = model_from_text("g (float[N,3] labels) => (float[N,3] y) { y = Relu(labels) }")
    path = save(labels=rows(2), truth=np.array([0, 1]))
    assert [b.targets.tolist() for b in open_data(path, model, labels="truth")] == [[0], [1]]
    with pytest.raises(BatchError, match="'truth' is no input"):
        open_data(path, model)
    with pytest.raises(BatchError, match="is an input of the model"):
        open_data(path, model, labels="labels")


def test_named_labels_must_be_there(save):
    with pytest.raises(BatchError, match="did you mean 'target'"):
        open_data(save(x=rows(2), target=np.arange(2)), dynamic(), labels="targets")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((2,), np.float32), "float32"),
        (np.arange(3), "3 labels for 2 samples"),
        (np.zeros((0,), np.int64), "0 labels"),
    ],
)
def test_labels_that_do_not_fit(save, labels, words):
    with pytest.raises(BatchError, match=words):
        open_data(save(x=rows(2), labels=labels), dynamic())


def two_inputs():
    return model_from_text("g (float[N,3] x, float[N,3] z) => (float[N,3] y) { y = Add(x, z) }")


def test_mixed_sample_counts_are_refused(save):
    with pytest.raises(BatchError, match=r"different numbers of samples.*'x': 2.*'z': 3"):
        open_data(save(x=rows(2), z=rows(3)), two_inputs())


def test_recurrent_state_with_its_own_fixed_axis(save):
    model = model_from_text(
        "g (float[1,3] x, float[2,1,3] h) => (float[2,1,3] y) { y = Add(x, h) }"
    )
    h = RNG.standard_normal((6, 1, 3)).astype(np.float32)
    dataset = open_data(save(x=rows(3), h=h), model)
    assert shapes(dataset, "h") == [(2, 1, 3)] * 3
    assert dataset.samples == 3


def test_scalar_inputs_as_constant_and_as_elements(save):
    model = model_from_text("g (float[N,3] x, float s) => (float[N,3] y) { y = Mul(x, s) }")
    constant = open_data(save(x=rows(2), s=np.float32(3)), model)
    assert [float(b.inputs["s"]) for b in constant] == [3, 3]
    varying = open_data(save(x=rows(2), s=np.float32([1, 2])), model)
    assert [(b.inputs["s"].shape, float(b.inputs["s"])) for b in varying] == [((), 1), ((), 2)]


def test_overridable_initializers_are_optional(save):
    text = "g (float[N,3] x, float[3] w = {1,1,1}) => (float[N,3] y) { y = Mul(x, w) }"
    model = model_from_text(text)
    assert [set(b.inputs) for b in open_data(save(x=rows(1)), model)] == [{"x"}]
    w = np.ones((1, 3), np.float32)
    assert [set(b.inputs) for b in open_data(save(x=rows(1), w=w), model)] == [{"x", "w"}]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y": rows(2)}, "'y' is no input"),
        ({"X": rows(2)}, "did you mean 'x'"),
        ({"x": rows(2), "more": rows(2)}, "'more' is no input"),
        ({"labels": np.arange(2)}, "no array for input 'x'"),
        ({"x": np.zeros((0, 3), np.float32)}, "no samples"),
        ({"x": np.zeros((2, 4), np.float32)}, r"\(1, 4\)"),
        ({"x": np.zeros((2,), np.float32)}, "has 1 axes"),
        ({"x": np.zeros((2, 1, 1, 3), np.float32)}, "has 4 axes"),
        ({"x": np.float32([[1, np.nan, 2]])}, r"nan at \[0, 1\]"),
        ({"x": np.float32([[1, 2, 2], [1, 2, -np.inf]])}, r"-inf at \[1, 2\]"),
        ({"x": np.zeros((2, 3), np.uint8)}, "type uint8"),
        ({"x": np.zeros((2, 3), np.int64)}, "type int64"),
        ({"x": np.zeros((2, 3), bool)}, "type bool"),
        ({"x": np.zeros((2, 3), np.complex64)}, "type complex64"),
        ({"x": np.array([["a", "b", "c"]])}, "type <U1"),
        ({"x": np.full((1, 3), 1e300)}, "float32 cannot hold"),
    ],
)
def test_arrays_that_do_not_fit(save, arrays, words):
    with pytest.raises(DataError, match=words) as caught:
        open_data(save(**arrays), dynamic())
    assert caught.value.exit_code == 5
    assert "data.npz" in str(caught.value)


def test_safe_conversions(save):
    as_double = rows(2).astype(np.float64)
    assert next(iter(open_data(save(x=as_double), dynamic()))).inputs["x"].dtype == np.float32
    big_endian = rows(2).astype(">f4")
    found = [b.inputs["x"] for b in open_data(save(x=big_endian), dynamic())]
    np.testing.assert_array_equal(np.concatenate(found), big_endian)
    fortran = np.asfortranarray(rows(4))
    found = [b.inputs["x"] for b in open_data(save(x=fortran), dynamic(), batch=3)]
    np.testing.assert_array_equal(np.concatenate(found), fortran)


def test_whole_numbers_must_stay_in_range(save):
    model = model_from_text("g (int32[N,3] x) => (int32[N,3] y) { y = Identity(x) }")
    dataset = open_data(save(x=np.full((1, 3), 7, np.int64)), model)
    assert next(iter(dataset)).inputs["x"].dtype == np.int32
    with pytest.raises(BatchError, match="values from 0 to 4294967296"):
        open_data(save(x=np.array([[0, 1, 1 << 32]])), model)


def test_strings(save):
    model = model_from_text("g (string[N,2] x) => (string[N,2] y) { y = Identity(x) }")
    dataset = open_data(save(x=np.array([["a", "ü"], ["", "d"]])), model, batch=2)
    assert next(iter(dataset)).inputs["x"].tolist() == [["a", "ü"], ["", "d"]]


def test_dimensions_of_one_name_must_agree(save):
    model = model_from_text("g (float[N,T] x, float[N,T] z) => (float[N,T] y) { y = Add(x, z) }")
    a, b = np.zeros((2, 4), np.float32), np.zeros((2, 5), np.float32)
    with pytest.raises(BatchError, match="dimension 'T' is 4 in array 'x' and 5 in array 'z'"):
        open_data(save(x=a, z=b), model)


def test_compressed_files_stream_the_same(tmp_path):
    data = rows(100)
    np.savez_compressed(tmp_path / "c.npz", x=data)
    found = [b.inputs["x"] for b in open_data(tmp_path / "c.npz", dynamic(), batch=7)]
    np.testing.assert_array_equal(np.concatenate(found), data)


# --- folders -------------------------------------------------------------------------------------


def test_folder_of_npz_files_sorted_by_name(save, tmp_path):
    first, second = rows(2), rows(3)
    save("f/b.npz", x=second, labels=np.arange(3))
    save("f/a.npz", x=first, labels=np.arange(2))
    dataset = open_data(tmp_path / "f", dynamic(), batch=2)
    assert dataset.samples == 5
    assert shapes(dataset) == [(2, 3), (2, 3), (1, 3)]
    np.testing.assert_array_equal(next(iter(dataset)).inputs["x"], first)
    assert open_data(tmp_path / "f", dynamic(), samples=3).samples == 3


def test_folder_of_feeds_with_varying_shapes(save, tmp_path):
    model = model_from_text("g (float[N,T] x) => (float[N,T] y) { y = Relu(x) }")
    for index, length in enumerate((4, 7, 5)):
        save(f"f/{index}.npz", x=np.zeros((1, length), np.float32))
    assert shapes(open_data(tmp_path / "f", model)) == [(1, 4), (1, 7), (1, 5)]


def test_a_file_that_cannot_be_cut_alike_is_one_complete_feed(save, tmp_path):
    model = model_from_text(
        "g (float[N,3] x, float[2,N,3] h) => (float[2,N,3] y) { y = Add(x, h) }"
    )
    save("f/0.npz", x=rows(6), h=np.zeros((2, 6, 3), np.float32))
    dataset = open_data(tmp_path / "f", model)
    assert shapes(dataset, "h") == [(2, 6, 3)]
    assert dataset.samples == 1


def test_folder_errors_name_the_file(save, tmp_path):
    save("f/good.npz", x=rows(1))
    save("f/wrong.npz", y=rows(1))
    with pytest.raises(BatchError, match=r"wrong\.npz"):
        open_data(tmp_path / "f", dynamic())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no samples"):
        open_data(tmp_path / "empty", dynamic())


def test_labels_in_some_files_only(save, tmp_path):
    save("f/a.npz", x=rows(1), labels=np.arange(1))
    save("f/b.npz", x=rows(1))
    with pytest.raises(BatchError, match="some files have labels"):
        open_data(tmp_path / "f", dynamic())


# --- Python --------------------------------------------------------------------------------------


def test_dict_of_arrays_and_bare_array():
    for spec in ({"x": rows(3)}, rows(3), rows(3).tolist() and {"x": rows(3)}):
        assert shapes(open_data(spec, dynamic(), batch=2)) == [(2, 3), (1, 3)]
    with pytest.raises(BatchError, match="2 inputs"):
        open_data(rows(2), two_inputs())


def test_list_of_feeds():
    feeds = [{"x": rows(1), "labels": 1}, {"x": rows(4), "labels": np.arange(4)}]
    dataset = open_data(feeds, dynamic())
    assert shapes(dataset) == [(1, 3), (4, 3)]
    assert [b.targets.tolist() for b in dataset] == [[1], [0, 1, 2, 3]]
    assert open_data([np.zeros(3, np.float32)], dynamic()).samples == 1
    with pytest.raises(DataError, match="no samples"):
        open_data([], dynamic())
    with pytest.raises(BatchError, match="feed 1"):
        open_data([{"x": rows(1)}, {"x": rows(1) * np.nan}], dynamic())


def test_a_dataset_is_taken_as_it_is():
    dataset = open_data(rows(2), dynamic())
    assert open_data(dataset, dynamic()) is dataset


@pytest.mark.parametrize("spec", [3, object(), b"bytes", (i for i in range(2))])
def test_other_things_are_no_data(spec):
    with pytest.raises(DataError, match="cannot be used as data"):
        open_data(spec, dynamic())


def test_callable_is_called_anew_for_every_iteration(tmp_path, monkeypatch):
    (tmp_path / "my_samples.py").write_text(
        "import numpy as np\n"
        "def feeds():\n"
        "    for i in range(3):\n"
        "        yield {'x': np.full((1, 3), i, np.float32)}\n"
        "number = 3\n"
        "def failing():\n"
        "    yield 1 / 0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    dataset = open_data("my_samples:feeds", dynamic())
    assert dataset.samples == 3
    for _ in range(2):
        assert [b.inputs["x"][0, 0] for b in dataset] == [0, 1, 2]
    assert open_data("my_samples:feeds", dynamic(), samples=2).samples == 2
    (tmp_path / "my_broken_samples.py").write_text("1 / 0")
    with pytest.raises(DataError, match="ZeroDivisionError"):
        open_data("my_broken_samples:feeds", dynamic())
    with pytest.raises(DataError, match="ZeroDivisionError"):
        open_data("my_samples:failing", dynamic())
    for wrong in ("my_samples:other", "no_such_module:feeds", "my_samples:number"):
        with pytest.raises(DataError, match=wrong):
            open_data(wrong, dynamic())
    sys.modules.pop("my_samples")


@pytest.mark.parametrize("name", ["missing.npz", "no/such/folder", "a:b.npz", "\0"])
def test_missing_data(name):
    with pytest.raises(DataError):
        open_data(name, dynamic())


def test_wrong_numbers():
    for words in ({"batch": 0}, {"samples": 0}, {"samples": -1}):
        with pytest.raises(UsageError):
            open_data(rows(2), dynamic(), **words)


def test_sequence_inputs_are_refused():
    model = model_from_text("g (seq(float[2]) x) => (int64 y) { y = SequenceLength(x) }")
    with pytest.raises(DataError, match="no tensor"):
        open_data({"x": rows(1)}, model)
